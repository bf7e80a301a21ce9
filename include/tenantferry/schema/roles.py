"""The login role of a tenant in the target."""

from __future__ import annotations

import re
from collections.abc import Mapping

from psycopg2 import sql
from psycopg2.extensions import connection, encrypt_password

from tenantferry.errors import PermanentError
from tenantferry.fleet import Tenant
from tenantferry.schema.isolation import APP_GROUP, SHARED_GROUP, ensure_isolation, ensure_role
from tenantferry.schema.reading import read_rows

# Attributes that would let a role past row security, or out of its group.
_ATTRIBUTES = "LOGIN NOSUPERUSER INHERIT NOCREATEROLE NOCREATEDB NOREPLICATION NOBYPASSRLS"
_SAFE = """
SELECT rolinherit AND NOT (
    rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls)
FROM pg_catalog.pg_roles WHERE rolname = %s
"""
_MAP = """
INSERT INTO app.tenant_roles (role_name, tenant_id, schema_name) VALUES (%s, %s, %s)
ON CONFLICT (role_name) DO NOTHING
"""
_MAPPED = "SELECT tenant_id::text, schema_name FROM app.tenant_roles WHERE role_name = %s"
_VERSION_WITH_GRANT_OPTIONS = 160000

_PATH_PART = re.compile(r'"((?:[^"]|"")+)"|([^",]+)')

# Settings that change what a query returns or how long it may take, that any role may set for
# itself, and whose value means the same on every server.
CARRIED_SETTINGS = frozenset(
    {
        "bytea_output",
        "datestyle",
        "default_text_search_config",
        "default_transaction_deferrable",
        "default_transaction_isolation",
        "extra_float_digits",
        "idle_in_transaction_session_timeout",
        "intervalstyle",
        "lock_timeout",
        "statement_timeout",
        "timezone",
    }
)


def ensure_tenant_role(
    target: connection, tenant: Tenant, *, settings: Mapping[str, str] | None = None
) -> None:
    """
    Create the tenant's role and schema, and map the role to the tenant.

    A new role may log in but has no password until `set_role_password` gives it one. Whether one
    that is there may log in is the cutover's to say.

    :param target: open transaction; the caller commits.
    :param settings: what `read_role_settings` found on the source: the schemas of its
        ``search_path`` follow the tenant's own, and `CARRIED_SETTINGS` are set for the role.
    :raises PermanentError: if the role exists with rights it must not have, or belongs to
        another tenant.
    """
    ensure_isolation(target)
    _ensure_login(target, tenant.role)
    _ensure_memberships(target, tenant.role)
    _ensure_schema(target, tenant)
    _ensure_mapping(target, tenant)
    settings = settings or {}
    path = [tenant.schema_name, *split_path(settings.get("search_path", "public"))]
    quoted = sql.SQL(", ").join(map(sql.Identifier, path))
    _ensure_role_setting(target, tenant.role, "search_path", quoted)
    for name, value in settings.items():
        if name.lower() in CARRIED_SETTINGS:
            _ensure_role_setting(target, tenant.role, name, sql.Literal(value))


def ensure_shared_role(target: connection, role: str) -> None:
    """
    Let an existing role name its tenant with ``SET LOCAL app.tenant_id``.

    :param target: open transaction; the caller commits.
    """
    ensure_isolation(target)
    with target.cursor() as cursor:
        cursor.execute(
            "INSERT INTO app.shared_roles (role_name) VALUES (%s) ON CONFLICT DO NOTHING", (role,)
        )
        for group in (APP_GROUP, SHARED_GROUP):
            cursor.execute(
                sql.SQL("GRANT {} TO {}").format(sql.Identifier(group), sql.Identifier(role))
            )


def set_role_password(target: connection, role: str, password: str) -> None:
    """
    Set a password. Only its SCRAM verifier is made known to the server and to its logs.

    :param target: open transaction or autocommit; the caller commits.
    """
    verifier = encrypt_password(password, role, target, "scram-sha-256")
    with target.cursor() as cursor:
        cursor.execute(
            sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(role), sql.Literal(verifier))
        )


def set_role_login(target: connection, role: str, *, allowed: bool) -> None:
    """
    Let a role log in, or refuse it. Sessions that it has already stay.

    :param target: open transaction; the caller commits.
    """
    with target.cursor() as cursor:
        cursor.execute(
            sql.SQL("ALTER ROLE {} {}").format(
                sql.Identifier(role), sql.SQL("LOGIN" if allowed else "NOLOGIN")
            )
        )


