"""Compare again what a forward stream has written since both sides were compared, and no more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from uuid import UUID

from psycopg2 import sql
from psycopg2.extensions import connection

from tenantferry.backfill.chunk import Chunk
from tenantferry.control.touched import Touched
from tenantferry.control.validations import Difference
from tenantferry.schema.model import Table
from tenantferry.schema.own_rows import own_rows
from tenantferry.stream.relations import WrittenColumn, read_written_columns
from tenantferry.validation.alignment import Lane
from tenantferry.validation.comparison import (
    MAX_NAMED,
    ChunkComparison,
    RowComparison,
    compare_chunk,
    compare_rows,
)
from tenantferry.validation.digest import RowSet, of_tenant

# Rows are looked up by their keys. A plan that reads the table from end to end for them is never
# right here, and the planner knows nothing of what stands in an array.
_BY_KEY = (
    "SELECT set_config(name, %s, true)"
    " FROM unnest('{enable_seqscan,enable_hashjoin,enable_mergejoin}'::text[]) AS name"
)
_RELATION = sql.SQL("unnest({arrays}) AS touched ({names}) JOIN {table} AS r ON {same_key}")


@dataclass(frozen=True, slots=True)
class TouchedComparison:
    """
    What was compared again.

    :ivar rows: of the source.
    :ivar differences: the first of *mismatches*.
    :ivar differing: chunks of tables that were compared as a whole, and differ.
    """

    tables: int
    chunks: int
    rows: int
    mismatches: int
    differences: tuple[Difference, ...]
    differing: tuple[Chunk, ...]


def compare_touched(
    lane: Lane,
    touched: Sequence[Touched],
    tables: Sequence[Table],
    chunks: Sequence[tuple[Chunk, Table]],
    *,
    tenant_id: UUID,
) -> TouchedComparison:
    """
    Compare the rows that were written; of tables of which any may have been, all.

    :param lane: both sides at one instant, with `TEXT_SETTINGS`.
    :param chunks: of all tables.
    :raises TransientError: if the servers could not say; that is no mismatch.
    """
    by_name = {table.qualified: table for table in tables}
    whole = {(found.schema, found.table) for found in touched if found.is_whole}
    again = [(chunk, table) for chunk, table in chunks if table.qualified in whole]
    with ThreadPoolExecutor(1) as helpers:
        compared = [compare_chunk(lane, *item, tenant_id, helpers) for item in again]
        _look_up_by_key(lane, enabled=True)
        rows = [
            compare_rows(lane, *_read_row_sets(lane, found, by_name, tenant_id), helpers)
            for found in touched
            if not found.is_whole
        ]
        _look_up_by_key(lane, enabled=False)
    outcomes: list[ChunkComparison | RowComparison] = [*compared, *rows]
    differences = [found for outcome in outcomes for found in outcome.differences]
    return TouchedComparison(
        tables=len(touched),
        chunks=len(again),
        rows=sum(outcome.rows for outcome in outcomes),
        mismatches=sum(outcome.mismatches for outcome in outcomes),
        differences=tuple(differences[:MAX_NAMED]),
        differing=tuple(outcome.chunk for outcome in compared if outcome.mismatches),
    )


def _look_up_by_key(lane: Lane, *, enabled: bool) -> None:
    for session in (lane.source, lane.target):
        with session.cursor() as cursor:
            cursor.execute(_BY_KEY, ("off" if enabled else "on",))


def _read_row_sets(
    lane: Lane, touched: Touched, tables: Mapping[tuple[str, str], Table], tenant_id: UUID
) -> tuple[RowSet, RowSet]:
    table = tables[touched.schema, touched.table]
    return (
        _read_row_set(lane.source, touched, table, None),
        _read_row_set(lane.target, touched, table, tenant_id),
    )


def _read_row_set(
    session: connection, touched: Touched, table: Table, tenant_id: UUID | None
) -> RowSet:
    columns = {c.name: c for c in read_written_columns(session, table.schema, table.name)}
    key = [columns[name] for name in touched.key_columns]
    relation = _RELATION.format(
        arrays=sql.SQL(", ").join(
            sql.SQL("{}::pg_catalog.text[]").format(sql.Literal(list(values)))
            for values in zip(*touched.keys, strict=True)
        ),
        names=sql.SQL(", ").join(sql.Identifier(f"k{n}") for n in range(len(key))),
        table=own_rows(table),
        same_key=sql.SQL(" AND ").join(_equals(column, f"k{n}") for n, column in enumerate(key)),
    )
    return RowSet(table, touched.key_columns, relation, of_tenant(tenant_id))


def _equals(column: WrittenColumn, name: str) -> sql.Composed:
    schema, operator = column.equality
    return sql.SQL("r.{} OPERATOR({}.{}) touched.{}::{}").format(
        sql.Identifier(column.name),
        sql.Identifier(schema),
        sql.SQL(operator),
        sql.Identifier(name),
        # format_type's spelling is SQL already.
        sql.SQL(column.type_name),
    )
