"""The requests of an application over a schema that somebody brought: it updates rows by key."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from importlib import resources

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import connection
from psycopg2.extensions import cursor as cursor_type

from tenantferry.local.journal import Kind, Write
from tenantferry.local.workload import Memory, Request, UnexpectedAnswerError

_SAMPLED_KEYS = 500
# A table of more rows is sampled by blocks, not read.
_LARGE_TABLE_ROWS = 20_000
# PostgreSQL adds the length of the header, VARHDRSZ, to the limit that it stores.
_TYPMOD_HEADER = 4
_COMMA = sql.SQL(", ")
_AND = sql.SQL(" AND ")
_SAMPLE = sql.SQL("SELECT {key} FROM {table} {method} LIMIT {limit}")
_UPDATE = sql.SQL(
    "UPDATE {table} SET {column} = {value} WHERE {condition} RETURNING {column}::text"
)
_SELECT = sql.SQL("SELECT * FROM {table} WHERE {condition}")


@dataclass(frozen=True, slots=True)
class Column:
    """
    A column whose values may be made up.

    :ivar type_name: ``pg_type.typname``.
    :ivar modifier: ``pg_attribute.atttypmod``.
    """

    name: str
    type_name: str
    modifier: int


@dataclass(frozen=True, slots=True)
class ForeignTable:
    """
    A table of a schema that we do not know.

    :ivar columns: those that may be written; may be none.
    :ivar keys: some of its rows, as text per key column.
    """

    schema: str
    name: str
    key_columns: tuple[str, ...]
    columns: tuple[Column, ...]
    keys: tuple[tuple[str, ...], ...]


class GenericWorkload:
    """
    The requests of one worker: reads by key, and updates of one column by key.

    :param tables: with the keys that are this worker's alone.
    """

    def __init__(self, tables: Sequence[ForeignTable], *, chance: random.Random) -> None:
        self._readable = [table for table in tables if table.keys]
        self._writable = [table for table in self._readable if table.columns]
        self._chance = chance
        self._memory = Memory()

    def next_request(self) -> Request:
        """Choose what to do next: seven of ten requests write, where they can."""
        draw = self._chance.random()
        if self._writable and draw < 0.7:
            return Request("update_row", self._update_row)
        if self._memory and draw < 0.8:
            return Request("read_back", self._read_back)
        return Request("read_row", self._read_row)

    def learn(self, writes: Sequence[Write]) -> None:
        """Remember what was committed."""
        self._memory.learn(writes)

    def _read_back(self, cursor: cursor_type) -> list[Write]:
        return self._memory.read_back(cursor, self._chance)

    def _read_row(self, cursor: cursor_type) -> list[Write]:
        if not self._readable:
            cursor.execute("SELECT 1")
            return []
        table = self._chance.choice(self._readable)
        cursor.execute(_select_query(table, self._chance.choice(table.keys)))
        if cursor.fetchone() is None:
            raise UnexpectedAnswerError(f'a row of table "{table.schema}.{table.name}" is gone')
        return []

    def _update_row(self, cursor: cursor_type) -> list[Write]:
        table = self._chance.choice(self._writable)
        column, key = self._chance.choice(table.columns), self._chance.choice(table.keys)
        cursor.execute(update_query(table, column, key, make_value(column, self._chance)))
        row = cursor.fetchone()
        if row is None:
            raise UnexpectedAnswerError(f'a row of table "{table.schema}.{table.name}" is gone')
        key_values = dict(zip(table.key_columns, key, strict=True))
        return [
            Write(table.schema, table.name, Kind.UPDATE, key_values, values={column.name: row[0]})
        ]


def read_foreign_tables(opened: connection, *, chance: random.Random) -> list[ForeignTable]:
    """
    Read the catalog, sample keys, and keep the columns that take a made-up value.

    :param opened: idle; nothing that is tried stays.
    """
    query = resources.files("tenantferry.local").joinpath("updatable_columns.sql")
    with opened, opened.cursor() as cursor:
        cursor.execute(query.read_text("utf-8"))
        found = cursor.fetchall()
    tables = []
    for schema, name, key_columns, columns, estimated_rows in found:
        listed = tuple(Column(*column) for column in columns or ())
        table = ForeignTable(schema, name, tuple(key_columns), listed, ())
        table = replace(table, keys=_sample_keys(opened, table, estimated_rows))
        kept = tuple(c for c in listed if table.keys and _takes_values(opened, table, c, chance))
        tables.append(replace(table, columns=kept))
    return tables


def share_tables(
    tables: Sequence[ForeignTable], *, worker: int, workers: int
) -> list[ForeignTable]:
    """Return the tables with the keys that one of several workers may write."""
    return [replace(table, keys=table.keys[worker::workers]) for table in tables]


def make_value(column: Column, chance: random.Random) -> str:
    """
    Make up a value, as the text of its type.

    >>> make_value(Column("code", "varchar", 4 + 3), random.Random(1))
    'v-9'
    """
    return _MAKERS[column.type_name](column.modifier, chance)


def update_query(
    table: ForeignTable, column: Column, key: Sequence[str], value: str
) -> sql.Composed:
    """Build the statement that writes one column of one row."""
    return _UPDATE.format(
        table=sql.Identifier(table.schema, table.name),
        column=sql.Identifier(column.name),
        value=sql.Literal(value),
        condition=_condition(table, key),
    )


def _select_query(table: ForeignTable, key: Sequence[str]) -> sql.Composed:
    return _SELECT.format(
        table=sql.Identifier(table.schema, table.name), condition=_condition(table, key)
    )


def _condition(table: ForeignTable, key: Sequence[str]) -> sql.Composed:
    return _AND.join(
        sql.SQL("{} = {}").format(sql.Identifier(name), sql.Literal(value))
        for name, value in zip(table.key_columns, key, strict=True)
    )


def _sample_keys(
    opened: connection, table: ForeignTable, estimated_rows: float
) -> tuple[tuple[str, ...], ...]:
    method: sql.Composable = sql.SQL("")
    if estimated_rows > _LARGE_TABLE_ROWS:
        # Three times what is wanted: rows lie unevenly in blocks.
        percent = min(100.0, 300 * _SAMPLED_KEYS / estimated_rows)
        method = sql.SQL("TABLESAMPLE SYSTEM ({})").format(sql.Literal(percent))
    query = _SAMPLE.format(
        key=_COMMA.join(
            sql.SQL("{}::text").format(sql.Identifier(name)) for name in table.key_columns
        ),
        table=sql.Identifier(table.schema, table.name),
        method=method,
        limit=sql.Literal(_SAMPLED_KEYS),
    )
    with opened, opened.cursor() as cursor:
        cursor.execute(query)
        return tuple(map(tuple, cursor.fetchall()))


def _takes_values(
    opened: connection, table: ForeignTable, column: Column, chance: random.Random
) -> bool:
    """Tell whether a made-up value passes what else watches the table, e.g. a trigger."""
    try:
        with opened.cursor() as cursor:
            cursor.execute(update_query(table, column, table.keys[0], make_value(column, chance)))
            return cursor.rowcount == 1
    except psycopg2.Error:  # whatever the reason, this column is not for us
        return False
    finally:
        opened.rollback()


def _make_text(modifier: int, chance: random.Random) -> str:
    made = f"v-{chance.getrandbits(48):x}"
    return made if modifier < 0 else made[: modifier - _TYPMOD_HEADER]


def _make_integer(_modifier: int, chance: random.Random) -> str:
    return str(chance.randint(0, 30_000))


def _make_numeric(modifier: int, chance: random.Random) -> str:
    if modifier < 0:
        return str(chance.randint(0, 1_000_000) / 100)
    packed = modifier - _TYPMOD_HEADER
    # Eleven bits of scale, with sign, since PostgreSQL 15.
    precision, scale = packed >> 16 & 0xFFFF, ((packed & 0x7FF) ^ 1024) - 1024
    if scale < 0 or precision <= scale:
        return "0"
    return str(chance.randint(0, 10 ** min(precision - scale, 6) - 1))


def _make_timestamp(_modifier: int, chance: random.Random) -> str:
    began = datetime(2020, 1, 1, tzinfo=UTC)
    made = began + timedelta(seconds=chance.randrange(150_000_000))
    return made.strftime("%Y-%m-%d %H:%M:%S+00")


_MAKERS: dict[str, Callable[[int, random.Random], str]] = {
    "text": _make_text,
    "varchar": _make_text,
    "int4": _make_integer,
    "int8": _make_integer,
    "numeric": _make_numeric,
    "bool": lambda _modifier, chance: str(chance.choice((True, False))).lower(),
    "timestamp": _make_timestamp,
    "timestamptz": _make_timestamp,
    "date": lambda _modifier, chance: str(
        date(2020, 1, 1) + timedelta(days=chance.randrange(1_500))
    ),
    "jsonb": lambda _modifier, chance: f'{{"written": {chance.randrange(10_000)}}}',
}