def read_role_settings(source: connection, tenant: Tenant) -> dict[str, str]:
    """
    Return what ``ALTER ROLE SET`` and ``ALTER DATABASE SET`` give the application's sessions.

    The stronger overrides the weaker, as in Postgres; of several roles the last one wins.
    """
    rows = read_rows(source, "role_settings", {"roles": list(tenant.app_roles)})
    return dict(setting.split("=", 1) for (setting,) in rows)


def split_path(text: str) -> tuple[str, ...]:
    """
    Take apart a ``search_path``, without the schema named like the role.

    >>> split_path('"$user", public, "Billing Data"')
    ('public', 'Billing Data')
    """
    names = (
        match[1].replace('""', '"') if match[1] else match[2].strip()
        for match in _PATH_PART.finditer(text)
    )
    return tuple(name for name in names if name and name != "$user")


def _ensure_login(target: connection, role: str) -> None:
    created = ensure_role(target, role)
    with target.cursor() as cursor:
        if created:
            cursor.execute(sql.SQL("ALTER ROLE {} LOGIN").format(sql.Identifier(role)))
        cursor.execute(_SAFE, (role,))
        row = cursor.fetchone()
    if row is None or not row[0]:
        raise PermanentError(
            f'role "{role}" of the target cannot be the role of a tenant',
            detail="It does not inherit, or it has rights beyond those of an application.",
            hint=f'ALTER ROLE "{role}" {_ATTRIBUTES}, or drop it.',
        )


def _ensure_memberships(target: connection, role: str) -> None:
    """Put the role into its group, and let the migration role speak as it for probes."""
    has_options = target.server_version >= _VERSION_WITH_GRANT_OPTIONS
    # The migration role speaks as the tenant only where it says SET ROLE.
    with_set = sql.SQL(" WITH SET TRUE, INHERIT FALSE" if has_options else "")
    with target.cursor() as cursor:
        cursor.execute(
            "SELECT pg_has_role(%s, %s, 'USAGE'), pg_has_role(%s, %s)",
            (role, APP_GROUP, role, "SET" if has_options else "MEMBER"),
        )
        in_group, can_set = cursor.fetchone() or (False, False)
        if not in_group:
            cursor.execute(
                sql.SQL("GRANT {} TO {}").format(sql.Identifier(APP_GROUP), sql.Identifier(role))
            )
        if not can_set:
            cursor.execute(
                sql.SQL("GRANT {} TO CURRENT_USER{}").format(sql.Identifier(role), with_set)
            )


def _ensure_schema(target: connection, tenant: Tenant) -> None:
    with target.cursor() as cursor:
        cursor.execute(
            sql.SQL("CREATE SCHEMA IF NOT EXISTS {schema}").format(
                schema=sql.Identifier(tenant.schema_name)
            )
        )
        cursor.execute(
            sql.SQL("GRANT USAGE ON SCHEMA {schema} TO {role}, {shared}").format(
                schema=sql.Identifier(tenant.schema_name),
                role=sql.Identifier(tenant.role),
                shared=sql.Identifier(SHARED_GROUP),
            )
        )


def _ensure_mapping(target: connection, tenant: Tenant) -> None:
    with target.cursor() as cursor:
        cursor.execute(_MAP, (tenant.role, str(tenant.id), tenant.schema_name))
        cursor.execute(_MAPPED, (tenant.role,))
        if cursor.fetchone() != (str(tenant.id), tenant.schema_name):
            raise PermanentError(
                f'role "{tenant.role}" belongs to another tenant in the target',
                hint="A tenant keeps its id; use another key.",
            )


def _ensure_role_setting(target: connection, role: str, name: str, value: sql.Composable) -> None:
    """Set a setting of a role in this database: other databases may have other tenants."""
    with target.cursor() as cursor:
        cursor.execute("SELECT current_database()")
        (database,) = cursor.fetchone() or ("",)
        cursor.execute(
            sql.SQL("ALTER ROLE {role} IN DATABASE {database} SET {name} TO {value}").format(
                role=sql.Identifier(role),
                database=sql.Identifier(database),
                name=sql.Identifier(name),
                value=value,
            )
        )
