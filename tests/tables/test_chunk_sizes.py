"""Chunks have about the wanted rows, however keys are spread and wherever the rows lie."""

from __future__ import annotations

from typing import Any

import pytest
from psycopg2 import sql

from tenantferry.backfill import planning
from tenantferry.backfill.chunk import Chunk, chunk_predicate
from tenantferry.backfill.planning import plan_chunks
from tenantferry.schema.catalog import read_tables
from tenantferry.schema.model import Table
from tenantferry.schema.own_rows import own_rows

ROWS, CHUNK_ROWS = 30_000, 3_000
PAD = "repeat('x', 150)"
KINDS = {
    "sparse": (
        "CREATE TABLE items (k bigint PRIMARY KEY, pad text)",
        f"INSERT INTO items SELECT n::bigint * n * n, {PAD} FROM generate_series(1, {ROWS}) AS n",
    ),
    "one value nearly everywhere": (
        "CREATE TABLE items (a integer, k bigint, pad text, PRIMARY KEY (a, k))",
        f"INSERT INTO items SELECT CASE WHEN n % 100 = 0 THEN n ELSE 7 END, n, {PAD}"
        f" FROM generate_series(1, {ROWS}) AS n",
    ),
    "partitioned": (
        "CREATE TABLE items (k bigint PRIMARY KEY, pad text) PARTITION BY RANGE (k);"
        " CREATE TABLE few PARTITION OF items FOR VALUES FROM (0) TO (100);"
        " CREATE TABLE more PARTITION OF items FOR VALUES FROM (100) TO (10000);"
        " CREATE TABLE most PARTITION OF items DEFAULT",
        f"INSERT INTO items SELECT n, {PAD} FROM generate_series(1, {ROWS}) AS n",
    ),
    "parent of more rows than its own": (
        "CREATE TABLE items (k bigint PRIMARY KEY, pad text);"
        " CREATE TABLE child (PRIMARY KEY (k)) INHERITS (items)",
        f"INSERT INTO items SELECT n, {PAD} FROM generate_series(1, {ROWS}) AS n;"
        f" INSERT INTO child SELECT n, {PAD} FROM generate_series(1, {ROWS}) AS n",
    ),
}


def _count(trip: Any, table: Table, chunk: Chunk) -> int:
    query = sql.SQL("SELECT count(*) FROM {} WHERE {}").format(
        own_rows(table), chunk_predicate(chunk)
    )
    with trip.source.cursor() as cursor:
        cursor.execute(query)
        return int(cursor.fetchone()[0])


@pytest.mark.parametrize("blocks", [25_000, 200], ids=["exact", "sampled"])
@pytest.mark.parametrize("kind", KINDS)
def test_chunks_have_about_the_wanted_rows(
    trip: Any, monkeypatch: pytest.MonkeyPatch, kind: str, blocks: int
) -> None:
    monkeypatch.setattr(planning, "SAMPLE_BLOCKS", blocks)
    trip.run(*KINDS[kind])
    (table,) = (t for t in read_tables(trip.source, trip.move.tenant) if t.name == "items")

    chunks = plan_chunks(trip.source, table, chunk_rows=CHUNK_ROWS)

    counts = [_count(trip, table, chunk) for chunk in chunks]
    assert sum(counts) == ROWS
    assert len(counts) in (range(10, 11) if blocks == 25_000 else range(8, 13))
    assert max(counts) < 2 * CHUNK_ROWS
    assert min(counts) > CHUNK_ROWS / 3
