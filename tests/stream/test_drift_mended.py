"""A source that changes its schema in flight: the stream stops, says how to go on, and goes on."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tenantferry.control.streams import StreamState
from tenantferry.stream.relations import DriftError

DRIFTS = {
    "column added": (
        "ALTER TABLE items ADD extra integer",
        "INSERT INTO items VALUES (2, 'b', 7)",
        "ALTER TABLE public.items ADD COLUMN extra integer;",
    ),
    "column added with a default": (
        "ALTER TABLE items ADD extra int DEFAULT 5; ALTER TABLE items ALTER extra SET DEFAULT 6",
        "INSERT INTO items VALUES (2, 'b')",
        "ALTER TABLE public.items ADD COLUMN extra integer DEFAULT '5';",
    ),
    "column dropped": (
        "ALTER TABLE items DROP name",
        "INSERT INTO items VALUES (2)",
        "ALTER TABLE public.items DROP COLUMN name;",
    ),
    "column retyped": (
        "ALTER TABLE items ALTER name TYPE varchar(20)",
        "INSERT INTO items VALUES (2, 'b')",
        "ALTER TABLE public.items ALTER COLUMN name TYPE character varying(20);",
    ),
    "column renamed": (
        "ALTER TABLE items RENAME name TO label",
        "INSERT INTO items VALUES (2, 'b')",
        "ALTER TABLE public.items RENAME COLUMN name TO label;",
    ),
    "column dropped and another one added in its place": (
        "ALTER TABLE items DROP name, ADD label text",
        "INSERT INTO items VALUES (2, 'b')",
        "ALTER TABLE public.items DROP COLUMN name;"
        " ALTER TABLE public.items ADD COLUMN label text;",
    ),
    "label added": (
        "ALTER TYPE mood ADD VALUE 'fine' BEFORE 'ok'",
        "INSERT INTO moods VALUES (2, 'fine')",
        "ALTER TYPE public.mood ADD VALUE 'fine' BEFORE 'ok';",
    ),
    "label renamed": (
        "ALTER TYPE mood RENAME VALUE 'ok' TO 'well'",
        "INSERT INTO moods VALUES (2, 'well')",
        "ALTER TYPE public.mood RENAME VALUE 'ok' TO 'well';",
    ),
}


@pytest.fixture
def drifting(move: Any) -> Any:
    """A tenant that is about to change its schema."""
    for session in (move.owner, move.target):
        move.execute(session, "CREATE TYPE public.mood AS ENUM ('ok')")
    move.pair("items", "id integer, name text")
    move.pair("moods", "id integer, mood public.mood")
    move.begin()
    return move


def mend(move: Any, error: BaseException | None) -> str:
    """Run in the target what the hint says, and return it."""
    assert isinstance(error, DriftError)
    assert "has changed" in error.message
    statements = " ".join(re.findall(r"ALTER [^;]*;", error.hint))
    move.execute(move.target, f"SET search_path = public; {statements}")
    move.execute(move.target, "SET search_path = pg_catalog")
    return statements


@pytest.mark.parametrize("drift", DRIFTS)
def test_stream_goes_on_when_the_target_was_mended_as_the_hint_says_gotcha_9(
    drifting: Any, drift: str
) -> None:
    change, write, mending = DRIFTS[drift]
    with drifting.stream() as stream:
        drifting.run("INSERT INTO items VALUES (1, 'a')", "INSERT INTO moods VALUES (1, 'ok')")
        stream.catch_up()

    drifting.execute(drifting.target, "UPDATE tenantferry.streams SET touched_since = position")
    # The stream is away: rows of both shapes wait for it.
    drifting.run(
        "INSERT INTO items VALUES (10, 'old shape')", "UPDATE items SET name = 'a2' WHERE id = 1"
    )
    drifting.run(*change.split("; "), write)
    with drifting.stream() as stream:
        error = stream.failure()
    stopped_at = (drifting.rows_of_ids("items"), drifting.rows_of_ids("moods"))
    assert drifting.record.state is StreamState.FAILED
    # What a statement does to rows that are there already no stream tells: they are compared again.
    assert drifting.record.touched_since is None
    mended = mend(drifting, error)
    with drifting.stream() as stream:
        stream.catch_up()

    assert mended == mending
    # Of the new shape nothing; of an old table everything that came before.
    assert stopped_at in (([1, 10], [1]), ([1], [1]))
    assert stopped_at[0] == [1, 10] or "label" in drift
    for table in ("items", "moods"):
        assert drifting.rows(table) == drifting.source_rows(table)


def test_stream_applies_what_came_before_the_change(drifting: Any) -> None:
    """Also what stands in the same message turn, and not what shares the change's transaction."""
    drifting.run(
        "INSERT INTO items SELECT id, 'old' FROM generate_series(1, 500) AS id",
        *(f"UPDATE items SET name = 'new {n}' WHERE id = 500" for n in range(20)),
        "BEGIN; INSERT INTO moods VALUES (1, 'ok'); ALTER TABLE items ADD extra integer;"
        " INSERT INTO items VALUES (501, 'new', 1); COMMIT",
    )

    with drifting.stream() as stream:
        error = stream.failure()

    assert isinstance(error, DriftError)
    assert drifting.rows_of_ids("items") == list(range(1, 501))
    [(name,)] = drifting.execute(drifting.target, "SELECT name FROM public.items WHERE id = 500")
    assert name == "new 19"
    assert drifting.rows_of_ids("moods") == []
    assert drifting.record.position < (error.commit_lsn or 0)


def test_stream_refuses_rows_that_are_older_than_the_target(drifting: Any) -> None:
    drifting.run(
        "INSERT INTO items VALUES (1, 'a')", "ALTER TABLE items ADD extra integer DEFAULT 5"
    )
    drifting.execute(drifting.target, "ALTER TABLE public.items ADD extra integer DEFAULT 6")

    with drifting.stream() as stream:
        error = stream.failure()

    assert isinstance(error, DriftError)
    assert "must be copied again" in error.hint
    assert '"backfill"' in error.hint
    assert drifting.rows_of_ids("items") == []


@pytest.mark.parametrize("is_away", [False, True], ids=["running", "away"])
def test_stream_does_not_take_a_renamed_table_for_one_outside_the_move(
    drifting: Any, is_away: bool
) -> None:
    change = ("ALTER TABLE items RENAME TO things", "INSERT INTO things VALUES (3, 'c')")
    if is_away:
        drifting.run("INSERT INTO items VALUES (2, 'b')", *change)
    with drifting.stream() as stream:
        if not is_away:
            drifting.run("INSERT INTO items VALUES (2, 'b')")
            stream.catch_up()
            drifting.run(*change)
        error = stream.failure()

    assert isinstance(error, DriftError)
    assert "was renamed" in error.message
    assert '"public.items" of the source' in error.message or is_away
    assert '"preflight"' in error.hint
    assert drifting.rows_of_ids("items") == ([] if is_away else [2])


def test_stream_goes_on_when_the_source_undid_the_change_before_it_wrote(drifting: Any) -> None:
    with drifting.stream() as stream:
        drifting.run("INSERT INTO items VALUES (1, 'a')")
        stream.catch_up()
        drifting.run(
            "ALTER TABLE items ADD extra integer",
            "ALTER TABLE items DROP extra",
            "INSERT INTO items VALUES (2, 'b')",
        )
        stream.catch_up()

    assert drifting.rows("items") == drifting.source_rows("items") == ["(1,a)", "(2,b)"]
