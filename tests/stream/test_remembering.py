"""What a stream remembers of its writes, for a cutover to compare."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import pytest

from tenantferry.backfill.chunk import TEXT_SETTINGS
from tenantferry.connections import open_connection
from tenantferry.control.touched import Touched, read_touched
from tenantferry.errors import TransientError
from tenantferry.failpoints import Point, listening
from tenantferry.lsn import parse_lsn
from tenantferry.stream.handshake import advance, hold, release
from tenantferry.stream.marker import emit_marker
from tenantferry.stream.netchange import KeyedChanges
from tenantferry.stream.relations import StreamedTable, read_written_columns
from tenantferry.stream.remembering import Memory
from tenantferry.stream.staging import Stage


def touched(move: Any, *, since: int = 0) -> list[Touched] | None:
    found = read_touched(move.target, move.tenant.key, since=since or move.record.touched_since)
    return None if found is None else list(found)


def stop_and_go(move: Any) -> int:
    """Let the stream hold, as for a comparison that comes to nothing; return where."""
    position = hold(move.target_params, move.tenant.key)
    release(move.target_params, move.tenant.key)
    return position


def count_records(move: Any) -> int:
    [(count,)] = move.execute(move.target, "SELECT count(*) FROM tenantferry.touched")
    return int(count)


@pytest.mark.parametrize(
    "more", ["", ", more aclitem DEFAULT '=r/tenantferry'"], ids=["binary", "as text"]
)
def test_keys_of_several_columns_are_remembered_once(move: Any, more: str) -> None:
    move.pair("items", f"b integer, a text, note text{more}", key="a, b")
    move.begin()
    with move.stream() as stream:
        stop_and_go(move)

        move.run("INSERT INTO items VALUES (1, 'x'), (2, 'x'), (1, 'y')")
        stream.catch_up()
        move.run("UPDATE items SET note = 'changed'", "UPDATE items SET b = 3 WHERE b = 2")
        stream.catch_up()

    [found] = touched(move) or []
    assert found.key_columns == ("a", "b")
    assert sorted(found.keys) == [("x", "1"), ("x", "2"), ("x", "3"), ("y", "1")]


def test_keys_whose_columns_sort_differently_are_remembered(move: Any) -> None:
    move.pair("items", 'a text COLLATE "C", b text COLLATE "POSIX"', key="a, b")
    move.begin()
    with move.stream() as stream:
        stop_and_go(move)
        move.run("INSERT INTO items VALUES ('x', 'y'), ('x', 'Y')")
        stream.catch_up()

    [found] = touched(move) or []
    assert sorted(found.keys) == [("x", "Y"), ("x", "y")]


def test_nothing_is_recorded_where_every_key_is_known(move: Any) -> None:
    move.pair("items", "id integer, note text")
    move.begin()
    with move.stream() as stream:
        stop_and_go(move)
        move.run("INSERT INTO items VALUES (1, 'first'), (2, 'first')")
        stream.catch_up()
        for number in range(3):
            move.run(f"UPDATE items SET note = '{number}'", "DELETE FROM items WHERE id = 2")
            stream.catch_up()
            move.run("INSERT INTO items VALUES (2, 'again')")
            stream.catch_up()

    assert count_records(move) == 1


def test_everything_behind_a_comparison_is_remembered_anew(move: Any) -> None:
    """At V, to which the stream is moved between its hold and its release."""
    move.pair("items", "id integer, note text")
    move.begin()
    with move.stream() as stream:
        stop_and_go(move)
        move.run("INSERT INTO items VALUES (1, 'before')")
        stream.catch_up()
        hold(move.target_params, move.tenant.key)
        move.run("UPDATE items SET note = 'before V'")
        [(text,)] = move.execute(move.source, "SELECT pg_current_wal_insert_lsn()::text")
        lsn = parse_lsn(text)
        emit_marker(move.source, move.tenant)
        advance(move.target_params, move.tenant.key, lsn)
        release(move.target_params, move.tenant.key)
        move.run("UPDATE items SET note = 'behind V'")
        stream.catch_up()

    assert touched(move, since=lsn) == [Touched("public", "items", ("id",), (("1",),))]


def test_a_stream_that_starts_anew_takes_nothing_for_recorded(move: Any) -> None:
    move.pair("items", "id integer, note text")
    move.begin()
    with move.stream() as stream:
        stop_and_go(move)
        move.run("INSERT INTO items VALUES (1, 'first')")
        stream.catch_up()
    position = move.record.position

    with move.stream() as stream:
        move.run("UPDATE items SET note = 'second'")
        stream.catch_up()

    assert touched(move, since=position) == [Touched("public", "items", ("id",), (("1",),))]


@pytest.mark.parametrize(
    "point", [Point.STAGED, Point.WRITTEN, Point.POSITION_WRITTEN, Point.COMMITTED]
)
def test_a_stream_that_dies_in_a_batch_loses_no_key(move: Any, point: Point) -> None:
    move.pair("items", "id integer, note text")
    move.begin()
    # In the batch of the rows, not in one that only moves P.
    todo = list(dict.fromkeys([Point.STAGED, point]))

    def die(reached: Point) -> None:
        if todo[:1] != [reached]:
            return
        todo.pop(0)
        if not todo:
            raise TransientError("died")

    with move.stream() as stream:
        stop_and_go(move)
        move.run("INSERT INTO items VALUES (1, 'known'), (2, 'known')")
        stream.catch_up()
        with listening(die):
            move.run("UPDATE items SET note = 'changed'", "INSERT INTO items VALUES (3, 'new')")
            stream.failure()
    position = move.record.position
    with move.stream() as stream:
        stream.catch_up()

    [found] = touched(move) or []
    assert sorted(found.keys) == [("1",), ("2",), ("3",)]
    if point is not Point.COMMITTED:
        # What is applied behind P is recorded as such, though it was known before.
        [found] = touched(move, since=position) or []
        assert sorted(found.keys) == [("1",), ("2",), ("3",)]


@pytest.mark.parametrize("is_committed", [True, False], ids=["committed", "rolled back"])
def test_note_takes_for_recorded_only_what_is_committed(move: Any, is_committed: bool) -> None:
    move.pair("items", "id integer, note text")
    move.begin()
    with closing(
        open_connection(move.target_params, purpose="test", settings=TEXT_SETTINGS)
    ) as session:
        columns = tuple(
            c for c in read_written_columns(session, "public", "items") if c.name == "id"
        )
        stage = Stage(StreamedTable("public", "items", columns, (0,)), number=1, text_columns=set())
        memory = Memory(move.tenant.key, is_on=True)
        memory.begin()
        changes = KeyedChanges((0,))
        changes.delete([b"\0\0\0\4\0\0\0\7"])

        with session.cursor() as cursor:
            for position in (1, 2):
                memory.forget_uncommitted()
                memory.note(cursor, stage, changes, position=position)
                if position == 2 or is_committed:
                    session.commit()
                    memory.mark_committed()
                else:
                    session.rollback()

    found = move.execute(move.target, "SELECT written_after::text, keys FROM tenantferry.touched")
    assert found == [("0/1" if is_committed else "0/2", ["7"])]
