"""Read rows back in the form in which a journal holds them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from psycopg2 import sql
from psycopg2.extensions import cursor as cursor_type

from tenantferry.local.journal import Write

_SELECT = sql.SQL("SELECT {columns} FROM {table} WHERE ({key}) IN ({wanted})")
_TEXT = sql.SQL("{}::text")
_DIGEST = sql.SQL("pg_catalog.encode(pg_catalog.sha256({}), 'hex')")
_COMMA = sql.SQL(", ")


@dataclass(frozen=True, slots=True)
class Shape:
    """
    The columns to read of one table.

    :ivar values: read as text.
    :ivar digests: read as the SHA-256 in hex of their bytes.
    """

    schema: str
    table: str
    key: tuple[str, ...]
    values: tuple[str, ...]
    digests: tuple[str, ...] = ()


def shape_of(write: Write) -> Shape:
    """Return the columns that *write* speaks of."""
    return Shape(
        write.schema, write.table, tuple(write.key), tuple(write.values), tuple(write.digests)
    )


def read_rows_query(shape: Shape, keys: Iterable[Sequence[str]]) -> sql.Composed:
    """Build the statement that reads the rows with *keys*; at least one."""
    # A literal of no type takes the type of the key column, so that its index serves.
    wanted = [sql.SQL("({})").format(_COMMA.join(map(sql.Literal, key))) for key in keys]
    columns = [_TEXT.format(sql.Identifier(name)) for name in (*shape.key, *shape.values)]
    columns += [_DIGEST.format(sql.Identifier(name)) for name in shape.digests]
    return _SELECT.format(
        columns=_COMMA.join(columns),
        table=sql.Identifier(shape.schema, shape.table),
        key=_COMMA.join(map(sql.Identifier, shape.key)),
        wanted=_COMMA.join(wanted),
    )


def read_rows(
    cursor: cursor_type, shape: Shape, keys: Sequence[Sequence[str]]
) -> dict[tuple[str, ...], Mapping[str, str | None]]:
    """Return key to column to value or digest, for the rows that exist."""
    if not keys:
        return {}
    cursor.execute(read_rows_query(shape, keys))
    names = (*shape.values, *shape.digests)
    width = len(shape.key)
    return {
        tuple(row[:width]): dict(zip(names, row[width:], strict=True)) for row in cursor.fetchall()
    }
