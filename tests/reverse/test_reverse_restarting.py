"""Reverse streams that are killed anywhere go on exactly where each source stands."""

from __future__ import annotations

import dataclasses
import random
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest

from reverse_stage import Following, Way, drop_slot, execute, start_process, wait_until
from tenantferry.connections import open_connection
from tenantferry.control.direction import Direction
from tenantferry.control.graces import REVERSE_SLOT
from tenantferry.control.reverse_slot import read_reverse_slot
from tenantferry.control.streams import StreamState
from tenantferry.errors import PermanentError, TransientError
from tenantferry.lsn import format_lsn, parse_lsn
from tenantferry.reverse.positions import close_position, reopen_position
from tenantferry.stream.handshake import wait_for_position
from tenantferry.stream.marker import emit_marker

_IS_IDLE = "SELECT active_pid IS NULL FROM pg_replication_slots WHERE slot_name = %s"


def wait_until_applied(way: Way, process: subprocess.Popen[str], key: str) -> None:
    """Wait until a source has taken something that it did not have."""
    query = "SELECT position::text FROM tenantferry.reverse_positions"
    before: list[tuple[Any, ...]] = []
    if execute(way[key].source, "SELECT to_regclass('tenantferry.reverse_positions')") != [(None,)]:
        before = execute(way[key].source, query)

    def has_moved() -> bool:
        assert process.poll() is None, process.stderr and process.stderr.read()
        found = execute(way[key].source, "SELECT to_regclass('tenantferry.reverse_positions')")
        return found != [(None,)] and execute(way[key].source, query) != before

    wait_until(has_moved)


