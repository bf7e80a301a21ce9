"""Tables of the target in which a tenant has rows that its source has no table for."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from psycopg2 import sql
from psycopg2.extensions import connection

from tenantferry.errors import PermanentError
from tenantferry.fleet import Tenant
from tenantferry.schema.model import Table
from tenantferry.schema.reading import read_schemas
from tenantferry.schema.tables import read_ordinary_tables
from tenantferry.schema.widening import TENANT_COLUMN

_HAS_ROWS = sql.SQL("SELECT EXISTS (SELECT FROM {table} WHERE tenant_id = {tenant_id})")


def find_left_behind(
    target: connection, tenant: Tenant, known: Collection[tuple[str, str]], theirs: Iterable[Table]
) -> list[str]:
    """
    Return these tables, as ``schema.table``.

    :param target: open transaction or autocommit; only read.
    :param known: schema and name of the source's tables.
    :param theirs: the target's tables.
    """
    found: list[str] = []
    for table in theirs:
        is_tenants = any(column.name == TENANT_COLUMN.name for column in table.columns)
        if table.qualified in known or not is_tenants:
            continue
        with target.cursor() as cursor:
            cursor.execute(
                _HAS_ROWS.format(
                    table=sql.Identifier(*table.qualified), tenant_id=sql.Literal(str(tenant.id))
                )
            )
            if cursor.fetchone() == (True,):
                found.append(table.label)
    return found


def check_nothing_left_behind(target: connection, tenant: Tenant, tables: Iterable[Table]) -> None:
    """
    Check that the tenant has no rows in tables that its source has dropped or renamed.

    :param target: open transaction; only read.
    :param tables: those of the move, as the source describes them now.
    :raises PermanentError: if it has.
    """
    theirs = read_ordinary_tables(target, list(read_schemas(target, None)))
    left = find_left_behind(target, tenant, {table.qualified for table in tables}, theirs)
    if left:
        raise PermanentError(
            f'tenant "{tenant.key}" has rows in tables that its source does not have any more',
            detail=f"Tables of the target: {', '.join(left)}.",
            hint=left_behind_hint(tenant, left),
        )


def left_behind_hint(tenant: Tenant, tables: Iterable[str]) -> str:
    """Say what to do about rows of a table that the source has dropped."""
    names = ", ".join(tables)
    return (
        f"In the target, delete the rows with tenant_id = '{tenant.id}' from {names}, as the source"
        " did; then clear the failed task."
    )
