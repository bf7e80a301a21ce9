"""A table that no longer looks the same on both sides stops the stream before its first new row."""

from __future__ import annotations

from typing import Any

import pytest

from tenantferry.control.streams import StreamState
from tenantferry.errors import PermanentError
from tenantferry.stream.netchange import BrokenStreamError
from tenantferry.stream.relations import DriftError

DRIFTS = {
    "added column": "ALTER TABLE items ADD extra integer",
    "dropped column": "ALTER TABLE items DROP name",
    "renamed column": "ALTER TABLE items RENAME name TO label",
    "other type": "ALTER TABLE items ALTER name TYPE varchar(20)",
}


@pytest.mark.parametrize("drift", DRIFTS)
def test_stream_stops_at_a_changed_table_before_any_row_of_it_gotcha_9(
    move: Any, drift: str
) -> None:
    move.pair("items", "id integer, name text")
    move.begin()

    with move.stream() as stream:
        move.run("INSERT INTO items VALUES (1, 'a')")
        stream.catch_up()
        move.run(DRIFTS[drift], "INSERT INTO items (id) VALUES (2)")
        error = stream.failure()

    assert isinstance(error, DriftError)
    assert "public.items" in error.message
    assert move.rows_of_ids("items") == [1]
    assert move.record.state is StreamState.FAILED
    assert "has changed" in (move.record.error or "")


def test_stream_goes_on_after_the_target_was_made_the_same(move: Any) -> None:
    move.pair("items", "id integer, name text")
    move.begin()
    with move.stream() as stream:
        stream.catch_up()
        move.run("ALTER TABLE items ADD extra integer", "INSERT INTO items VALUES (2, 'b', 3)")
        stream.failure()
    move.execute(move.target, "ALTER TABLE public.items DROP tenant_id CASCADE")
    move.execute(
        move.target,
        "ALTER TABLE public.items ADD extra integer, ADD tenant_id uuid,"
        " ADD PRIMARY KEY (tenant_id, id)",
    )

    with move.stream() as stream:
        stream.catch_up()

    assert move.rows("items") == ["(2,b,3)"]


def test_stream_does_not_mind_a_relation_that_is_sent_again(move: Any) -> None:
    move.pair("items", "id integer, name text")
    move.begin()

    with move.stream() as stream:
        move.run("INSERT INTO items VALUES (1, 'a')")
        stream.catch_up()
        move.run("ALTER TABLE items SET (fillfactor = 50)", "CREATE INDEX ON items (name)",
                 "INSERT INTO items VALUES (2, 'b')")  # fmt: skip
        stream.catch_up()

    assert move.rows("items") == ["(1,a)", "(2,b)"]


@pytest.mark.parametrize(
    "change", ["UPDATE items SET name = 'x'", "DELETE FROM items"], ids=["update", "delete"]
)
def test_stream_stops_when_the_target_lost_a_row(move: Any, change: str) -> None:
    move.pair("items", "id integer, name text")
    move.begin()

    with move.stream() as stream:
        move.run("INSERT INTO items VALUES (1, 'a'), (2, 'b')")
        stream.catch_up()
        move.execute(move.target, "DELETE FROM public.items WHERE id = 2")
        move.run(change)
        error = stream.failure()

    assert isinstance(error, BrokenStreamError)
    assert "(2)" in error.detail
    assert move.rows("items") == ["(1,a)"]


def test_stream_stops_at_a_real_conflict_and_loses_nothing(move: Any) -> None:
    move.pair("items", "id integer, email text",
              target="CREATE UNIQUE INDEX items_email ON items (tenant_id, email)")  # fmt: skip
    move.begin()

    with move.stream() as stream:
        move.run("INSERT INTO items VALUES (1, 'a')")
        stream.catch_up()
        move.run("INSERT INTO items VALUES (2, 'a')")
        error = stream.failure()
    position = move.record.position
    move.execute(move.target, "DROP INDEX public.items_email")
    with move.stream() as stream:
        stream.catch_up()

    assert isinstance(error, PermanentError)
    assert "items_email" in error.detail
    assert "(11111111-1111-1111-1111-111111111111, a)" in error.detail
    assert move.record.position > position
    assert move.rows("items") == ["(1,a)", "(2,a)"]


def test_stream_stops_at_an_enum_label_that_the_target_does_not_have(move: Any) -> None:
    for session in (move.owner, move.target):
        move.execute(session, "CREATE TYPE public.mood AS ENUM ('ok')")
    move.pair("items", "id integer, m public.mood")
    move.begin()

    with move.stream() as stream:
        move.run("ALTER TYPE public.mood ADD VALUE 'sad'", "INSERT INTO items VALUES (1, 'sad')")
        error = stream.failure()

    assert isinstance(error, PermanentError)
    assert "sad" in error.detail
