"""A stream that is slowed down, and an order that is not."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tenantferry.stream.handshake import advance, hold, release
from tenantferry.stream.marker import emit_marker
from tenantferry.throttle import throttle as throttle_module
from tenantferry.throttle.throttle import Throttle


@pytest.fixture
def throttle(monkeypatch: pytest.MonkeyPatch) -> Throttle:
    """One that slows down everything, for as long as the test runs."""
    monkeypatch.setattr(throttle_module, "STALE_SECONDS", 600.0)
    monkeypatch.setattr(throttle_module, "LONGEST_WAIT_SECONDS", 600.0)
    throttle = Throttle()
    throttle.see("test")
    return throttle


def test_a_throttled_stream_applies_nothing_until_it_is_told_to_advance(
    move: Any, throttle: Throttle
) -> None:
    move.pair("items", "id integer, name text")
    move.begin()
    params, key = move.target_params, move.tenant.key

    with move.stream(throttle=throttle):
        move.run("INSERT INTO items VALUES (1, 'one')")
        wait_for_reports(move)
        written_before = move.rows_of_ids("items")
        started = time.monotonic()
        hold(params, key)
        move.run("INSERT INTO items VALUES (2, 'two')")
        advance(params, key, emit_marker(move.source, move.tenant))
        seconds = time.monotonic() - started
        written = move.rows_of_ids("items")
        release(params, key)

    assert written_before == []
    assert written == [1, 2]
    assert seconds < 2


def test_a_stream_goes_on_when_nothing_slows_it_down_any_more(
    move: Any, throttle: Throttle
) -> None:
    move.pair("items", "id integer, name text")
    move.begin()

    with move.stream(throttle=throttle) as stream:
        move.run("INSERT INTO items VALUES (1, 'one')")
        wait_for_reports(move)
        throttle.see(None)
        stream.catch_up()

    assert move.rows_of_ids("items") == [1]


def test_a_throttled_stream_leaves_on_the_source_what_it_does_not_apply(
    move: Any, throttle: Throttle
) -> None:
    move.pair("items", "id integer, name text")
    move.begin()
    move.run("ALTER TABLE items ALTER name SET STORAGE EXTERNAL")

    with move.stream(throttle=throttle, batch_bytes=1 << 20):
        for number in range(40):
            move.run(f"INSERT INTO items VALUES ({number}, repeat('x', 1000000))")
        wait_for_reports(move)
        [(kept,)] = move.execute(
            move.source,
            "SELECT pg_current_wal_lsn() - sent_lsn FROM pg_stat_replication"
            " JOIN pg_replication_slots ON active_pid = pid WHERE slot_name = %s",
            move.tenant.slot,
        )

    # Both ends of the connection hold some.
    assert kept > 15_000_000


def wait_for_reports(move: Any) -> None:
    """Wait for two reports, a second apart: a stream that is not slowed down is done by then."""
    seen: set[Any] = set()
    deadline = time.monotonic() + 30
    while len(seen) < 3:
        assert time.monotonic() < deadline
        if move.record.state == "running":
            seen.add(move.record.reported_at)
