"""Text is ordered, and compared, in another way on either side; every row arrives all the same."""

from __future__ import annotations

from typing import Any

import pytest

from tenantferry.connections import ConnectionParams
from tenantferry.local.postgres import PostgresServer
from tenantferry.schema.findings import Verdict

# In the order of ICU: a A ä Ä b B; of C: A B a b Ä ä.
LETTERS = "(ARRAY['a', 'A', 'ä', 'Ä', 'b', 'B', 'z', 'Z', '-', '_', 'ß', '1'])"


@pytest.fixture
def source_params(
    source_server: PostgresServer, source_params: ConnectionParams
) -> ConnectionParams:
    """An empty source whose database sorts as people do."""
    if (
        source_server.psql("-c", "SELECT count(*) FROM pg_collation WHERE collprovider = 'i'")
        == "0"
    ):
        pytest.skip("the source's server was built without ICU")
    name = source_params.database
    source_server.psql(
        "-c",
        f"DROP DATABASE {name}",
        "-c",
        f"CREATE DATABASE {name} OWNER app_owner TEMPLATE template0 LOCALE_PROVIDER icu"
        " ICU_LOCALE 'en'",
        "-c",
        f"GRANT CONNECT, CREATE ON DATABASE {name} TO tenantferry",
    )
    return source_params


def test_text_keys_arrive_when_the_two_sides_sort_differently(trip: Any) -> None:
    def key(n: str) -> str:
        return f"{LETTERS}[1 + ({n}) % 12] || {LETTERS}[1 + ({n}) / 12 % 12] || {n}"

    trip.run(
        "CREATE TABLE words (id text PRIMARY KEY, note text)",
        "CREATE TABLE pairs (n integer, a text, b varchar(20), PRIMARY KEY (a, n, b))",
        f"INSERT INTO words SELECT {key('n')}, 'old' || n FROM generate_series(1, 700) AS n",
        f"INSERT INTO pairs SELECT n % 7, {key('n')}, {key('n * 5')}"
        " FROM generate_series(1, 700) AS n",
    )

    result = trip.travel(
        f"INSERT INTO words VALUES ({key('(1000 + {n})')}, 'new')",
        f"UPDATE words SET id = {key('(5000 + {n})')} WHERE note = 'old' || {{n}} * 2",
        "DELETE FROM words WHERE note = 'old' || {n} * 3",
        f"UPDATE pairs SET b = {key('(7000 + {n})')} WHERE n = {{n}} % 7 AND a < 'b'",
    )

    assert result.chunks >= 14
    (found,) = [f for f in trip.find(Verdict.WARNING) if f.check == "collation"]
    assert "ICU en" in found.detail


def test_a_collation_that_the_target_lacks_is_refused(trip: Any) -> None:
    there = {row[0] for row in _collations(trip)}
    trip.run(
        'CREATE TABLE words (id text COLLATE "de-x-icu" PRIMARY KEY)',
        "CREATE TABLE others (id text PRIMARY KEY)",
        'CREATE INDEX sorted ON others (id COLLATE "fr-x-icu")',
    )

    found = {(f.check, f.subject) for f in trip.find(Verdict.ERROR)}

    wanted = {("de-x-icu", "public.words"), ("fr-x-icu", "public.others")}
    assert found == {("collation", label) for name, label in wanted if name not in there}


def _collations(trip: Any) -> list[tuple[str]]:
    with trip.target.cursor() as cursor:
        cursor.execute("SELECT collname FROM pg_collation")
        return list(cursor.fetchall())
