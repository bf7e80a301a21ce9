"""What is wrong with one tenant's source is no other tenant's business."""

from __future__ import annotations

import dataclasses
import errno
import json
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager

import pytest
from psycopg2.extensions import connection

from reverse_stage import Way, execute, start_process, wait_until
from tenantferry.connections import SESSION_SETTINGS, open_connection
from tenantferry.control.graces import REVERSE_SLOT
from tenantferry.control.streams import StreamState
from tenantferry.local.postgres import PostgresServer
from tenantferry.lsn import parse_lsn
from tenantferry.stream.marker import emit_marker

_CONFIRMED = "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = %s"
_COMMIT = "SELECT pg_logical_emit_message(true, 'filler', '')"
_WAITS = "SELECT wait_event IS NOT DISTINCT FROM 'SyncRep' FROM pg_stat_activity WHERE pid = %s"
# Log that is nobody's: a table without tenants is not published.
_WRITE_LOG = "SELECT pg_logical_emit_message(false, 'filler', repeat('x', 1000000))"


def confirmed(way: Way) -> int:
    """Return up to where the server may delete its log."""
    return parse_lsn(execute(way.target, _CONFIRMED, REVERSE_SLOT)[0][0])


@pytest.fixture
def live(way: Way) -> Way:
    """Two live tenants with one table."""
    way.table("items", "id integer, name text")
    way.ensure()
    way.go_live()
    return way


def test_a_source_that_is_down_delays_only_its_own_tenant(live: Way) -> None:
    with live.follow() as following:
        following.catch_up()
        with live.away("acme"):
            live["acme"].write("INSERT INTO items VALUES (1, 'a')")
            live["globex"].write("INSERT INTO items VALUES (1, 'g')")
            following.catch_up("globex")
            wait_until(lambda: live.record("acme").state is StreamState.FAILED)
            failed, other = live.record("acme"), live.record("globex")
            live["acme"].write("UPDATE items SET name = 'later'")
        following.catch_up("acme")
        wait_until(lambda: live.record("acme").error is None)

    assert "connection of tenant" in (failed.error or "")
    assert failed.lag_seconds is not None
    assert failed.lag_seconds > 0
    assert (other.state, other.error) == (StreamState.RUNNING, None)
    assert live["acme"].rows("items") == ["(1,later)"]
    assert live["globex"].rows("items") == ["(1,g)"]


