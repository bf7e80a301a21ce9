from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from psycopg2 import sql
from psycopg2.extensions import connection

from tenantferry.backfill import planning
from tenantferry.backfill.chunk import Chunk, KeyColumn, chunk_predicate
from tenantferry.backfill.planning import plan_chunks
from tenantferry.fleet import Tenant
from tenantferry.schema.catalog import read_tables

CreatePair = Callable[[str, str, str], None]


def run(session: connection, statement: str) -> None:
    with session.cursor() as cursor:
        cursor.execute(statement)


def count_rows(source: connection, chunks: list[Chunk]) -> list[int]:
    counts = []
    for chunk in chunks:
        query = sql.SQL("SELECT count(*) FROM {} WHERE {}").format(
            sql.Identifier(chunk.schema, chunk.table), chunk_predicate(chunk)
        )
        with source.cursor() as cursor:
            cursor.execute(query)
            counts.append((cursor.fetchone() or (0,))[0])
    return counts


@pytest.mark.parametrize(
    ("columns", "key", "rows"),
    [
        ("k bigint", "k", "n"),
        ("k bigint", "k", "CASE WHEN n < 990 THEN n ELSE n * 1000000000000 END"),
        ("k uuid", "k", "md5(n::text)::uuid"),
        ("k text", "k", "chr(65 + n % 57) || n"),
        ("a int, b text", "a, b", "n / 300, chr(97 - (n % 2) * 32) || n"),
        ("a text, b int", "a, b", "'same', n"),
        ("k timestamptz", "k", "now() + n * n * interval '1 second'"),
        ('"K" numeric', '"K"', "n * -0.7"),
    ],
    ids=["dense", "skewed", "uuid", "text", "int and text", "one prefix", "time", "negative"],
)
def test_plan_chunks_cuts_equal_row_counts(
    *,
    source_owner: connection,
    source: connection,
    tenant: Tenant,
    columns: str,
    key: str,
    rows: str,
) -> None:
    run(source_owner, f"CREATE TABLE items ({columns}, PRIMARY KEY ({key}))")
    run(source_owner, f"INSERT INTO items SELECT {rows} FROM generate_series(1, 1000) n")
    (table,) = read_tables(source, tenant)

    chunks = plan_chunks(source, table, chunk_rows=100)

    assert count_rows(source, chunks) == [100] * 10
    assert [chunk.estimated_rows for chunk in chunks] == [100] * 10


def test_plan_chunks_holds_every_key_there_may_ever_be(
    source_owner: connection, source: connection, tenant: Tenant
) -> None:
    run(source_owner, "CREATE TABLE items (a int, b text, PRIMARY KEY (a, b))")
    run(source_owner, "INSERT INTO items SELECT n % 7, n FROM generate_series(1, 450) n")
    (table,) = read_tables(source, tenant)

    chunks = plan_chunks(source, table, chunk_rows=100)

    assert chunks[0].lower is chunks[-1].upper is None
    assert all(left.upper == right.lower for left, right in pairwise(chunks))
    run(source_owner, "INSERT INTO items SELECT n, n FROM generate_series(-500, 500) n"
        " ON CONFLICT DO NOTHING")  # fmt: skip
    with source.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM public.items")
        assert cursor.fetchone() == (sum(count_rows(source, chunks)),)


def test_plan_chunks_cuts_a_large_table_from_a_sample(
    *,
    source_owner: connection,
    source: connection,
    tenant: Tenant,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(planning, "SAMPLE_BLOCKS", 100)
    run(source_owner, "CREATE TABLE items (k bigint PRIMARY KEY, pad text)")
    run(
        source_owner,
        "INSERT INTO items SELECT n * n, repeat('x', 200) FROM generate_series(1, 20000) n",
    )
    (table,) = read_tables(source, tenant)

    chunks = plan_chunks(source, table, chunk_rows=4000)

    counts = count_rows(source, chunks)
    assert sum(counts) == 20000
    assert len(counts) in (5, 6)
    assert max(counts) < 2 * min(counts)


def test_plan_chunks_makes_few_chunks_when_no_index_serves_collate_c(
    source_owner: connection, source: connection, tenant: Tenant
) -> None:
    run(source_owner, "CREATE TABLE slow (k text PRIMARY KEY)")
    run(source_owner, 'CREATE TABLE quick (k text COLLATE "C" PRIMARY KEY)')
    for name in ("slow", "quick"):
        run(source_owner, f"INSERT INTO {name} SELECT n FROM generate_series(1, 2000) n")

    counts = {
        table.name: len(plan_chunks(source, table, chunk_rows=20))
        for table in read_tables(source, tenant)
    }

    assert counts == {"slow": planning.MAX_CHUNKS_WITHOUT_INDEX, "quick": 100}


def test_chunk_predicate_keeps_to_the_tenant_when_it_stands_beside_another_condition(
    source: connection,
) -> None:
    """GOTCHA: an unparenthesised keyset predicate reaches into other tenants' rows."""
    key = (KeyColumn("a", "integer", False), KeyColumn("b", "text", True))
    chunk = Chunk("public", "items", 2, key, ("1", "x"), ("5", "it's"), 10)

    text = chunk_predicate(chunk, alias="r").as_string(source)

    left = '("r"."a", "r"."b"::pg_catalog.text COLLATE "C")'
    assert text == (
        f"({left} > ('1'::integer, 'x'::pg_catalog.text)"
        f" AND {left} <= ('5'::integer, 'it''s'::pg_catalog.text))"
    )


def test_chunk_predicate_uses_the_index_of_an_ordinary_key(
    source_owner: connection, source: connection, tenant: Tenant
) -> None:
    run(source_owner, "CREATE TABLE items (a int, b uuid, PRIMARY KEY (a, b))")
    run(
        source_owner,
        "INSERT INTO items SELECT n / 10, md5(n::text)::uuid FROM generate_series(1, 5000) n",
    )
    run(source_owner, "ANALYZE items")
    (table,) = read_tables(source, tenant)
    chunk = plan_chunks(source, table, chunk_rows=100)[7]

    with source.cursor() as cursor:
        cursor.execute(
            sql.SQL("EXPLAIN SELECT * FROM public.items WHERE {}").format(chunk_predicate(chunk))
        )
        plan = "\n".join(row[0] for row in cursor)

    assert "Index Cond" in plan
