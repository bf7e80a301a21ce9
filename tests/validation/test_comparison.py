"""A validator that cannot fail is worthless: each test corrupts something and must see it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any
from uuid import UUID

import psycopg2
import pytest
from psycopg2 import sql
from psycopg2.extensions import connection

from tenantferry.backfill.chunk import TEXT_SETTINGS, Chunk
from tenantferry.connections import open_connection
from tenantferry.control.validations import MismatchKind
from tenantferry.errors import CopyAgainError, PermanentError
from tenantferry.local.postgres import PostgresServer
from tenantferry.schema.catalog import read_tables
from tenantferry.validation.digest import read_digest, rows_of_chunk

OTHER_ID = UUID("22222222-2222-2222-2222-222222222222")

ITEMS = (
    "CREATE TABLE items (id bigint PRIMARY KEY, name text, price numeric)",
    "INSERT INTO items SELECT n, 'name ' || n, n * 1.50 FROM generate_series(1, 250) n",
)

Prepare = Callable[..., Any]


def run(session: connection, statement: str) -> None:
    with session.cursor() as cursor:
        cursor.execute(statement)


def test_compare_finds_nothing_when_both_sides_are_equal(copied: Prepare) -> None:
    both = copied(*ITEMS)

    assert both.compare() == ((), 0)


def test_compare_names_one_changed_cell(copied: Prepare) -> None:
    both = copied(*ITEMS)
    run(both.target, "UPDATE public.items SET name = 'nome 7' WHERE id = 7")

    (found,), mismatches = both.compare()

    assert (found.kind, found.row_key, mismatches) == (MismatchKind.DIFFERENT, "id=7", 1)
    assert str(found) == (
        'different: row id=7 of table "public.items": its values differ between source and target.'
    )


def test_compare_names_one_missing_row(copied: Prepare) -> None:
    both = copied(*ITEMS)
    run(both.target, "DELETE FROM public.items WHERE id = 250")

    (found,), mismatches = both.compare()

    assert (found.kind, found.row_key, mismatches) == (MismatchKind.MISSING, "id=250", 1)


@pytest.mark.parametrize("key", [-5, 1000000], ids=["below all chunks", "above all chunks"])
def test_compare_names_one_extra_row(copied: Prepare, key: int) -> None:
    both = copied(*ITEMS)
    run(
        both.target,
        f"INSERT INTO public.items (id, tenant_id) VALUES ({key}, '{both.tenant.id}')",
    )

    (found,), mismatches = both.compare()

    assert (found.kind, found.row_key, mismatches) == (MismatchKind.EXTRA, f"id={key}", 1)


def test_compare_names_both_rows_when_their_values_are_swapped(copied: Prepare) -> None:
    both = copied(*ITEMS)
    run(
        both.target,
        "UPDATE public.items AS a SET name = b.name FROM public.items AS b"
        " WHERE (a.id, b.id) IN ((1, 2), (2, 1))",
    )

    differences, mismatches = both.compare()

    assert [found.row_key for found in differences] == ["id=1", "id=2"]
    assert mismatches == 2


def test_compare_does_not_see_another_tenant(copied: Prepare) -> None:
    both = copied(*ITEMS)
    run(
        both.target,
        f"INSERT INTO public.items (id, tenant_id) SELECT n, '{OTHER_ID}'"
        " FROM generate_series(1, 300) n",
    )

    assert both.compare() == ((), 0)


def test_compare_names_a_row_that_went_to_another_tenant(copied: Prepare) -> None:
    both = copied(*ITEMS)
    run(both.target, f"UPDATE public.items SET tenant_id = '{OTHER_ID}' WHERE id = 9")

    (found,), _ = both.compare()

    assert (found.kind, found.row_key) == (MismatchKind.MISSING, "id=9")


def test_compare_names_twenty_rows_and_counts_all(copied: Prepare) -> None:
    both = copied(*ITEMS)
    run(both.target, "UPDATE public.items SET name = 'x'")

    differences, mismatches = both.compare()

    assert (len(differences), mismatches) == (20, 250)


@pytest.mark.parametrize(
    ("kind", "ours", "theirs"),
    [
        ("text", "''", "NULL"),
        ("text", "'a '", "'a'"),
        ("numeric", "1.0", "1.00"),
        ("numeric", "'NaN'", "NULL"),
        ("float8", "'-0'", "'0'"),
        ("float8", "0.1", "0.1::float8 + 2e-17"),
        ("float8", "'NaN'", "'infinity'"),
        ("json", """'{"a":1}'""", """'{"a": 1}'"""),
        ("jsonb", "'1.0'", "'1.00'"),
        ("timestamptz", "'infinity'", "'-infinity'"),
        ("timestamp", "'0044-03-15 BC'", "'0044-03-15'"),
        ("time", "'24:00:00'", "'00:00:00'"),
        ("interval", "'1 mon'", "'30 days'"),
        ("bytea", r"'\x00'", r"'\x0000'"),
        ("text[]", "'{NULL}'", """'{"NULL"}'"""),
    ],
)
def test_compare_tells_values_apart_that_only_look_alike(
    copied: Prepare, kind: str, ours: str, theirs: str
) -> None:
    both = copied(
        f"CREATE TABLE items (id bigint PRIMARY KEY, value {kind})",
        f"INSERT INTO items VALUES (1, {ours})",
    )
    before = both.compare()
    run(both.target, f"UPDATE public.items SET value = {theirs}")
    with both.target.cursor() as cursor:
        cursor.execute(
            sql.SQL("SELECT value::text IS DISTINCT FROM ({})::text FROM public.items").format(
                sql.SQL(ours)
            )
        )

    (found,), _ = both.compare()

    assert before == ((), 0)
    assert found.kind is MismatchKind.DIFFERENT


def test_compare_sees_a_generated_column_that_differs(copied: Prepare) -> None:
    both = copied(
        "CREATE TABLE items (id bigint PRIMARY KEY, twice bigint GENERATED ALWAYS AS (id * 2)"
        " STORED)",
        "INSERT INTO items VALUES (4)",
    )
    run(both.target, "ALTER TABLE public.items ALTER COLUMN twice DROP EXPRESSION")
    run(both.target, "UPDATE public.items SET twice = 9")

    (found,), _ = both.compare()

    assert found.row_key == "id=4"


def test_compare_counts_rows_of_a_table_without_a_key(copied: Prepare) -> None:
    both = copied(
        "CREATE TABLE log (line text)",
        "ALTER TABLE log REPLICA IDENTITY FULL",
        "INSERT INTO log VALUES ('same'), ('same'), ('other'), (NULL)",
    )
    before = both.compare()
    run(both.target, "DELETE FROM public.log WHERE ctid = (SELECT min(ctid) FROM public.log"
        " WHERE line = 'same')")  # fmt: skip

    (found,), mismatches = both.compare()

    assert before == ((), 0)
    assert (found.kind, found.row_key, mismatches) == (MismatchKind.MISSING, None, 1)


def test_compare_finds_nothing_when_the_servers_print_values_differently(
    copied: Prepare, source_server: PostgresServer
) -> None:
    """GOTCHA: text output depends on settings that a role or a database may carry."""
    both = copied(
        "CREATE TABLE items (id timestamptz PRIMARY KEY, d date, f float8, b bytea, i interval,"
        " m money)",
        "INSERT INTO items SELECT '2020-01-01 00:00+02'::timestamptz + n * interval '1 hour',"
        r" '2020-02-01', 0.1::float8 + n / 3.0, '\x00ff', '1 day 2 hours', 12.5"
        " FROM generate_series(1, 250) n",
    )
    database = both.source_params.database
    for setting in (
        "DateStyle = 'German'",
        "extra_float_digits = -5",
        "IntervalStyle = 'iso_8601'",
        "TimeZone = 'Asia/Kolkata'",
        "bytea_output = 'escape'",
    ):
        source_server.psql("-c", f"ALTER ROLE tenantferry IN DATABASE {database} SET {setting}")

    assert both.compare() == ((), 0)


@pytest.mark.parametrize(
    ("columns", "rows"),
    [
        ("a text, b int, PRIMARY KEY (a)", "chr(65 + n % 57) || n, n"),
        ("a text, b int, PRIMARY KEY (a, b)", "chr(65 + n % 3), n"),
        ("a int, b text, PRIMARY KEY (a, b)", "n / 90, chr(97 - (n % 2) * 32) || n"),
        ("a varchar(9), b char(5), PRIMARY KEY (b, a)", "'x' || n, n % 7"),
        ("a uuid, b int, PRIMARY KEY (a)", "md5(n::text)::uuid, n"),
        ("a numeric, b date, PRIMARY KEY (b, a)", "n * 0.7, date '2020-01-01' + n / 50"),
        ("a float8, b int, PRIMARY KEY (a)", "n / 3.0::float8, n"),
    ],
)
def test_compare_sees_every_row_exactly_once_whatever_the_key_is(
    copied: Prepare, columns: str, rows: str
) -> None:
    """GOTCHA: text bounds need COLLATE "C", composite keys a row comparison."""
    both = copied(
        f"CREATE TABLE items ({columns})",
        f"INSERT INTO items SELECT {rows} FROM generate_series(1, 450) n",
    )
    tables = read_tables(both.source, both.tenant)
    result = both.compare()
    with both.target.cursor() as cursor:
        cursor.execute(
            "SELECT sum(rows)::int, count(*)::int FROM tenantferry.chunks WHERE tenant = 'acme'"
        )
        assert cursor.fetchone() == (450, 5)

    run(both.target, f"INSERT INTO public.items SELECT {rows}, '{OTHER_ID}'"
        " FROM generate_series(1, 450) n")  # fmt: skip
    assert tables
    assert result == both.compare() == ((), 0)


def test_read_digest_fails_rather_than_filters_when_it_is_subject_to_row_security(
    copied: Prepare, target_server: PostgresServer
) -> None:
    """GOTCHA: a checker subject to row security sees too few rows and calls it a match."""
    both = copied(*ITEMS)
    (table,) = read_tables(both.source, both.tenant)
    chunk = Chunk("public", "items", 1, (), None, None, 250)
    run(both.target, "GRANT SELECT ON public.items TO tenant_acme")
    with closing(
        open_connection(both.target_params, purpose="test", settings=TEXT_SETTINGS)
    ) as session:
        run(session, "SET ROLE tenant_acme")

        with pytest.raises(psycopg2.errors.InsufficientPrivilege, match="row-level security"):
            read_digest(session, rows_of_chunk(chunk, table, tenant_id=both.tenant.id))


def test_load_chunks_refuses_a_table_that_was_not_copied(copied: Prepare) -> None:
    both = copied(*ITEMS)
    run(both.owner, "CREATE TABLE later (id int PRIMARY KEY)")

    with pytest.raises(PermanentError, match=r'table "public.later" is not copied yet') as refused:
        both.compare()

    # All others are.
    assert not isinstance(refused.value, CopyAgainError)


def test_load_chunks_refuses_chunks_with_a_hole(copied: Prepare) -> None:
    both = copied(*ITEMS)
    run(both.target, "DELETE FROM tenantferry.chunks WHERE chunk = 2")

    with pytest.raises(CopyAgainError, match="was not copied as a whole"):
        both.compare()
