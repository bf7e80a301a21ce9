"""Cut tables into chunks of equal row counts, from a sample of their keys."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from psycopg2 import sql
from psycopg2.extensions import connection

from tenantferry.backfill.chunk import Chunk, KeyColumn, key_expressions
from tenantferry.errors import PermanentError
from tenantferry.schema.model import Table
from tenantferry.schema.own_rows import own_rows

# A table of up to so many blocks (200 MB) is cut exactly; of a larger one so many are sampled.
# At 80 rows in a block that is two million keys: a chunk of 50,000 rows out of a billion still
# stands on a hundred of them, which keeps its size within some ten percent.
SAMPLE_BLOCKS = 25_000

# COLLATE "C" cannot use an index of another collation, so that each chunk of such a table costs
# a scan of the whole table. A few chunks keep the workers busy; many would only add scans.
MAX_CHUNKS_WITHOUT_INDEX = 16

_KEY_COLUMNS = """
SELECT attribute.attname, pg_catalog.format_type(attribute.atttypid, attribute.atttypmod),
       attribute.attcollation <> 0 OR type.typtype NOT IN ('b', 'e')
           OR type.typcategory = 'A' OR type.typname IN ('jsonb', 'money'),
       attribute.attcollation = 'pg_catalog."C"'::pg_catalog.regcollation
  FROM pg_catalog.pg_attribute AS attribute
  JOIN pg_catalog.pg_type AS type ON type.oid = attribute.atttypid
 WHERE attribute.attrelid = %s::pg_catalog.regclass AND attribute.attname = ANY (%s)
"""

# A partitioned table has its blocks in its leaves.
_BLOCKS = """
SELECT (
    pg_catalog.pg_relation_size(%(table)s::pg_catalog.regclass) + coalesce((
        SELECT sum(pg_catalog.pg_relation_size(leaf.relid))
        FROM pg_catalog.pg_partition_tree(%(table)s::pg_catalog.regclass) AS leaf
        WHERE leaf.isleaf), 0)
) / pg_catalog.current_setting('block_size')::bigint
"""

# Each {step}th key is the upper bound of a chunk. Only the bounds leave the server.
_BOUNDS = sql.SQL(
    "SELECT {texts} FROM (SELECT {names}, row_number() OVER (ORDER BY {order}) AS tenantferry_n"
    " FROM {table} TABLESAMPLE SYSTEM ({percent}) REPEATABLE (0)) AS sample"
    " WHERE mod(tenantferry_n, {step}) = 0 AND tenantferry_n < {rows} ORDER BY tenantferry_n"
)
_SAMPLED_ROWS = sql.SQL(
    "SELECT count(*) FROM {table} TABLESAMPLE SYSTEM ({percent}) REPEATABLE (0)"
)


@dataclass(frozen=True, slots=True)
class _Key:
    columns: tuple[KeyColumn, ...]
    has_index: bool


def plan_chunks(source: connection, table: Table, *, chunk_rows: int) -> list[Chunk]:
    """
    Cut a table into chunks that together hold every key there is or may ever be.

    :param source: open transaction that holds the snapshot, with `TEXT_SETTINGS`; only read.
    :param chunk_rows: rows that a chunk should have.
    """
    key = _read_key(source, table)
    percent = min(100.0, 100.0 * SAMPLE_BLOCKS / max(1, _read_blocks(source, table)))
    sampled_rows = _count_sampled(source, table, percent)
    rows = round(sampled_rows * 100 / percent)
    count = max(1, math.ceil(rows / chunk_rows)) if key.columns else 1
    if not key.has_index:
        count = min(count, MAX_CHUNKS_WITHOUT_INDEX)
    bounds: list[tuple[str, ...] | None] = [None]
    if count > 1:
        step = max(1, math.ceil(sampled_rows / count))
        bounds += _read_bounds(
            source, table, key.columns, percent=percent, step=step, rows=sampled_rows
        )
    bounds.append(None)
    return [
        Chunk(
            schema=table.schema,
            table=table.name,
            number=number,
            key_columns=key.columns,
            lower=lower,
            upper=upper,
            estimated_rows=round(rows / (len(bounds) - 1)),
        )
        for number, (lower, upper) in enumerate(pairwise(bounds), start=1)
    ]


def chunk_key(table: Table) -> tuple[str, ...]:
    """
    Return the columns that order a table's chunks: its key, if they are sent and never null.

    It may be there where the stream has none: a deferrable key orders rows, but does not tell them
    apart within a transaction.
    """
    usable = {column.name for column in table.columns if column.not_null and column.is_copied}
    primary = next((key.columns for key in table.keys if key.primary), ())
    key = table.key or primary
    return key if usable.issuperset(key) else ()


def read_key_columns(source: connection, table: Table) -> tuple[KeyColumn, ...]:
    """
    Return the key columns of a table's chunks with their types.

    :param source: open transaction or autocommit; only read.
    """
    return _read_key(source, table).columns


def _read_key(source: connection, table: Table) -> _Key:
    names = chunk_key(table)
    with source.cursor() as cursor:
        cursor.execute(_KEY_COLUMNS, (_regclass(source, table), list(names)))
        found = {name: (KeyColumn(name, kind, text), is_c) for name, kind, text, is_c in cursor}
    if missing := set(names) - found.keys():
        raise PermanentError(
            f'table "{table.label}" has no column "{min(missing)}" any more',
            hint='Clear the task "prepare" and those after it.',
        )
    columns = tuple(found[name][0] for name in names)
    leads_in_c = not columns or not columns[0].collatable or found[names[0]][1]
    return _Key(columns, has_index=leads_in_c)


def _read_blocks(source: connection, table: Table) -> int:
    with source.cursor() as cursor:
        cursor.execute(_BLOCKS, {"table": _regclass(source, table)})
        row = cursor.fetchone()
    return int(row[0]) if row else 0


def _count_sampled(source: connection, table: Table, percent: float) -> int:
    query = _SAMPLED_ROWS.format(table=own_rows(table), percent=sql.Literal(percent))
    with source.cursor() as cursor:
        cursor.execute(query)
        row = cursor.fetchone()
    return int(row[0]) if row else 0


def _read_bounds(
    source: connection,
    table: Table,
    key: tuple[KeyColumn, ...],
    *,
    percent: float,
    step: int,
    rows: int,
) -> list[tuple[str, ...]]:
    names = [sql.Identifier(column.name) for column in key]
    query = _BOUNDS.format(
        texts=sql.SQL(", ").join(sql.SQL("{}::pg_catalog.text").format(name) for name in names),
        names=sql.SQL(", ").join(names),
        order=sql.SQL(", ").join(key_expressions(key)),
        table=own_rows(table),
        percent=sql.Literal(percent),
        step=sql.Literal(step),
        rows=sql.Literal(rows),
    )
    with source.cursor() as cursor:
        cursor.execute(query)
        return [tuple(row) for row in cursor]


def _regclass(source: connection, table: Table) -> str:
    return sql.Identifier(*table.qualified).as_string(source)
