"""Compare again what a forward stream has written since both sides were compared, and no more."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from uuid import UUID

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import connection

from tenantferry.backfill.chunk import Chunk
from tenantferry.backfill.failures import describe_failure
from tenantferry.control.touched import Touched
from tenantferry.control.validations import Difference
from tenantferry.schema.model import Table
from tenantferry.schema.own_rows import own_rows
from tenantferry.stream.relations import WrittenColumn, read_written_columns
from tenantferry.validation.alignment import Lane, View
from tenantferry.validation.comparison import (
    MAX_NAMED,
    ChunkComparison,
    RowComparison,
    compare_chunk,
    compare_chunks,
    compare_rows,
    sum_seconds,
)
from tenantferry.validation.digest import RowSet, of_tenant, read_digests

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
    :ivar table_seconds: of each such table, see `sum_seconds`.
    """

    tables: int
    chunks: int
    rows: int
    mismatches: int
    differences: tuple[Difference, ...]
    differing: tuple[Chunk, ...]
    table_seconds: Mapping[str, float]


class Recheck:
    """
    Compares what was written.

    Made before anybody waits: it reads the catalogs, and lets both sessions learn the tables.

    :param lane: both sides, with `TEXT_SETTINGS`, in a transaction each or about to begin one.
    :param chunks: of all tables.
    """

    def __init__(
        self,
        lane: Lane,
        tables: Sequence[Table],
        chunks: Sequence[tuple[Chunk, Table]],
        *,
        tenant_id: UUID,
    ) -> None:
        self._lane = lane
        self._chunks = chunks
        self._tenant_id = tenant_id
        self._tables = {table.qualified: table for table in tables}
        self._columns = {
            side: {table.qualified: _read_columns(session, table) for table in tables}
            for side, session in (("source", lane.source), ("target", lane.target))
        }
        nothing = [Touched(t.schema, t.name, t.key, ()) for t in tables if t.key]
        with ThreadPoolExecutor(1) as helpers:
            self._compare_rows(nothing, helpers)

    def compare(self, touched: Sequence[Touched], *, view: View | None = None) -> TouchedComparison:
        """
        Compare the rows that were written; of tables of which any may have been, all.

        :param view: its lanes, which include ours, compare whole tables; by default ours alone.
        :raises TransientError: if the servers could not say; that is no mismatch.
        """
        whole = {(found.schema, found.table) for found in touched if found.is_whole}
        again = [(chunk, table) for chunk, table in self._chunks if table.qualified in whole]
        with ThreadPoolExecutor(1) as helpers:
            if view is None:
                compared = [
                    compare_chunk(self._lane, *item, self._tenant_id, helpers) for item in again
                ]
            else:
                compared = compare_chunks(view, again, tenant_id=self._tenant_id)
            rows = self._compare_rows([found for found in touched if not found.is_whole], helpers)
        outcomes: list[ChunkComparison | RowComparison] = [*compared, *rows]
        differences = [found for outcome in outcomes for found in outcome.differences]
        return TouchedComparison(
            tables=len(touched),
            chunks=len(again),
            rows=sum(outcome.rows for outcome in outcomes),
            mismatches=sum(outcome.mismatches for outcome in outcomes),
            differences=tuple(differences[:MAX_NAMED]),
            differing=tuple(outcome.chunk for outcome in compared if outcome.mismatches),
            table_seconds=sum_seconds(compared),
        )

    def _compare_rows(
        self, touched: Sequence[Touched], helpers: ThreadPoolExecutor
    ) -> list[RowComparison]:
        """Digest the rows of all tables with one statement on each side, then look closer."""
        if not touched:
            return []
        lane = self._lane
        ours = [self._row_set("source", found) for found in touched]
        theirs = [self._row_set("target", found) for found in touched]
        _look_up_by_key(lane, enabled=True)
        try:
            future = helpers.submit(read_digests, lane.target, theirs)
            try:
                expected = read_digests(lane.source, ours)
            finally:
                actual = future.result()
        except psycopg2.Error as error:
            raise describe_failure(error, doing="compare rows by their keys") from None
        outcomes = [
            RowComparison(left.rows, right.rows, 0, ())
            if left == right
            else compare_rows(lane, our_rows, their_rows, helpers)
            for left, right, our_rows, their_rows in zip(
                expected, actual, ours, theirs, strict=True
            )
        ]
        _look_up_by_key(lane, enabled=False)
        return outcomes

    def _row_set(self, side: str, touched: Touched) -> RowSet:
        name = touched.schema, touched.table
        table, columns = self._tables[name], self._columns[side][name]
        key = [columns[name] for name in touched.key_columns]
        values = list(zip(*touched.keys, strict=True)) or [() for _ in key]
        relation = _RELATION.format(
            arrays=sql.SQL(", ").join(
                sql.SQL("{}::pg_catalog.text[]").format(sql.Literal(list(texts)))
                for texts in values
            ),
            names=sql.SQL(", ").join(sql.Identifier(f"k{n}") for n in range(len(key))),
            table=own_rows(table),
            same_key=sql.SQL(" AND ").join(
                _equals(column, f"k{n}") for n, column in enumerate(key)
            ),
        )
        tenant_id = self._tenant_id if side == "target" else None
        return RowSet(table, touched.key_columns, relation, of_tenant(tenant_id))


def with_whole(touched: Sequence[Touched], tables: Iterable[Table]) -> tuple[Touched, ...]:
    """Return what was written where any row of some tables may have been."""
    whole = {table.qualified for table in tables}
    others = (found for found in touched if (found.schema, found.table) not in whole)
    return (*others, *(Touched(*name, (), ()) for name in sorted(whole)))


def _read_columns(session: connection, table: Table) -> dict[str, WrittenColumn]:
    found = read_written_columns(session, table.schema, table.name)
    return {column.name: column for column in found}


def _look_up_by_key(lane: Lane, *, enabled: bool) -> None:
    for session in (lane.source, lane.target):
        with session.cursor() as cursor:
            cursor.execute(_BY_KEY, ("off" if enabled else "on",))


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
