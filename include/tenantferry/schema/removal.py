"""Take back what the target has of a tenant beside its rows: role, schema, sequences, mapping."""

from __future__ import annotations

from psycopg2 import errors, sql
from psycopg2.extensions import connection

from tenantferry.errors import PermanentError
from tenantferry.fleet import Tenant
from tenantferry.schema.isolation import lock_target_schema

_END_SESSIONS = (
    "SELECT pg_terminate_backend(pid, 10000) FROM pg_catalog.pg_stat_activity"
    " WHERE usename = %s AND datname = current_database()"
)
_MAPPED = "SELECT tenant_id::text, schema_name FROM app.tenant_roles WHERE role_name = %s"
_SEQUENCES = (
    "SELECT c.relname FROM pg_catalog.pg_class AS c"
    " JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace"
    " WHERE n.nspname = %s AND c.relkind = 'S' ORDER BY c.relname"
)
_ROLE_EXISTS = "SELECT FROM pg_catalog.pg_roles WHERE rolname = %s"


def remove_tenant_role(target: connection, tenant: Tenant) -> str | None:
    """
    Drop the tenant's role, its schema with its sequences, and what maps the role to the tenant.

    :param target: open transaction; the caller commits.
    :return: why the role had to stay; ``None`` where it is gone.
    :raises PermanentError: if role or schema belong to another tenant, or hold what is not ours.
    """
    lock_target_schema(target)
    _check_mapping(target, tenant)
    with target.cursor() as cursor:
        cursor.execute(_END_SESSIONS, (tenant.role,))
        _drop_schema(target, tenant)
        cursor.execute("DELETE FROM app.tenant_roles WHERE role_name = %s", (tenant.role,))
    return _drop_role(target, tenant.role)


def _check_mapping(target: connection, tenant: Tenant) -> None:
    with target.cursor() as cursor:
        cursor.execute(_MAPPED, (tenant.role,))
        found = cursor.fetchone()
    if found is not None and found != (str(tenant.id), tenant.schema_name):
        raise PermanentError(
            f'role "{tenant.role}" of the target belongs to another tenant',
            detail=f'It speaks as tenant_id {found[0]} and has the schema "{found[1]}".',
            hint="Nothing of it was dropped. A tenant keeps its id; mend the fleet file.",
        )


def _drop_schema(target: connection, tenant: Tenant) -> None:
    schema = sql.Identifier(tenant.schema_name)
    with target.cursor() as cursor:
        cursor.execute(_SEQUENCES, (tenant.schema_name,))
        sequences = [sql.Identifier(tenant.schema_name, name) for (name,) in cursor]
        try:
            if sequences:
                names = sql.SQL(", ").join(sequences)
                cursor.execute(sql.SQL("DROP SEQUENCE {}").format(names))
            # Not CASCADE: what others have put there, or made depend on it, is not ours to drop.
            cursor.execute(sql.SQL("DROP SCHEMA IF EXISTS {}").format(schema))
        except errors.DependentObjectsStillExist as error:
            raise PermanentError(
                f'schema "{tenant.schema_name}" of the target cannot be dropped',
                detail=" ".join((error.diag.message_detail or "").split()),
                hint="Drop or move what is not the tenant's, then clear this task.",
            ) from None


def _drop_role(target: connection, role: str) -> str | None:
    with target.cursor() as cursor:
        cursor.execute(_ROLE_EXISTS, (role,))
        if not cursor.rowcount:
            return None
        cursor.execute("SAVEPOINT tenantferry_role")
        try:
            cursor.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))
        # Roles belong to the cluster: another fleet's target may use it, or a person granted it
        # something. Without its mapping it sees no row here.
        except errors.DependentObjectsStillExist as error:
            cursor.execute("ROLLBACK TO SAVEPOINT tenantferry_role")
            return " ".join((error.diag.message_detail or str(error)).split())
    return None
