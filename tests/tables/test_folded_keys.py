"""Keys of a collation that takes different texts for equal, here those that differ in case."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from tenantferry.backfill.chunk import TEXT_SETTINGS
from tenantferry.connections import open_connection
from tenantferry.control.touched import read_touched
from tenantferry.control.validations import read_latest_validation
from tenantferry.local.postgres import PostgresServer
from tenantferry.moves.validate import MismatchError
from tenantferry.schema.catalog import read_tables
from tenantferry.validation.alignment import Lane
from tenantferry.validation.touched import Recheck, TouchedComparison

# Preflight wants it in the target before; it carries none.
FOLDED = (
    "CREATE COLLATION public.folded"
    " (provider = icu, locale = 'und-u-ks-level2', deterministic = false)"
)
WORDS = "CREATE TABLE words (id text COLLATE folded PRIMARY KEY, note text)"
OLD_WORDS = (
    "INSERT INTO words SELECT (CASE n % 3 WHEN 0 THEN 'W' ELSE 'w' END) || n, 'old' || n"
    " FROM generate_series(1, 400) AS n"
)
# By their bytes all upper case letters come before the lower case ones: it moves to another chunk.
CHANGE_CASE = (
    "UPDATE words SET id = CASE WHEN note LIKE '%!' THEN lower(id) ELSE upper(id) END,"
    " note = CASE WHEN note LIKE '%!' THEN rtrim(note, '!') ELSE note || '!' END WHERE"
)


@pytest.fixture
def target_server(oldest_target_server: PostgresServer) -> PostgresServer:
    """The newest server at hand may be built without ICU, which alone has such collations."""
    found = oldest_target_server.psql(
        "-c", "SELECT count(*) FROM pg_collation WHERE collprovider = 'i'"
    )
    if found == "0":
        pytest.skip("the servers at hand were built without ICU")
    return oldest_target_server


@pytest.fixture
def folded(trip: Any) -> Any:
    """A tenant with such a collation."""
    trip.run(FOLDED)
    with trip.target.cursor() as cursor:
        cursor.execute(FOLDED)
    return trip


@pytest.fixture
def streamed(folded: Any) -> Iterator[Any]:
    """The same with a few words, copied, streamed and validated."""
    folded.run(WORDS, OLD_WORDS)
    folded.prepare()
    folded.backfill()
    with folded.streaming():
        folded.validate()
        yield folded


def test_keys_that_are_equal_whatever_their_case_arrive(folded: Any) -> None:
    folded.run(
        WORDS,
        'CREATE TABLE pairs (a text COLLATE folded, b text COLLATE "C", n integer,'
        " PRIMARY KEY (a, b))",
        "CREATE TABLE uses (n integer PRIMARY KEY, word text COLLATE folded REFERENCES words)",
        OLD_WORDS,
        "INSERT INTO pairs SELECT 'A' || n % 200, n, n FROM generate_series(1, 400) AS n",
        "INSERT INTO uses SELECT n, 'W' || n FROM generate_series(1, 50) AS n",
    )

    result = folded.travel(
        "INSERT INTO words VALUES ('New' || {n}, 'new')",
        f"{CHANGE_CASE} note LIKE 'old' || ({{n}} % 50) || '%'",
        "DELETE FROM words WHERE id = 'w' || (50 + {n});"
        " INSERT INTO words VALUES ('W' || (50 + {n}), 'again')",
        "UPDATE pairs SET a = lower(a), n = n + 1 WHERE a = 'a' || {n} % 200",
        "DELETE FROM pairs WHERE a = 'a' || ({n} % 70) AND n > 300",
    )

    assert result.chunks >= 8


def test_a_row_that_differs_in_case_is_a_mismatch(streamed: Any) -> None:
    change_behind_the_stream(streamed)

    with pytest.raises(MismatchError):
        streamed.validate()


def test_rows_that_were_written_are_compared_again_whatever_their_case(streamed: Any) -> None:
    streamed.run(f"{CHANGE_CASE} id = 'w7'")
    streamed.catch_up()
    alike = compare_touched(streamed)
    change_behind_the_stream(streamed)

    differing = compare_touched(streamed)

    assert (alike.tables, alike.mismatches) == (1, 0)
    assert differing.mismatches > 0


def change_behind_the_stream(trip: Any) -> None:
    """Write a word of the target in another case, which nobody may while its tenant moves."""
    with trip.target.cursor() as cursor:
        cursor.execute("UPDATE public.words SET id = translate(id, 'wW', 'Ww') WHERE id = 'w7'")
        assert cursor.rowcount == 1


def compare_touched(trip: Any) -> TouchedComparison:
    """Compare what was written since the validation, as a cutover does."""
    move = trip.move
    latest = read_latest_validation(trip.target, move.tenant.key)
    assert latest is not None
    touched = read_touched(trip.target, move.tenant.key, since=latest.position)
    assert touched
    source, target = (
        closing(open_connection(params, purpose="recheck", settings=TEXT_SETTINGS))
        for params in (move.source, move.target)
    )
    with source as ours, target as theirs:
        tables = read_tables(ours, move.tenant)
        return Recheck(Lane(ours, theirs), tables, [], tenant_id=move.tenant.id).compare(touched)
