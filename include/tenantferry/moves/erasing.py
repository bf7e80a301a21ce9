"""Take a tenant's rows out of the target, while all others go on working there."""

from __future__ import annotations

from contextlib import closing
from importlib import resources

from psycopg2 import errors, sql
from psycopg2.extensions import connection

from tenantferry.backfill.clearing import delete_from
from tenantferry.backfill.copying import LOAD_SETTINGS
from tenantferry.connections import ConnectionParams, open_connection
from tenantferry.errors import TransientError
from tenantferry.fleet import Tenant

_TABLES = resources.files("tenantferry.moves").joinpath("tenant_tables.sql").read_text("utf-8")
_IS_LEFT = sql.SQL(
    "SELECT EXISTS (SELECT FROM ONLY {table} WHERE tenant_id = {id}::pg_catalog.uuid)"
)

# A table that somebody rebuilds: clients that queue behind us would notice a longer wait.
_LOCK_TIMEOUT = "2s"


def erase_rows(params: ConnectionParams, tenant: Tenant) -> tuple[int, int]:
    """
    Delete the tenant's rows from every table of the target, in short transactions. Commits.

    Foreign keys and triggers do not fire: all of the tenant's rows go, so none is left that refers
    to another. Space is given back by autovacuum.

    :return: deleted rows, and the tables that had some.
    :raises TransientError: if a table is locked for too long, or rows still come in; what is
        deleted stays so.
    :raises PermanentError: if another tenant's rows would be deleted with them.
    """
    settings = {**LOAD_SETTINGS, "lock_timeout": _LOCK_TIMEOUT}
    rows = tables = 0
    with closing(
        open_connection(params, purpose=f"abort rows {tenant.key}", settings=settings)
    ) as target:
        for leaf in read_tenant_tables(target):
            try:
                deleted = delete_from(target, tenant, leaf)
                _check_erased(target, tenant, leaf)
            except errors.LockNotAvailable:
                raise TransientError(
                    f'could not delete rows of table "{".".join(leaf)}" of the target',
                    detail=f"Somebody has locked it for more than {_LOCK_TIMEOUT}; {rows} rows of"
                    " other tables are deleted.",
                    hint="The retry goes on where this ended.",
                ) from None
            except errors.UndefinedTable:  # a migration of the application has just dropped it
                target.rollback()
                continue
            rows += deleted
            tables += bool(deleted)
    return rows, tables


def read_tenant_tables(target: connection) -> list[tuple[str, str]]:
    """Return schema and name of the tables of the target that may hold rows of tenants."""
    with target, target.cursor() as cursor:
        cursor.execute(_TABLES)
        return [(schema, table) for schema, table in cursor]


def _check_erased(target: connection, tenant: Tenant, leaf: tuple[str, str]) -> None:
    query = _IS_LEFT.format(table=sql.Identifier(*leaf), id=sql.Literal(str(tenant.id)))
    with target, target.cursor() as cursor:
        # The statistics still speak of the rows that are gone: by them the whole table is read.
        cursor.execute("SET LOCAL enable_seqscan = off")
        cursor.execute(query)
        if cursor.fetchone() == (True,):
            raise TransientError(
                f'table "{".".join(leaf)}" of the target still gets rows of tenant "{tenant.key}"',
                detail="Somebody writes them while they are deleted.",
                hint="Find the session in pg_stat_activity of the target: the tenant is not live,"
                " nobody should write as it.",
            )
