"""Hold, advance, release and stop, to the LSN, while writers keep writing."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest

from tenantferry.connections import open_connection, open_replication_connection
from tenantferry.control.streams import StreamCommand, StreamState, command
from tenantferry.errors import TransientError
from tenantferry.lsn import parse_lsn
from tenantferry.stream.handshake import (
    PositionPassedError,
    advance,
    hold,
    release,
    stop_at,
    wait_for_position,
)
from tenantferry.stream.marker import emit_marker


@contextmanager
def snapshot(move: Any) -> Iterator[tuple[int, list[str]]]:
    """The consistent point of a temporary slot, and the rows of the source at it."""
    with closing(open_replication_connection(move.source_params, purpose="snapshot")) as session:
        cursor = session.cursor()
        cursor.execute(
            "CREATE_REPLICATION_SLOT tenantferry_test_v TEMPORARY LOGICAL pgoutput EXPORT_SNAPSHOT"
        )
        [(_, point, name, _)] = cursor.fetchall()
        with closing(open_connection(move.source_params, purpose="reader")) as reader:
            move.execute(reader, "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            move.execute(reader, f"SET TRANSACTION SNAPSHOT '{name}'")
            rows = move.execute(reader, "SELECT ROW(id, name)::text FROM public.items")
        yield parse_lsn(point), sorted(row[0] for row in rows)


def test_advance_stands_at_exactly_a_snapshot_while_writers_write(move: Any) -> None:
    move.pair("items", "id integer, name text")
    move.begin()
    params, key = move.target_params, move.tenant.key

    with move.stream() as stream, move.writing():
        for _ in range(4):
            held_at = hold(params, key)
            with snapshot(move) as (point, expected):
                position = advance(params, key, point)
                actual = move.rows("items")
            release(params, key)

            assert held_at <= position == point
            assert actual == expected
            assert len(actual) > 0
    assert stream.result is not None


def test_advance_reaches_an_lsn_of_an_idle_source_at_once(move: Any) -> None:
    move.pair("items", "id integer, name text")
    move.begin()
    params, key = move.target_params, move.tenant.key

    with move.stream() as stream:
        stream.catch_up()
        hold(params, key)
        with snapshot(move) as (point, _):
            started = time.monotonic()
            position = advance(params, key, point)
            seconds = time.monotonic() - started

    assert position == point
    assert seconds < 0.9  # not by waiting for the next heartbeat


def test_hold_advance_and_stop_answer_within_milliseconds(move: Any) -> None:
    move.pair("items", "id integer, name text")
    move.begin()
    params, key = move.target_params, move.tenant.key
    seconds = []

    with move.stream() as stream:
        stream.catch_up()
        for _ in range(5):
            move.run("INSERT INTO items SELECT coalesce(max(id), 0) + 1, 'x' FROM items")
            started = time.monotonic()
            lsn = emit_marker(move.source, move.tenant)
            advance(params, key, lsn, exact=False)
            seconds.append(time.monotonic() - started)
            release(params, key)
        started = time.monotonic()
        stop_at(params, key, lsn)
        seconds.append(time.monotonic() - started)

    assert sorted(seconds)[2] < 0.2
    assert len(move.rows("items")) == 5


def test_stream_applies_nothing_while_it_holds(move: Any) -> None:
    move.pair("items", "id integer, name text")
    move.begin()
    params, key = move.target_params, move.tenant.key

    with move.stream() as stream:
        stream.catch_up()
        position = hold(params, key)
        move.run("INSERT INTO items VALUES (1, 'a')")
        lsn = emit_marker(move.source, move.tenant)
        with pytest.raises(TransientError, match="holding"):
            wait_for_position(params, key, lsn, timeout_seconds=1.5)
        held = move.record
        release(params, key)
        wait_for_position(params, key, lsn, timeout_seconds=10)

    assert held.state is StreamState.HOLDING
    assert held.position == position
    assert move.rows("items") == ["(1,a)"]


def test_advance_refuses_a_position_that_is_passed(move: Any) -> None:
    move.pair("items", "id integer, name text")
    move.begin()
    params, key = move.target_params, move.tenant.key

    with move.stream() as stream:
        lsn = emit_marker(move.source, move.tenant)
        stream.catch_up()
        with pytest.raises(PositionPassedError):
            advance(params, key, lsn)
        after = move.record.command
        position = advance(params, key, lsn, exact=False)

    assert after is StreamCommand.RUN
    assert position >= lsn


def test_a_hold_that_nobody_renews_ends_with_its_lease(move: Any) -> None:
    move.pair("items", "id integer, name text")
    move.begin()

    with move.stream() as stream:
        hold(move.target_params, move.tenant.key, lease_seconds=0.5)
        move.run("INSERT INTO items VALUES (1, 'a')")
        stream.catch_up()

    assert move.rows("items") == ["(1,a)"]
    assert move.record.command is StreamCommand.RUN


def test_stop_applies_everything_before_the_marker_and_ends_for_good(move: Any) -> None:
    move.pair("items", "id integer, name text")
    move.begin()
    params, key = move.target_params, move.tenant.key

    with move.stream() as stream:
        move.run("INSERT INTO items VALUES (1, 'a')")
        lsn = emit_marker(move.source, move.tenant)
        position = stop_at(params, key, lsn)
        stream.join()
    move.run("INSERT INTO items VALUES (2, 'b')")
    with move.stream() as again:
        again.join()

    assert position >= lsn
    assert stream.result is not None
    assert stream.result.reason.startswith("stopped")
    assert again.result == stream.result
    assert move.rows("items") == ["(1,a)"]


def test_release_lets_a_stopped_stream_go_on(move: Any) -> None:
    move.pair("items", "id integer, name text")
    move.begin()
    params, key = move.target_params, move.tenant.key
    with move.stream() as stream:
        stop_at(params, key, emit_marker(move.source, move.tenant))
        stream.join()
    move.run("INSERT INTO items VALUES (1, 'a')")

    release(params, key)
    with move.stream() as stream:
        stream.catch_up()

    assert move.rows("items") == ["(1,a)"]


def test_hold_withdraws_its_command_when_no_stream_answers(move: Any) -> None:
    move.pair("items", "id integer, name text")
    move.begin()

    with pytest.raises(TransientError, match="took longer"):
        hold(move.target_params, move.tenant.key, timeout_seconds=0.2)

    assert move.record.command is StreamCommand.RUN


def test_hold_fails_at_once_when_it_is_overruled(move: Any) -> None:
    move.pair("items", "id integer, name text")
    move.begin()
    timer = threading.Timer(0.3, lambda: release(move.target_params, move.tenant.key))
    timer.start()

    with pytest.raises(TransientError, match="overruled"):
        hold(move.target_params, move.tenant.key, timeout_seconds=20)
    timer.join()


def test_a_lost_notification_costs_a_second_and_nothing_else(move: Any) -> None:
    move.pair("items", "id integer, name text")
    move.begin()

    with move.stream() as stream:
        stream.catch_up()
        # As command() does it, without the NOTIFY.
        move.execute(
            move.target,
            "UPDATE tenantferry.streams SET command = 'hold', command_id = command_id + 1,"
            " lease_until = clock_timestamp() + interval '1 minute'",
        )
        deadline = time.monotonic() + 10
        while move.record.state is not StreamState.HOLDING and time.monotonic() < deadline:
            threading.Event().wait(0.05)
        state = move.record.state

    assert state is StreamState.HOLDING


def test_command_to_a_tenant_without_a_stream_says_so(move: Any) -> None:
    with pytest.raises(Exception, match="has no forward stream"):
        command(move.target, move.tenant.key, StreamCommand.RUN)