def test_the_slot_is_never_confirmed_beyond_what_a_source_lacks(live: Way) -> None:
    with live.follow() as following:
        following.catch_up()
        with live.away("acme"):
            before = emit_marker(live.target, live["acme"].tenant)
            live["acme"].write("INSERT INTO items VALUES (1, 'a')")
            after = emit_marker(live.target, live["acme"].tenant)
            # The others and the log of others go on.
            for number in range(3):
                live["globex"].write(f"INSERT INTO items VALUES ({number}, 'g')")
                execute(live.target, _WRITE_LOG)
                following.catch_up("globex")
            reported = live.record("globex").reported_at
            wait_until(lambda: live.record("globex").reported_at != reported)
            wait_until(lambda: confirmed(live) >= before)
            pinned, recorded = confirmed(live), live.slot.confirmed
        following.catch_up("acme")
        wait_until(lambda: confirmed(live) >= after)

    assert before <= pinned <= recorded < after


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker without room for temporary files."""

    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tenantferry.reverse.spool.os.pwrite", refuse)


@pytest.mark.usefixtures("full_disk")
def test_a_source_that_is_down_stops_nobody_when_the_disk_is_full(live: Way) -> None:
    write = (
        "INSERT INTO items SELECT {0} * 1000 + i, repeat('x', 100) FROM generate_series(1, 500) i"
    )

    with live.follow(memory_bytes=2_000_000) as following:
        following.catch_up()
        with live.away("acme"):
            live["acme"].write("INSERT INTO items VALUES (-1, 'first')")
            after = emit_marker(live.target, live["acme"].tenant)
            for number in range(6):
                live["acme"].write(write.format(number))
                live["globex"].write(f"INSERT INTO items VALUES ({number}, 'g')")
                following.catch_up("globex")
            reported = live.slot.reported_at
            wait_until(lambda: live.slot.reported_at != reported)
            failed, pinned = live.record("acme"), confirmed(live)
        following.catch_up("acme")
        wait_until(lambda: live.record("acme").error is None)

    assert failed.state is StreamState.FAILED
    assert pinned < after
    assert live.grace("acme").lost_at is None
    assert live["acme"].rows("items") == live["acme"].target_rows("items")
    assert live["globex"].rows("items") == live["globex"].target_rows("items")


@pytest.mark.usefixtures("full_disk")
def test_a_source_that_is_slow_gets_all_when_the_disk_is_full(live: Way) -> None:
    acme = live["acme"]

    with live.follow(memory_bytes=2_000_000) as following:
        acme.write("INSERT INTO items VALUES (-1, 'first')")
        following.catch_up("acme")
        # Lets the follower wait in its transaction, with a part of what was read.
        execute(acme.source, "BEGIN; LOCK TABLE public.items IN ACCESS EXCLUSIVE MODE")
        for number in range(2000):
            acme.write(f"INSERT INTO items VALUES ({number}, repeat('x', 1000))")
        wait_until(lambda: "temporary file" in (live.record("acme").error or ""))
        lsn = emit_marker(live.target, acme.tenant)
        held = confirmed(live)
        execute(acme.source, "COMMIT")
        following.catch_up("acme")
        wait_until(lambda: live.record("acme").error is None)

    assert held < lsn
    assert acme.rows("items") == acme.target_rows("items")


def test_a_source_that_takes_too_long_loses_only_its_own_way_back(live: Way) -> None:
    budget = 3_000_000

    with live.follow(wal_budget_bytes=budget) as following:
        following.catch_up()
        with live.away("acme"):
            live["acme"].write("INSERT INTO items VALUES (1, 'a')")
            for number in range(5):
                execute(live.target, _WRITE_LOG)
                live["globex"].write(f"INSERT INTO items VALUES ({number}, 'g')")
                following.catch_up("globex")
            wait_until(lambda: live.grace("acme").lost_at is not None)
            lsn = emit_marker(live.target, live["globex"].tenant)
            wait_until(lambda: confirmed(live) >= lsn)
        live["acme"].write("INSERT INTO items VALUES (2, 'b')")
        live["globex"].write("INSERT INTO items VALUES (9, 'g')")
        following.catch_up("globex")

    grace = live.grace("acme")
    assert f"wal_budget_bytes = {budget}" in (grace.lost_reason or "")
    assert live.record("acme").error == grace.lost_reason
    assert live["acme"].rows("items") == []
    assert live.grace("globex").lost_at is None
    assert live["globex"].rows("items") == live["globex"].target_rows("items")


def test_a_tenant_that_wrote_nothing_for_long_does_not_exceed_its_budget(live: Way) -> None:
    # Its position in the source is old; what counts is what the source lacks.
    with live.follow(wal_budget_bytes=2_000_000) as following:
        live["acme"].write("INSERT INTO items VALUES (1, 'a')")
        following.catch_up("acme")
        for _ in range(5):
            execute(live.target, _WRITE_LOG)
        following.catch_up()
        live["acme"].write("INSERT INTO items VALUES (2, 'b')")
        following.catch_up("acme")
        reported = live.record("acme").reported_at
        wait_until(lambda: live.record("acme").reported_at != reported)

    assert live.grace("acme").lost_at is None
    assert live["acme"].rows("items") == ["(1,a)", "(2,b)"]


def test_drift_stops_only_its_own_lane_and_only_before_the_new_shape(live: Way) -> None:
    acme, globex = live["acme"], live["globex"]
    execute(globex.owner, "ALTER TABLE items ADD COLUMN extra integer")

    with live.follow() as following:
        following.catch_up("acme")
        # acme's lane has to wait, so that all of it would fit into one batch.
        execute(acme.source, "BEGIN; LOCK TABLE public.items IN ACCESS EXCLUSIVE MODE")
        acme.write("INSERT INTO items VALUES (1, 'old shape')")
        acme.write("INSERT INTO items VALUES (2, 'old shape')")
        execute(live.target, "ALTER TABLE public.items ADD COLUMN extra integer")
        acme.write("INSERT INTO items (id, name, extra) VALUES (3, 'new shape', 30)")
        globex.write("INSERT INTO items (id, name, extra) VALUES (3, 'new shape', 30)")
        execute(acme.source, "COMMIT")
        following.catch_up("globex")
        wait_until(lambda: live.record("acme").state is StreamState.FAILED)
        stopped, error = acme.rows("items"), live.record("acme").error
        execute(acme.owner, "ALTER TABLE items ADD COLUMN extra integer")
        following.catch_up("acme")

    assert stopped == ['(1,"old shape")', '(2,"old shape")']
    assert "extra integer" in (error or "")
    assert acme.rows("items") == ['(1,"old shape",)', '(2,"old shape",)', '(3,"new shape",30)']
    assert globex.rows("items") == ['(3,"new shape",30)']


def test_a_table_that_the_source_lacks_stops_its_lane_only_when_rows_are_its_own(live: Way) -> None:
    acme, globex = live["acme"], live["globex"]
    live.table("extras", "id integer, name text")
    execute(acme.owner, "DROP TABLE extras")
    live.ensure()

    with live.follow() as following:
        globex.write("INSERT INTO extras VALUES (1, 'g')")
        execute(live.target, "TRUNCATE public.extras")
        globex.write("INSERT INTO extras VALUES (2, 'g')")
        acme.write("INSERT INTO items VALUES (1, 'a')")
        following.catch_up()
        acme.write("INSERT INTO extras VALUES (1, 'a')")
        wait_until(lambda: live.record("acme").state is StreamState.FAILED)
        error = live.record("acme").error
        execute(acme.owner, "CREATE TABLE extras (id integer PRIMARY KEY, name text)")
        following.catch_up("acme")

    assert 'table "public.extras" does not exist in the source' in (error or "")
    assert globex.rows("extras") == ["(2,g)"]
    assert acme.rows("extras") == ["(1,a)"]


def test_a_row_that_the_source_refuses_stops_its_lane_until_it_is_mended(live: Way) -> None:
    acme, globex = live["acme"], live["globex"]
    execute(acme.owner, "ALTER TABLE items ADD CONSTRAINT short CHECK (length(name) < 5)")

    with live.follow() as following:
        acme.write("INSERT INTO items VALUES (1, 'ok')", "INSERT INTO items VALUES (2, 'too long')")
        globex.write("INSERT INTO items VALUES (2, 'too long')")
        following.catch_up("globex")
        wait_until(lambda: live.record("acme").state is StreamState.FAILED)
        error = live.record("acme").error
        execute(acme.owner, "ALTER TABLE items DROP CONSTRAINT short")
        following.catch_up("acme")

    assert 'table "public.items" of the source refuses rows of the target' in (error or "")
    assert acme.rows("items") == ["(1,ok)", '(2,"too long")']


def test_a_row_that_somebody_deleted_behind_the_fence_is_noticed_not_skipped(live: Way) -> None:
    acme = live["acme"]

    with live.follow() as following:
        acme.write("INSERT INTO items VALUES (1, 'a')")
        following.catch_up("acme")
        execute(acme.owner, "DELETE FROM items")
        acme.write("UPDATE items SET name = 'b'")
        wait_until(lambda: live.record("acme").state is StreamState.FAILED)
        error = live.record("acme").error or ""

    assert "source does not hold what the target changed" in error
    assert "Missing are the rows with (id) = (1)" in error


def test_an_idle_lane_holds_no_session(live: Way) -> None:
    with live.follow(idle_seconds=0.3) as following:
        following.catch_up()
        untouched = live.sessions("acme")
        live["acme"].write("INSERT INTO items VALUES (1, 'a')")
        following.catch_up("acme")
        used = live.sessions("acme")
        wait_until(lambda: live.sessions("acme") == 0)
        live["acme"].write("INSERT INTO items VALUES (2, 'b')")
        following.catch_up("acme")

    assert (untouched, used) == (0, 1)
    assert live["acme"].rows("items") == ["(1,a)", "(2,b)"]


def test_a_tenant_that_goes_live_while_the_process_runs_loses_no_change(empty_way: Way) -> None:
    way = empty_way
    for key in ("acme", "globex", "initech"):
        way.add(key)
    way.table("items", "id integer, name text")
    way.ensure()
    way.go_live("acme")

    with way.follow() as following:
        following.catch_up("acme")
        for key in ("globex", "initech"):
            # At once after the flip, as clients that were paused do.
            way.go_live(key)
            way[key].write(f"INSERT INTO items VALUES (1, '{key}')")
        following.catch_up()
        rows = {key: way[key].rows("items") for key in way.sides}

    assert rows == {"acme": [], "globex": ["(1,globex)"], "initech": ["(1,initech)"]}


def test_a_grace_is_not_passed_over_while_its_commit_cannot_be_seen_yet(
    empty_way: Way, target_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With synchronous replication a commit is in the log, and read from there, before any other
    # session sees what it did.
    way = empty_way
    way.add("acme")
    way.table("items", "id integer, name text")
    way.ensure()
    attempt = way.begin_attempt("acme")
    monkeypatch.setitem(dict_of(SESSION_SETTINGS), "synchronous_commit", "local")
    with way.follow() as following:
        wait_until(lambda: way.slot.reported_at is not None)
        with (
            closing(open_connection(way.target_params, purpose="look", autocommit=True)) as look,
            waiting_for_a_standby(target_server, way, look),
        ):
            flip = threading.Thread(
                target=way.begin_grace, args=("acme",), kwargs={"attempt": attempt}
            )
            flip.start()
            wait_until(lambda: waits_for_a_standby(look, way.target))
            threading.Event().wait(0.3)
            seen = execute(look, "SELECT count(*) FROM tenantferry.graces")
        flip.join()
        way["acme"].write("INSERT INTO items VALUES (1, 'a')")
        following.catch_up("acme")

    assert seen == [(0,)]
    assert way["acme"].rows("items") == ["(1,a)"]


@contextmanager
def waiting_for_a_standby(server: PostgresServer, way: Way, look: connection) -> Iterator[None]:
    """Let commits be acknowledged by a standby that does not exist, from now on."""
    is_over = threading.Event()
    probe = open_connection(way.target_params, purpose="probe", autocommit=True)
    execute(probe, "SET synchronous_commit = on")

    def commit() -> None:
        while not is_over.is_set():
            execute(probe, _COMMIT)

    committing = threading.Thread(target=commit)
    server.psql("-c", "ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
    server.psql("-c", "SELECT pg_reload_conf()")
    committing.start()
    try:
        # The server takes the setting up some time after it was told to.
        wait_until(lambda: waits_for_a_standby(look, probe))
        yield
    finally:
        is_over.set()
        server.psql("-c", "ALTER SYSTEM RESET synchronous_standby_names")
        server.psql("-c", "SELECT pg_reload_conf()")
        committing.join()
        probe.close()


def waits_for_a_standby(look: connection, session: connection) -> bool:
    return execute(look, _WAITS, session.info.backend_pid) == [(True,)]


def dict_of(settings: Mapping[str, str]) -> dict[str, str]:
    """Return what a constant is made of."""
    assert isinstance(settings, dict)
    return settings


def test_a_grace_that_is_over_takes_no_more_changes_and_can_begin_again(live: Way) -> None:
    acme = live["acme"]

    with live.follow() as following:
        acme.write("INSERT INTO items VALUES (1, 'first grace')")
        following.catch_up("acme")
        live.end_grace("acme")
        acme.write("INSERT INTO items VALUES (2, 'nobody follows')")
        following.catch_up("globex")
        between = acme.rows("items")
        execute(live.target, "DELETE FROM public.items WHERE id = 2")
        live.begin_grace("acme")
        acme.write("INSERT INTO items VALUES (3, 'second grace')")
        following.catch_up("acme")
    # All of it is read again by a process that knows of the second grace from its start.
    with live.follow() as following:
        following.catch_up()

    assert between == ['(1,"first grace")']
    assert acme.rows("items") == ['(1,"first grace")', '(3,"second grace")']


def end(process: subprocess.Popen[str]) -> int:
    """Let a process end by itself; return how many kilobytes it took at most."""
    process.send_signal(signal.SIGTERM)
    assert process.stdout is not None
    output = process.stdout.read()
    process.wait()
    return int(json.loads(output)["added_kilobytes"])


def test_a_backlog_beyond_memory_waits_on_disk_and_memory_stays_bounded(live: Way) -> None:
    acme = live["acme"]
    nowhere = dataclasses.replace(acme.params, port=1)
    process = start_process(live, memory_bytes=4 << 20, params={"acme": nowhere})
    large = "SELECT i, repeat(md5(i::text), 300) FROM generate_series({}, {}) AS i"
    # 40 MB in one transaction, and 20 MB in some.
    acme.write("INSERT INTO items " + large.format(1, 4000))
    for first in range(5001, 7001, 200):
        acme.write("INSERT INTO items " + large.format(first, first + 199))
    lsn = emit_marker(live.target, live["globex"].tenant)
    wait_until(lambda: live.record("globex").position >= lsn)

    waiting = end(process)
    # All of it is there at once now.
    process = start_process(live, memory_bytes=4 << 20)
    wait_until(lambda: live.record("acme").position >= lsn, timeout=60)
    applying = end(process)

    # Of 60 MB each; without a file or parts it would be all of it, several times over.
    assert waiting < 20_000
    assert applying < 40_000
    query = "SELECT md5(string_agg(name, '' ORDER BY id)), count(*) FROM public.items"
    assert execute(acme.source, query) == execute(acme.client, query)
