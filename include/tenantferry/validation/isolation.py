"""Probe, as the tenant's role, that row security shows exactly the tenant's rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from uuid import UUID

import psycopg2
from psycopg2 import errors, sql
from psycopg2.extensions import connection

from tenantferry.control.validations import Difference, MismatchKind
from tenantferry.errors import TransientError
from tenantferry.fleet import Tenant
from tenantferry.schema.isolation import APP_GROUP
from tenantferry.schema.model import Table
from tenantferry.schema.own_rows import own_rows

# Belongs to no tenant: a version 8 uuid, which nobody's generator makes by chance.
NO_TENANT = UUID("74656e61-6e74-8665-8272-790000000000")

_VISIBLE = sql.SQL(
    "SELECT count(*), count(*) FILTER (WHERE tenant_id IS DISTINCT FROM {tenant_id}) FROM {table}"
)
_ANY_VISIBLE = sql.SQL("SELECT EXISTS (SELECT FROM {table})")
# By cursor: a WHERE clause would read the row, and then the policies for SELECT guard it, too,
# which hides a policy for UPDATE that guards nothing.
_OWN_ROW = sql.SQL(
    "DECLARE tenantferry_probe CURSOR FOR SELECT FROM {table} WHERE tenant_id = {tenant_id}"
)
_GIVE_AWAY = sql.SQL(
    "UPDATE {table} SET tenant_id = {no_tenant} WHERE CURRENT OF tenantferry_probe"
)


def probe_isolation(
    target: connection, tenant: Tenant, expected_rows: Mapping[Table, int], *, is_live: bool = False
) -> Iterator[Difference]:
    """
    Yield every way in which the tenant's role sees or may do too much, or too little.

    :param target: open transaction that may write; every probe is rolled back.
    :param expected_rows: of the tenant, in the same snapshot.
    :param is_live: whether clients write to these rows: then no probe tries to, for it would
        collide with them.
    :raises TransientError: if a probe collided with a write.
    """
    for table, rows in expected_rows.items():
        for detail in _probe(target, tenant, table, rows, is_live=is_live):
            yield Difference(table.schema, table.name, MismatchKind.ISOLATION, None, detail)


def _probe(
    target: connection, tenant: Tenant, table: Table, rows: int, *, is_live: bool
) -> Iterator[str]:
    names: dict[str, sql.Composable] = {
        "table": own_rows(table),
        "tenant_id": _uuid(tenant.id),
        "no_tenant": _uuid(NO_TENANT),
    }
    with _speaking_as(target, tenant.role):
        try:
            visible, foreign = _fetch(target, _VISIBLE.format(**names))
        except errors.InsufficientPrivilege as error:
            yield f'role "{tenant.role}" cannot read it: {error.diag.message_primary}.'
            return
    if foreign:
        yield f'role "{tenant.role}" sees {foreign} rows of other tenants.'
    if visible - foreign != rows:
        yield f'role "{tenant.role}" sees {visible - foreign} of its {rows} rows.'
    # The group has the privileges of every tenant's role and is no tenant.
    with _speaking_as(target, APP_GROUP):
        if _fetch(target, _ANY_VISIBLE.format(**names)) == (True,):
            yield f'role "{APP_GROUP}", which is no tenant, sees rows.'
    if rows and not is_live and _may_give_away(target, tenant, names):
        yield f'role "{tenant.role}" may give a row to another tenant.'


def _may_give_away(target: connection, tenant: Tenant, names: Mapping[str, sql.Composable]) -> bool:
    with _speaking_as(target, tenant.role), target.cursor() as cursor:
        cursor.execute(_OWN_ROW.format(**names))
        cursor.execute("FETCH tenantferry_probe")
        if cursor.rowcount != 1:
            return False
        try:
            cursor.execute(_GIVE_AWAY.format(**names))
        except errors.InsufficientPrivilege:  # row security, or no privilege to update at all
            return False
        except (errors.SerializationFailure, errors.LockNotAvailable) as error:
            raise TransientError(
                "could not probe whether a row can be given to another tenant",
                detail=error.diag.message_primary or "",
                hint="The stream wrote to the same row; the retry takes another look.",
            ) from None
        return bool(cursor.rowcount > 0)


@contextmanager
def _speaking_as(target: connection, role: str) -> Iterator[None]:
    """Speak as another role, under row security; everything is rolled back."""
    with target.cursor() as cursor:
        cursor.execute("SAVEPOINT probe")
        try:
            cursor.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(role)))
            cursor.execute("SET LOCAL row_security = on")
            yield
        finally:
            if not target.closed:
                # Also gives the role and the setting back.
                cursor.execute("ROLLBACK TO SAVEPOINT probe")


def _fetch(target: connection, query: sql.Composed) -> tuple[int, ...]:
    with target.cursor() as cursor:
        cursor.execute(query)
        row = cursor.fetchone()
    if row is None:
        raise psycopg2.InterfaceError("query returned no row")
    return tuple(row)


def _uuid(value: UUID) -> sql.Composed:
    return sql.SQL("{}::pg_catalog.uuid").format(sql.Literal(str(value)))
