"""Step nine, and the last of a rollback: see what the application sees, through the router."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import cursor as cursor_type

from tenantferry.connections import (
    ConnectionParams,
    is_login_refused,
    open_client_connection,
    open_connection,
)
from tenantferry.control.pauses import record_probe
from tenantferry.control.phases import AT_TARGET
from tenantferry.control.registry import check_owner, require_registration
from tenantferry.errors import PermanentError, TenantferryError, TransientError
from tenantferry.fleet import Tenant
from tenantferry.moves.move import Move

# The application's own search_path and settings apply here, so every name is qualified.
_WHO = (
    "SELECT current_user::text, app.current_tenant()::text, pg_catalog.current_database()::text,"
    " pg_catalog.current_setting('transaction_read_only')"
)
_TABLE = """
SELECT n.nspname, c.relname
FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid AND a.attname = 'tenant_id'
WHERE c.relkind IN ('r', 'p') AND c.relrowsecurity AND n.nspname <> 'app'
    AND pg_catalog.has_table_privilege(c.oid, 'SELECT, UPDATE')
ORDER BY n.nspname, c.relname
LIMIT 1
"""
_WHERE = (
    "SELECT current_user::text, pg_catalog.current_database()::text,"
    " pg_catalog.current_setting('transaction_read_only')"
)
_COLUMN = """
SELECT n.nspname, c.relname, a.attname
FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE c.relkind IN ('r', 'p') AND c.relpersistence = 'p'
    AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'tenantferry')
    AND a.attgenerated = '' AND a.attidentity <> 'a'
    AND pg_catalog.has_table_privilege(c.oid, 'SELECT, UPDATE')
ORDER BY n.nspname, c.relname, a.attnum
LIMIT 1
"""


@dataclass(frozen=True, slots=True)
class ProbeSummary:
    """
    What a session of the application is.

    :ivar tenant_id: what it is in the target; empty at its source, where there is no other.
    :ivar table: where reading and writing was tried; nothing of it stays.
    """

    role: str
    tenant_id: str
    database: str
    table: str
    milliseconds: float


def probe(move: Move) -> ProbeSummary:
    """
    Look at the tenant as its application does, and record that it was seen.

    :raises PermanentError: if the application does not reach the side that the tenant is on, or
        another run has the tenant.
    """
    purpose = f"probe {move.tenant.key}"
    with closing(open_connection(move.target, purpose=purpose)) as target:
        with target:
            registration = require_registration(target, move.tenant.key)
        check_owner(registration, move.run_id)
        if registration.phase in AT_TARGET:
            seen = look(move.probe, move.tenant, database=move.target_address[2])
        else:
            seen = look_at_source(move.probe, move.tenant, database=move.source.database)
        with target:
            record_probe(target, move.tenant.key)
    return seen


def look(params: ConnectionParams, tenant: Tenant, *, database: str) -> ProbeSummary:
    """
    Log in as the application and check that it is this tenant in the target.

    :raises PermanentError: if it is not, or cannot read or write.
    :raises TransientError: if a server was lost meanwhile.
    """
    started = time.monotonic()
    with closing(open_client_connection(params, purpose=f"probe {tenant.key}")) as client:
        try:
            with client.cursor() as cursor:
                cursor.execute(_WHO)
                role, tenant_id, found, read_only = cursor.fetchone() or ("", "", "", "")
                table = _try_table(cursor)
            client.rollback()
        except psycopg2.Error as error:
            raise _failure(error, params, tenant, side="the target") from None
    if (role, tenant_id, found, read_only) != (tenant.role, str(tenant.id), database, "off"):
        raise PermanentError(
            f'the application of tenant "{tenant.key}" does not reach the target as this tenant',
            detail=f'It is role "{role}" with tenant {tenant_id} in database "{found}",'
            f" transaction_read_only = {read_only}.",
            hint="See the alias of the tenant in PgBouncer, and app.tenant_roles in the target.",
        )
    return ProbeSummary(role, tenant_id, found, table, (time.monotonic() - started) * 1000)


def look_at_source(params: ConnectionParams, tenant: Tenant, *, database: str) -> ProbeSummary:
    """
    Log in as the application and check that it works with its own database.

    :raises PermanentError: if it does not, or cannot read or write.
    :raises TransientError: if a server was lost meanwhile.
    """
    started = time.monotonic()
    with closing(open_client_connection(params, purpose=f"probe {tenant.key}")) as client:
        try:
            with client.cursor() as cursor:
                cursor.execute(_WHERE)
                role, found, read_only = cursor.fetchone() or ("", "", "")
                cursor.execute(_COLUMN)
                row = cursor.fetchone()
                if row is not None:
                    _try_to_write(cursor, sql.Identifier(*row[:2]), sql.Identifier(row[2]))
            client.rollback()
        except psycopg2.Error as error:
            raise _failure(error, params, tenant, side="its source") from None
    if (found, read_only) != (database, "off"):
        raise PermanentError(
            f'the application of tenant "{tenant.key}" does not reach its source',
            detail=f'It is role "{role}" in database "{found}",'
            f" transaction_read_only = {read_only}.",
            hint="See the alias of the tenant in PgBouncer.",
        )
    table = ".".join(row[:2]) if row else ""
    return ProbeSummary(role, "", found, table, (time.monotonic() - started) * 1000)


def _failure(
    error: psycopg2.Error, params: ConnectionParams, tenant: Tenant, *, side: str
) -> TenantferryError:
    detail = " ".join(str(error).split())
    hint = f'It logs in as "{params.describe()}".'
    application = f'the application of tenant "{tenant.key}"'
    is_lost = isinstance(error, psycopg2.OperationalError | psycopg2.InterfaceError)
    if is_lost and not is_login_refused(detail):
        return TransientError(f"{application} could not work with {side}", detail=detail, hint=hint)
    return PermanentError(f"{application} cannot work with {side}", detail=detail, hint=hint)


def _try_table(cursor: cursor_type) -> str:
    """Read and write one table, so that neither leaves a trace."""
    cursor.execute(_TABLE)
    row = cursor.fetchone()
    if row is None:
        return ""
    _try_to_write(cursor, sql.Identifier(*row), sql.Identifier("tenant_id"))
    return ".".join(row)


def _try_to_write(cursor: cursor_type, table: sql.Identifier, column: sql.Identifier) -> None:
    cursor.execute(sql.SQL("SELECT FROM {} LIMIT 1").format(table))
    cursor.execute(
        sql.SQL("UPDATE {table} SET {column} = {column} WHERE false").format(
            table=table, column=column
        )
    )
