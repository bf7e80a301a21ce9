"""What a stream makes of a target that does not hold what it should."""

from __future__ import annotations

from typing import Any

import pytest

from tenantferry.errors import PermanentError
from tenantferry.stream.netchange import BrokenStreamError


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
