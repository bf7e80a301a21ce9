"""
A publication on the target: every table that holds rows of tenants.

The reverse streams share one; each witness of a move has its own, of the rows of all others.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from psycopg2 import errors, sql
from psycopg2.extensions import connection
from psycopg2.extensions import cursor as cursor_type

from tenantferry.errors import PermanentError, TransientError
from tenantferry.schema.isolation import lock_target_schema
from tenantferry.schema.reading import read_rows

# Truncate too: it deletes the rows of every tenant.
_OPERATIONS = sql.SQL("publish = 'insert, update, delete, truncate'")
# Under the identity FULL a table's stored generated columns have to be sent, or else the server
# refuses UPDATE and DELETE on it: those of the tenants' clients.
_GENERATED = sql.SQL(", publish_generated_columns = stored")
_VERSION_THAT_SENDS_GENERATED = 180000
_SENDS_ALL = """
SELECT pubinsert AND pubupdate AND pubdelete AND pubtruncate
    AND (NOT %s OR to_jsonb(p) ->> 'pubgencols' = 's')
FROM pg_catalog.pg_publication AS p WHERE pubname = %s
"""
_ALL = sql.SQL("")
# Every identity below holds tenant_id: the server demands that of what a filter reads.
_OTHERS = sql.SQL(" WHERE (tenant_id <> {id}::pg_catalog.uuid)")
# An ALTER TABLE that waits makes everybody behind it wait, too.
_LOCK_TIMEOUT = "2s"


@dataclass(frozen=True, slots=True)
class _TenantTable:
    """
    One row of ``reverse_tables.sql``.

    :ivar is_identified: whether its replica identity will do.
    :ivar index: unique index that could be it, or ``None``.
    """

    schema: str
    name: str
    is_identified: bool
    index: str | None
    index_is_primary: bool
    has_stored: bool
    has_virtual: bool
    is_published: bool

    @property
    def identifier(self) -> sql.Identifier:
        return sql.Identifier(self.schema, self.name)


def has_unpublished_tables(target: connection, name: str) -> bool:
    """
    Tell whether `ensure_reverse_publication` would add a table.

    :param target: open transaction or autocommit; only read.
    """
    return not all(table.is_published for table in _read_tables(target, name))


def ensure_reverse_publication(
    target: connection, name: str, *, exclusively: bool = False, without: UUID | None = None
) -> list[tuple[str, str]]:
    """
    Publish every table that holds rows of tenants.

    Each gets a replica identity first: without one the clients' own UPDATE and DELETE would fail
    from the moment on at which it is published.

    :param target: open transaction; the caller commits.
    :param exclusively: let nobody write to a table that is added until the end of the transaction.
    :param without: leave out the rows of this tenant.
    :return: schema and name of the tables that were added.
    :raises TransientError: if a table is in use for too long.
    :raises PermanentError: if a table cannot be published.
    """
    try:
        lock_target_schema(target)
        with target.cursor() as cursor:
            cursor.execute("SELECT set_config('lock_timeout', %s, true)", (_LOCK_TIMEOUT,))
        return _publish(target, name, exclusively=exclusively, without=without)
    except errors.LockNotAvailable as error:
        raise TransientError(
            "could not publish the tables of tenants in the target",
            detail=f"Something was in use for too long: {error.diag.message_primary or 'a lock'}"
            f" ({' '.join((error.diag.context or 'schema lock').split())}).",
            hint="End long transactions in the target, or try again later.",
        ) from None


def _publish(
    target: connection, name: str, *, exclusively: bool, without: UUID | None
) -> list[tuple[str, str]]:
    tables = _read_tables(target, name)
    missing = [table for table in tables if not table.is_published]
    sends_generated = _sends_generated(target)
    with target.cursor() as cursor:
        for table in missing if exclusively else ():
            cursor.execute(sql.SQL("LOCK TABLE {} IN SHARE MODE").format(table.identifier))
        for table in tables:
            if not table.is_identified:
                _set_identity(cursor, table, sends_generated=sends_generated)
        needs_generated = sends_generated and any(t.has_stored and t.index is None for t in tables)
        _ensure_publication(cursor, name, with_generated=needs_generated)
        if missing:
            # A table that inherits from it is published for its own sake.
            rows = _ALL if without is None else _OTHERS.format(id=sql.Literal(str(without)))
            names = [sql.SQL("ONLY {}{}").format(table.identifier, rows) for table in missing]
            cursor.execute(
                sql.SQL("ALTER PUBLICATION {} ADD TABLE {}").format(
                    sql.Identifier(name), sql.SQL(", ").join(names)
                )
            )
    return [(table.schema, table.name) for table in missing]


def read_reverse_tables(target: connection, name: str) -> list[tuple[str, str]]:
    """
    Return schema and name of the tables that are published.

    :param target: open transaction or autocommit; only read.
    """
    with target.cursor() as cursor:
        cursor.execute(
            "SELECT schemaname::text, tablename::text FROM pg_catalog.pg_publication_tables"
            " WHERE pubname = %s",
            (name,),
        )
        return [(schema, table) for schema, table in cursor.fetchall()]


def drop_reverse_publication(target: connection, name: str) -> None:
    """
    Drop the publication, if it is there; replica identities stay.

    :param target: open transaction or autocommit; the caller commits.
    """
    with target.cursor() as cursor:
        cursor.execute(sql.SQL("DROP PUBLICATION IF EXISTS {}").format(sql.Identifier(name)))


def _read_tables(target: connection, name: str) -> list[_TenantTable]:
    parameters = {"publication": name, "full_sends_generated": _sends_generated(target)}
    return [_TenantTable(*row) for row in read_rows(target, "reverse_tables", parameters)]


def _sends_generated(target: connection) -> bool:
    return target.server_version >= _VERSION_THAT_SENDS_GENERATED


def _ensure_publication(cursor: cursor_type, name: str, *, with_generated: bool) -> None:
    options = _OPERATIONS + _GENERATED if with_generated else _OPERATIONS
    cursor.execute(_SENDS_ALL, (with_generated, name))
    found = cursor.fetchone()
    if found is None:
        statement = sql.SQL("CREATE PUBLICATION {} WITH ({})")
    elif found == (True,):
        return
    else:
        statement = sql.SQL("ALTER PUBLICATION {} SET ({})")
    cursor.execute(statement.format(sql.Identifier(name), options))


def _set_identity(cursor: cursor_type, table: _TenantTable, *, sends_generated: bool) -> None:
    if table.index is None and table.has_virtual and sends_generated:
        raise PermanentError(
            f'table "{table.schema}.{table.name}" of the target cannot be published for the way'
            " back",
            detail="It has no key, and a virtual generated column. Publishing it would make the"
            " clients' own UPDATE and DELETE fail.",
            hint="Give it a primary key, or a unique index over columns that are NOT NULL,"
            " tenant_id among them.",
        )
    if table.index is None:
        identity: sql.Composable = sql.SQL("FULL")
    elif table.index_is_primary:
        identity = sql.SQL("DEFAULT")
    else:
        identity = sql.SQL("USING INDEX {}").format(sql.Identifier(table.index))
    cursor.execute(sql.SQL("ALTER TABLE {} REPLICA IDENTITY {}").format(table.identifier, identity))
