"""A source that fails over to a physical standby: the move goes on, or says that it cannot."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from slots import drop_slots
from standby import create_standby, cut_off, wait_until_replayed, wait_until_true
from tenantferry.control.streams import StreamState
from tenantferry.errors import TransientError
from tenantferry.local.postgres import PostgresServer
from tenantferry.stream.standing import ForkedError
from tenantferry.stream.takeover import LostChangesError
from tenantferry.stream.walsender import Walsender
from tenantferry.timelines import Timeline

FailOver = Callable[[PostgresServer], None]
# Takes about 3 MB of the log.
LARGE = "(SELECT string_agg(md5(i::text), '') FROM generate_series(1, 100000) AS i)"

newest = pytest.mark.parametrize("source_server", ["newest"], indirect=True)


@pytest.fixture
def source_server(
    request: pytest.FixtureRequest,
    source_server: PostgresServer,
    newest_source_server: PostgresServer,
) -> PostgresServer:
    """The primary."""
    return newest_source_server if hasattr(request, "param") else source_server


@pytest.fixture
def copied(source_server: PostgresServer) -> Iterator[Callable[..., PostgresServer]]:
    """Make standbys of the primary that are gone after the test."""
    standbys: list[PostgresServer] = []

    def copy(**settings: str) -> PostgresServer:
        standbys.append(create_standby(source_server, **settings))
        return standbys[-1]

    yield copy
    for standby in standbys:
        standby.stop("immediate")
        shutil.rmtree(standby.directory)
    drop_slots(source_server, "slot_type = 'physical'")


@pytest.fixture
def fail_over(move: Any) -> FailOver:
    """Promote a standby, and let the move reach it as its source."""

    def promote(standby: PostgresServer) -> None:
        standby.psql("-c", "SELECT pg_promote()")
        move.reach_source(standby.superuser.port)

    return promote


def begin(move: Any) -> None:
    """Let the stream begin as a backfill does."""
    move.pair("items", "id integer, name text")
    move.backfill()


def stream_rows(move: Any, *statements: str) -> None:
    with move.stream() as stream:
        move.run(*statements)
        stream.catch_up()


def create_slot_by_hand(move: Any) -> None:
    move.execute(
        move.source, "SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", move.tenant.slot
    )


def copy_slot(move: Any, stream: Any, primary: PostgresServer, standby: PostgresServer) -> None:
    """Let a standby keep the slot, which it does once the primary's has moved beyond the copy's."""
    is_kept = (
        "SELECT count(*) FROM pg_replication_slots WHERE synced AND NOT temporary"
        f" AND slot_name = '{move.tenant.slot}'"
    )
    deadline = time.monotonic() + 60
    while standby.psql("-c", is_kept) != "1":
        assert time.monotonic() < deadline
        primary.psql("-c", "SELECT pg_log_standby_snapshot()")
        stream.catch_up()
        wait_until_replayed(primary, standby)


def test_a_source_that_lacks_what_the_target_has_is_noticed(
    move: Any, copied: Callable[..., PostgresServer], fail_over: FailOver
) -> None:
    """The slot was made again by hand, and begins before P: nothing else speaks against it."""
    begin(move)
    standby = copied()
    cut_off(standby)
    stream_rows(
        move,
        "INSERT INTO items VALUES (1, 'only the old primary has it')",
        f"INSERT INTO items VALUES (2, {LARGE})",
    )
    fail_over(standby)
    create_slot_by_hand(move)
    move.run("INSERT INTO items VALUES (3, 'only the new one has it')")

    with move.stream() as stream:
        error = stream.failure()

    assert isinstance(error, ForkedError)
    assert "lacks transactions that the target has" in error.message
    assert "on timeline 2, and was only up to" in error.detail
    assert '"backfill"' in error.hint
    assert move.record.state is StreamState.FAILED
    assert move.rows_of_ids("items") == [1, 2]


def test_a_standby_that_does_not_have_the_slot_is_told_of(
    *,
    move: Any,
    source_server: PostgresServer,
    copied: Callable[..., PostgresServer],
    fail_over: FailOver,
) -> None:
    begin(move)
    standby = copied()
    stream_rows(move, "INSERT INTO items VALUES (1, 'a')")
    move.execute(
        move.target, "UPDATE tenantferry.streams SET confirmed = confirmed + (1 << 30)::numeric"
    )
    wait_until_replayed(source_server, standby)
    fail_over(standby)

    with move.stream() as stream:
        missing = stream.failure()
    move.run("INSERT INTO items VALUES (2, 'b')")
    create_slot_by_hand(move)
    with move.stream() as stream:
        too_late = stream.failure()

    assert isinstance(missing, LostChangesError)
    assert "does not exist" in missing.message
    assert "failed over" in missing.detail
    # What was confirmed on the old timeline says nothing about a slot on the new one.
    assert isinstance(too_late, LostChangesError)
    assert "was consumed" in too_late.message


def test_a_stream_does_not_start_on_another_server_than_it_has_looked_at(move: Any) -> None:
    begin(move)

    with pytest.raises(TransientError, match="not the one that was looked at"):
        Walsender(
            move.source_params, slot=move.tenant.slot, purpose="test", position=0, binary=False,
            timeline=Timeline(7, None),
        )  # fmt: skip


@newest
def test_a_move_goes_on_behind_a_standby_that_has_the_slot(
    *,
    move: Any,
    source_server: PostgresServer,
    copied: Callable[..., PostgresServer],
    fail_over: FailOver,
) -> None:
    if source_server.installation.major < 17:
        pytest.skip("slots can be synchronized from PostgreSQL 17 on")
    source_server.psql("-c", "SELECT pg_create_physical_replication_slot('standby', true)")
    begin(move)
    standby = copied(
        primary_slot_name="standby", hot_standby_feedback="on", sync_replication_slots="on"
    )
    with move.stream() as stream:
        move.run("INSERT INTO items VALUES (1, 'a')", "INSERT INTO items VALUES (2, 'b')")
        copy_slot(move, stream, source_server, standby)
    move.run("UPDATE items SET name = 'c' WHERE id = 1")
    wait_until_replayed(source_server, standby)
    fail_over(standby)
    before = move.record

    stream_rows(move, "DELETE FROM items WHERE id = 2", "INSERT INTO items VALUES (3, 'd')")

    assert before.timeline == Timeline(1, 0)
    assert move.record.timeline == Timeline(2, move.record.timeline.began)
    assert before.position <= move.record.timeline.began < move.record.position
    assert move.rows("items") == move.source_rows("items") == ["(1,c)", "(3,d)"]


@newest
def test_another_timeline_of_the_same_number_is_noticed(
    *,
    move: Any,
    source_server: PostgresServer,
    copied: Callable[..., PostgresServer],
    fail_over: FailOver,
) -> None:
    """The second standby never heard of the first one's promotion, and has the slot, too."""
    if source_server.installation.major < 17:
        pytest.skip("slots can be synchronized from PostgreSQL 17 on")
    begin(move)
    standbys = []
    for name in ("first", "second"):
        source_server.psql("-c", f"SELECT pg_create_physical_replication_slot('{name}', true)")
        settings = {"hot_standby_feedback": "on", "sync_replication_slots": "on"}
        standbys.append(copied(primary_slot_name=name, **settings))
    first, second = standbys
    with move.stream() as stream:
        move.run("INSERT INTO items VALUES (1, 'both have it')")
        copy_slot(move, stream, source_server, first)
        copy_slot(move, stream, source_server, second)
    cut_off(second)
    stream_rows(move, "INSERT INTO items VALUES (2, 'only the first one has it')")
    wait_until_replayed(source_server, first)
    fail_over(first)
    stream_rows(move, "INSERT INTO items VALUES (3, 'only the first one has it')")
    first.stop("immediate")
    fail_over(second)
    move.run(f"INSERT INTO items VALUES (4, {LARGE})")
    before = move.record

    with move.stream() as stream:
        error = stream.failure()
    with move.stream() as stream:
        again = stream.failure()

    assert isinstance(error, ForkedError)
    assert "is on another timeline 2, which began at" in error.detail
    assert str(again) == str(error)
    assert (move.record.position, move.record.timeline) == (before.position, before.timeline)
    assert move.rows_of_ids("items") == [1, 2, 3]