@contextmanager
def writing(way: Way) -> Iterator[None]:
    """Let the clients of every tenant write until the block ends."""
    done = threading.Event()

    def write(key: str, role: str, schema: str) -> None:
        with closing(
            open_connection(way.target_params, purpose="writer", autocommit=True)
        ) as session:
            execute(session, f"SET row_security = on; SET ROLE {role}")
            execute(session, f"SET search_path = {schema}, public")
            step = 0
            while not done.is_set():
                step += 1
                execute(
                    session,
                    "WITH new AS (INSERT INTO items VALUES (%s, 'new') RETURNING id, name)"
                    " INSERT INTO log (id, name) SELECT id, name FROM new",
                    step,
                )
                execute(session, "UPDATE items SET name = %s WHERE id = %s", f"s{step}", step - 3)
                execute(session, "DELETE FROM items WHERE id = %s", step - 7)

    threads = [
        threading.Thread(target=write, args=(key, side.tenant.role, side.tenant.schema_name))
        for key, side in way.sides.items()
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join()


@pytest.fixture
def live(way: Way) -> Way:
    """Two live tenants; the table ``log`` has no key that would refuse a row applied twice."""
    way.table("items", "id integer, name text")
    way.table("log", "id integer, name text", key="")
    way.ensure()
    way.go_live()
    return way


def check_equal(way: Way) -> None:
    """Compare every row of both sides."""
    for side in way.sides.values():
        for table in ("items", "log"):
            assert side.rows(table) == side.target_rows(table)


def test_reverse_applies_exactly_once_across_kills_gotcha_6(live: Any) -> None:
    chance = random.Random(7)

    with writing(live):
        for _ in range(4):
            process = start_process(live)
            wait_until_applied(live, process, "acme")
            threading.Event().wait(chance.random() * 0.4)
            process.send_signal(signal.SIGKILL)
            process.wait()
    with live.follow() as following:
        following.catch_up()

    check_equal(live)
    assert len(live["acme"].rows("log")) > 50


def test_reverse_applies_exactly_once_when_it_is_killed_after_any_step(live: Any) -> None:
    steps = [
        ("Board", "follow", 1),  # the first start only
        ("SourceProgress", "record", 3),  # not committed
        ("Lane", "applied", 3),  # committed, not reported
        ("Board", "report", 3),  # reported, the slot not recorded
        ("Board", "record_slot", 3),  # recorded, not confirmed
        ("Walsender", "confirm", 3),
    ]

    with writing(live):
        for step in steps:
            process = start_process(live, fatal=step)
            assert process.wait(60) == -signal.SIGKILL, step
    with live.follow() as following:
        following.catch_up()

    check_equal(live)
    assert len(live["acme"].rows("log")) > 50


def test_reverse_applies_nothing_twice_that_the_slot_sends_again(live: Any) -> None:
    nowhere = dataclasses.replace(live["globex"].params, port=1)
    process = start_process(live, params={"globex": nowhere})
    # The slot is not confirmed beyond what globex lacks, whatever acme has.
    live["globex"].write("INSERT INTO log VALUES (1, 'globex')")
    live["acme"].write("INSERT INTO log VALUES (1, 'a')")
    wait_until_applied(live, process, "acme")
    live["acme"].write("INSERT INTO log VALUES (2, 'b')")
    wait_until_applied(live, process, "acme")
    process.send_signal(signal.SIGKILL)
    process.wait()
    confirmed = execute(
        live.target,
        "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = %s",
        REVERSE_SLOT,
    )
    applied = execute(
        live["acme"].source, "SELECT position::text FROM tenantferry.reverse_positions"
    )

    with live.follow() as following:
        live["acme"].write("INSERT INTO log VALUES (3, 'c')")
        following.catch_up()

    assert parse_lsn(confirmed[0][0]) < parse_lsn(applied[0][0])
    check_equal(live)
    assert live["acme"].rows("log") == ["(1,a)", "(2,b)", "(3,c)"]


def test_reverse_applies_exactly_once_when_the_source_is_down_at_the_start(live: Any) -> None:
    process = start_process(live)
    live["acme"].write("INSERT INTO log VALUES (1, 'applied')")
    wait_until_applied(live, process, "acme")
    process.send_signal(signal.SIGKILL)
    process.wait()
    live["acme"].write("INSERT INTO log VALUES (2, 'not yet')")

    with live.follow() as following, live.away("acme"):
        # Of both transactions the stream cannot know which of them the source has.
        live["globex"].write("INSERT INTO log VALUES (1, 'globex')")
        following.catch_up("globex")
        wait_until(lambda: live.record("acme").state is StreamState.FAILED)
        live.sides["acme"].is_reachable = True
        following.catch_up("acme")

    check_equal(live)
    assert live["acme"].rows("log") == ["(1,applied)", '(2,"not yet")']


def test_the_newest_process_takes_over(live: Any) -> None:
    with live.follow() as first:
        live["acme"].write("INSERT INTO log VALUES (1, 'a')")
        first.catch_up()
        with live.follow() as second:
            error = first.failure()
            live["acme"].write("INSERT INTO log VALUES (2, 'b')")
            second.catch_up()

    assert isinstance(error, TransientError)
    check_equal(live)


def test_a_source_taken_over_by_another_process_is_not_written_twice(live: Any) -> None:
    with live.follow() as following:
        live["acme"].write("INSERT INTO log VALUES (1, 'a')")
        following.catch_up("acme")
        # As if another process had applied the next transaction.
        lsn = emit_marker(live.target, live["acme"].tenant)
        execute(
            live["acme"].source,
            "UPDATE tenantferry.reverse_positions SET position = %s",
            format_lsn(lsn),
        )
        live["acme"].write("INSERT INTO log VALUES (2, 'b')")
        following.catch_up("acme")

    assert live["acme"].rows("log") == ["(1,a)", "(2,b)"]


def test_nothing_is_applied_behind_a_closed_position(live: Any) -> None:
    acme = live["acme"]

    with live.follow() as following:
        acme.write("INSERT INTO log VALUES (1, 'a')")
        following.catch_up("acme")
        close_position(acme.source, live.grace("acme"))
        acme.write("INSERT INTO log VALUES (2, 'b')")
        wait_until(lambda: live.record("acme").state is StreamState.FAILED)
        closed = acme.rows("log")
        reopen_position(acme.source, live.grace("acme"))
        following.catch_up("acme")

    assert closed == ["(1,a)"]
    assert acme.rows("log") == ["(1,a)", "(2,b)"]


@pytest.mark.parametrize("is_restarted", [False, True], ids=["same process", "next process"])
def test_a_source_that_went_back_in_time_loses_its_way_back(
    live: Any, *, is_restarted: bool
) -> None:
    acme, slot = live["acme"], "SELECT confirmed_flush_lsn::text FROM pg_replication_slots"
    position = "SELECT position FROM tenantferry.reverse_positions"

    def write_and_confirm(following: Following) -> None:
        acme.write("INSERT INTO log VALUES (2, 'lost')")
        following.catch_up("acme")
        lsn = emit_marker(live.target, acme.tenant)
        wait_until(lambda: parse_lsn(execute(live.target, slot)[0][0]) >= lsn)

    def go_back() -> None:
        # As a standby that had not received it, when it is promoted.
        execute(acme.source, "DELETE FROM public.log WHERE id = 2")
        execute(acme.source, "UPDATE tenantferry.reverse_positions SET position = %s", before)
        acme.write("INSERT INTO log VALUES (3, 'later')")

    with live.follow() as following:
        acme.write("INSERT INTO log VALUES (1, 'kept')")
        following.catch_up("acme")
        [(before,)] = execute(acme.source, position)
        write_and_confirm(following)
        if not is_restarted:
            with live.away("acme"):
                go_back()
            wait_until(lambda: live.grace("acme").lost_at is not None)
    if is_restarted:
        go_back()
        with live.follow():
            wait_until(lambda: live.grace("acme").lost_at is not None)

    assert "as after a failover" in (live.grace("acme").lost_reason or "")
    assert live.record("acme").state is StreamState.FAILED
    assert live["acme"].rows("log") == ["(1,kept)"]
    assert live.grace("globex").lost_at is None


def test_the_slot_waits_until_it_is_recorded_what_a_source_has(live: Any) -> None:
    acme = live["acme"]
    confirmed = "SELECT confirmed_flush_lsn::text FROM pg_replication_slots"
    position = "SELECT position::text FROM tenantferry.reverse_positions"
    recorded = "SELECT source_position::text FROM tenantferry.streams WHERE tenant = 'acme'"

    with (
        live.follow() as following,
        closing(open_connection(live.target_params, purpose="holder")) as holder,
    ):
        following.catch_up()
        # Nothing is reported in a row that somebody holds.
        execute(holder, "SELECT FROM tenantferry.streams WHERE tenant = 'acme' FOR UPDATE")
        acme.write("INSERT INTO log VALUES (1, 'a')")
        lsn = emit_marker(live.target, acme.tenant)
        wait_until(lambda: acme.rows("log") == ["(1,a)"])
        for _ in range(2):
            reported = live.slot.reported_at
            wait_until(lambda before=reported: live.slot.reported_at != before)  # type: ignore[misc]
        early = parse_lsn(execute(live.target, confirmed)[0][0])
        holder.rollback()
        wait_until(lambda: parse_lsn(execute(live.target, confirmed)[0][0]) >= lsn)
        known = execute(live.target, recorded)

    assert early < lsn
    assert known == execute(acme.source, position)


def test_a_position_can_be_closed_before_anything_was_applied(live: Any) -> None:
    grace = live.grace("acme")

    position = close_position(live["acme"].source, grace)

    with live.follow() as following:
        live["acme"].write("INSERT INTO log VALUES (1, 'a')")
        wait_until(lambda: live.record("acme").state is StreamState.FAILED)
        following.catch_up("globex")
    assert position == grace.start_lsn
    assert live["acme"].rows("log") == []


def test_a_grace_of_the_same_number_in_another_target_begins_anew(live: Any) -> None:
    acme = live["acme"]
    grace = live.grace("acme")
    former = dataclasses.replace(grace, start_lsn=grace.start_lsn + (1 << 40))
    close_position(acme.source, former)

    with live.follow() as following:
        acme.write("INSERT INTO log VALUES (1, 'a')")
        following.catch_up("acme")

    assert acme.rows("log") == ["(1,a)"]


def test_reverse_goes_on_when_a_lane_loses_its_session_in_mid_transaction(live: Any) -> None:
    acme = live["acme"]

    with live.follow() as following:
        acme.write("INSERT INTO log VALUES (0, 'first')")
        following.catch_up("acme")
        # Lets the stream wait in the middle of its transaction.
        execute(acme.source, "BEGIN; LOCK TABLE public.log IN ACCESS EXCLUSIVE MODE")
        acme.write("INSERT INTO log SELECT i, 'x' FROM generate_series(1, 100) AS i")
        following.catch_up("globex")
        execute(
            acme.source,
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE application_name = 'tenantferry reverse acme'",
        )
        execute(acme.source, "COMMIT")
        following.catch_up("acme")

    check_equal(live)


@pytest.mark.parametrize("case", ["dropped", "consumed"])
def test_a_slot_that_lost_changes_costs_everybody_the_way_back(
    live: Any, case: str, target_server: Any
) -> None:
    with live.follow() as following:
        following.catch_up()
    wait_until(lambda: execute(live.target, _IS_IDLE, REVERSE_SLOT) == [(True,)])
    live["acme"].write("INSERT INTO log VALUES (1, 'lost')")
    if case == "dropped":
        drop_slot(target_server)
    else:
        execute(
            live.target,
            "SELECT pg_replication_slot_advance(%s, pg_current_wal_lsn())",
            REVERSE_SLOT,
        )

    with live.follow() as following:
        error = following.failure()

    assert isinstance(error, PermanentError)
    assert "acme, globex" in error.detail
    assert live.grace("acme").lost_at is not None
    assert live.grace("globex").lost_reason in error.detail
    # The next cutover makes a new one, the next start has nothing to do until then.
    assert read_reverse_slot(live.target) is None
    with live.follow() as following:
        following.join()
    assert following.result is not None
    assert following.result.reason == "no reverse slot is recorded"
    live.ensure()
    assert read_reverse_slot(live.target) is not None


def test_reverse_survives_a_restart_of_the_target_while_a_source_is_down(
    empty_way: Any, target_server: Any
) -> None:
    # A server that shuts down waits until its log is confirmed, which a lane may not allow: the
    # process has to let go.
    way = empty_way
    way.add("acme")
    way.table("log", "id integer, name text", key="")
    way.ensure()
    way.go_live()

    with way.follow() as following, way.away("acme"):
        way["acme"].write("INSERT INTO log VALUES (1, 'a')")
        wait_until(lambda: way.record("acme").state is StreamState.FAILED)
        target_server.stop("fast")
        target_server.start()
        error = following.failure()
    execute_again = open_connection(way.target_params, purpose="test", autocommit=True)
    way.target = way.stack.enter_context(closing(execute_again))
    with way.follow():
        lsn = emit_marker(way.target, way["acme"].tenant)
        wait_for_position(
            way.target_params, "acme", lsn, timeout_seconds=20, direction=Direction.REVERSE
        )

    assert isinstance(error, TransientError)
    assert way["acme"].rows("log") == ["(1,a)"]
