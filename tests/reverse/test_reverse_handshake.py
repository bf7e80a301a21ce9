"""A reverse stream stands where it is told to, while the others go on."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import pytest

from reverse_stage import execute, wait_until
from tenantferry.connections import open_connection
from tenantferry.control.direction import Direction
from tenantferry.control.streams import StreamCommand, StreamState, command
from tenantferry.errors import TransientError
from tenantferry.lsn import parse_lsn
from tenantferry.stream.handshake import (
    PositionPassedError,
    advance,
    hold,
    release,
    wait_for_position,
)
from tenantferry.stream.marker import emit_marker

REVERSE = Direction.REVERSE


def current_lsn(way: Any) -> int:
    """Return a position of the target at which nothing is in flight."""
    [(text,)] = execute(way.target, "SELECT pg_current_wal_insert_lsn()::text")
    return parse_lsn(text)


def stored_position(way: Any, key: str) -> int:
    """Return the position that the source itself holds."""
    [(text,)] = execute(way[key].source, "SELECT position::text FROM tenantferry.reverse_positions")
    return parse_lsn(text)


@pytest.fixture
def live(way: Any) -> Any:
    """Two live tenants with one table."""
    way.table("items", "id integer, name text")
    way.ensure()
    way.go_live()
    return way


def test_hold_and_advance_cut_exactly_between_two_transactions(live: Any) -> None:
    acme = live["acme"]

    with live.follow() as following:
        acme.write("INSERT INTO items VALUES (1, 'before')")
        following.catch_up("acme")
        held = hold(live.target_params, "acme", direction=REVERSE)
        acme.write("INSERT INTO items VALUES (2, 'below')", "DELETE FROM items WHERE id = 1")
        lsn = current_lsn(live)
        acme.write("INSERT INTO items VALUES (3, 'beyond')")
        # What is held is read all the same: the others go on.
        live["globex"].write("INSERT INTO items VALUES (9, 'other')")
        following.catch_up("globex")
        while_held = acme.rows("items")
        reached = advance(live.target_params, "acme", lsn, direction=REVERSE)
        at_lsn, stored = acme.rows("items"), stored_position(live, "acme")
        release(live.target_params, "acme", direction=REVERSE)
        following.catch_up("acme")

    assert held <= lsn
    assert while_held == ["(1,before)"]
    assert (reached, stored) == (lsn, lsn)
    assert at_lsn == ["(2,below)"]
    assert acme.rows("items") == ["(2,below)", "(3,beyond)"]
    assert live["globex"].rows("items") == ["(9,other)"]


def test_advance_reaches_a_position_of_an_idle_target(live: Any) -> None:
    with live.follow() as following:
        following.catch_up()
        hold(live.target_params, "acme", direction=REVERSE)
        lsn = current_lsn(live)

        reached = advance(live.target_params, "acme", lsn, direction=REVERSE)

    assert reached == lsn == stored_position(live, "acme")


def test_advance_stands_exactly_there_while_its_source_is_slow_and_others_go_on(live: Any) -> None:
    acme = live["acme"]
    with live.follow() as following, ThreadPoolExecutor(1) as pool:
        acme.write("INSERT INTO items VALUES (1, 'a')")
        following.catch_up("acme")
        hold(live.target_params, "acme", direction=REVERSE)
        lsn = current_lsn(live)
        live["globex"].write("INSERT INTO items VALUES (9, 'other')")
        with closing(open_connection(acme.params, purpose="slow")) as slow:
            execute(slow, "SELECT FROM tenantferry.reverse_positions FOR UPDATE")
            advanced = pool.submit(advance, live.target_params, "acme", lsn, direction=REVERSE)
            # A report of what was read meanwhile, beyond where it shall stand.
            wait_until(lambda: live.record("acme").command is StreamCommand.ADVANCE)
            told_at = datetime.now(UTC)
            wait_until(lambda: live.record("acme").reported_at > told_at)
            assert live.slot.read_to > lsn
            assert not advanced.done()
        reached = advanced.result(30)

    assert reached == lsn == stored_position(live, "acme")


def test_advance_to_a_marker_takes_a_moment_when_the_session_is_open(live: Any) -> None:
    with live.follow() as following:
        live["acme"].write("INSERT INTO items VALUES (1, 'a')")
        following.catch_up("acme")
        seconds = []
        for _ in range(10):
            began = time.monotonic()
            lsn = emit_marker(live.target, live["acme"].tenant)
            advance(live.target_params, "acme", lsn, exact=False, direction=REVERSE)
            seconds.append(time.monotonic() - began)
            release(live.target_params, "acme", direction=REVERSE)

    # A second, the polling of either side, would show here. Each try opens sessions of its own.
    assert sorted(seconds)[5] < 0.2


def test_advance_refuses_a_position_that_was_passed(live: Any) -> None:
    lsn = current_lsn(live)

    with live.follow() as following:
        live["acme"].write("INSERT INTO items VALUES (1, 'a')")
        following.catch_up("acme")

        with pytest.raises(PositionPassedError):
            advance(live.target_params, "acme", lsn, direction=REVERSE)

        following.catch_up("acme")


def test_a_lease_that_nobody_renews_ends(live: Any) -> None:
    with live.follow() as following:
        following.catch_up("acme")
        hold(live.target_params, "acme", lease_seconds=0.5, direction=REVERSE)
        live["acme"].write("INSERT INTO items VALUES (1, 'a')")

        wait_until(lambda: live["acme"].rows("items") == ["(1,a)"])

        wait_until(lambda: live.record("acme").state is StreamState.RUNNING)
        assert live.record("acme").command is StreamCommand.RUN


def test_a_hold_survives_a_restart(live: Any) -> None:
    with live.follow() as following:
        following.catch_up("acme")
        hold(live.target_params, "acme", direction=REVERSE)
    live["acme"].write("INSERT INTO items VALUES (1, 'a')")
    lsn = current_lsn(live)
    live["acme"].write("INSERT INTO items VALUES (2, 'b')")

    with live.follow() as following:
        following.catch_up("globex")
        before = live["acme"].rows("items")
        advance(live.target_params, "acme", lsn, direction=REVERSE)
        at_lsn = live["acme"].rows("items")
        release(live.target_params, "acme", direction=REVERSE)
        following.catch_up("acme")

    assert before == []
    assert at_lsn == ["(1,a)"]
    assert live["acme"].rows("items") == ["(1,a)", "(2,b)"]


def test_advance_with_a_large_transaction_on_its_way_applies_what_is_complete(live: Any) -> None:
    acme = live["acme"]

    with live.follow(memory_bytes=1 << 20) as following:
        following.catch_up("acme")
        hold(live.target_params, "acme", direction=REVERSE)
        acme.write("INSERT INTO items VALUES (1, 'small')")
        with open_connection(live.target_params, purpose="large") as large:
            execute(large, "SET search_path = public")
            execute(
                large,
                "INSERT INTO items SELECT i, 'large', %s FROM generate_series(10, 5000) AS i",
                str(acme.tenant.id),
            )
            lsn = current_lsn(live)
        large.close()
        following.catch_up("globex")

        advance(live.target_params, "acme", lsn, direction=REVERSE)
        at_lsn = acme.rows("items")
        release(live.target_params, "acme", direction=REVERSE)
        following.catch_up("acme")

    assert at_lsn == ["(1,small)"]
    assert acme.rows("items") == acme.target_rows("items")


def test_wait_for_position_says_what_a_stream_lacks(live: Any) -> None:
    with live.follow(), live.away("acme"):
        live["acme"].write("INSERT INTO items VALUES (1, 'a')")
        lsn = emit_marker(live.target, live["acme"].tenant)
        wait_until(lambda: live.record("acme").state is StreamState.FAILED)

        with pytest.raises(TransientError, match="connection of tenant") as error:
            wait_for_position(
                live.target_params, "acme", lsn, timeout_seconds=0.2, direction=REVERSE
            )

    assert "reverse_stream" in error.value.hint


def test_a_command_is_tried_at_once_although_the_source_failed_before(live: Any) -> None:
    with live.follow() as following:
        with live.away("acme"):
            live["acme"].write("INSERT INTO items VALUES (1, 'a')")
            wait_until(lambda: live.record("acme").state is StreamState.FAILED)
            # So that the next try would be some seconds away.
            threshold = time.monotonic() + 3
            wait_until(lambda: time.monotonic() > threshold)
        began = time.monotonic()
        command(live.target, "acme", StreamCommand.RUN, direction=REVERSE)
        wait_until(lambda: live["acme"].rows("items") == ["(1,a)"])
        seconds = time.monotonic() - began
        following.catch_up("acme")

    assert seconds < 1.5