def test_a_stream_that_does_not_know_where_its_timeline_began_learns_it(move: Any) -> None:
    """As one of an earlier version."""
    begin(move)
    move.execute(move.target, "UPDATE tenantferry.streams SET timeline_began = NULL")

    stream_rows(move, "INSERT INTO items VALUES (1, 'a')")

    assert move.record.timeline == Timeline(1, 0)
    assert move.rows("items") == ["(1,a)"]


def test_a_standby_that_is_not_promoted_is_no_source_yet(
    move: Any, copied: Callable[..., PostgresServer]
) -> None:
    begin(move)
    standby = copied()
    cut_off(standby)
    stream_rows(move, "INSERT INTO items VALUES (1, 'a')")
    primary = move.source_params
    move.source_params = replace(primary, port=standby.superuser.port)

    with move.stream() as stream:
        error = stream.failure()
    move.source_params = primary
    stream_rows(move, "INSERT INTO items VALUES (2, 'b')")

    assert isinstance(error, TransientError)
    assert "in recovery" in error.detail
    assert move.rows_of_ids("items") == [1, 2]


@newest
def test_a_slot_that_was_idle_for_too_long_is_noticed(
    move: Any, source_server: PostgresServer
) -> None:
    if source_server.installation.major < 18:
        pytest.skip("idle slots are invalidated from PostgreSQL 18 on")
    begin(move)
    try:
        source_server.psql("-c", "ALTER SYSTEM SET idle_replication_slot_timeout = '1s'",
                           "-c", "SELECT pg_reload_conf()")  # fmt: skip
        wait_until_true(
            source_server,
            "CHECKPOINT; SELECT invalidation_reason IS NOT NULL FROM pg_replication_slots"
            f" WHERE slot_name = '{move.tenant.slot}'",
        )
    finally:
        source_server.psql("-c", "ALTER SYSTEM RESET idle_replication_slot_timeout",
                           "-c", "SELECT pg_reload_conf()")  # fmt: skip

    with move.stream() as stream:
        error = stream.failure()

    assert isinstance(error, LostChangesError)
    assert '"idle_timeout"' in error.detail
