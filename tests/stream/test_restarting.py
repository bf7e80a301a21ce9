"""A stream that is killed anywhere goes on exactly where the target stands."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tenantferry.connections import open_connection
from tenantferry.control.streams import (
    StreamState,
    origin_name,
    require_stream,
    reset_stream,
    retire_stream,
)
from tenantferry.errors import PermanentError, TransientError
from tenantferry.lsn import format_lsn, parse_lsn
from tenantferry.stream.handshake import stop_at
from tenantferry.stream.marker import emit_marker
from tenantferry.stream.takeover import LostChangesError

# More than TOAST keeps inline, and not compressible.
LONG = "(SELECT string_agg(md5(i::text), '') FROM generate_series(1, 200) AS i)"


def start_process(move: Any, *, batch_bytes: int = 1 << 20) -> subprocess.Popen[str]:
    """Start a stream in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("stream_process.py"))],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "include")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    json.dump(
        {
            "source": dataclasses.asdict(move.source_params),
            "target": dataclasses.asdict(move.target_params),
            "key": move.tenant.key,
            "id": str(move.tenant.id),
            "batch_bytes": batch_bytes,
        },
        process.stdin,
    )
    process.stdin.close()
    return process


def wait_until_position_moves(move: Any, process: subprocess.Popen[str]) -> None:
    position = move.record.position
    while move.record.position == position:
        assert process.poll() is None, process.stderr and process.stderr.read()
        threading.Event().wait(0.02)


def test_stream_applies_exactly_once_across_kills_gotcha_6(move: Any) -> None:
    move.pair("items", "id integer, name text")
    # No unique constraint would notice a row applied twice.
    move.pair("log", "id integer, name text", key="")
    move.execute(move.owner, "ALTER TABLE log REPLICA IDENTITY FULL")
    move.run(
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN INSERT INTO log VALUES (NEW.id, NEW.name); RETURN NULL; END $$",
        "CREATE TRIGGER note AFTER INSERT ON items FOR EACH ROW EXECUTE FUNCTION note()",
    )
    move.begin()
    chance = random.Random(7)

    with move.writing(writers=2):
        for _ in range(4):
            process = start_process(move)
            wait_until_position_moves(move, process)
            threading.Event().wait(chance.random() * 0.4)
            process.send_signal(signal.SIGKILL)
            process.wait()
    with move.stream() as stream:
        stream.catch_up()

    assert move.rows("items") == move.source_rows("items")
    assert move.rows("log") == move.source_rows("log")
    assert len(move.rows("log")) > 100


def test_the_newest_stream_of_a_tenant_takes_over(move: Any) -> None:
    move.pair("items", "id integer, name text")
    move.begin()

    with move.stream() as first:
        move.run("INSERT INTO items VALUES (1, 'a')")
        first.catch_up()
        with move.stream() as second:
            error = first.failure()
            move.run("INSERT INTO items VALUES (2, 'b')")
            second.catch_up()
            threading.Event().wait(1.2)
            record = move.record

    assert isinstance(error, TransientError)
    assert record.state is StreamState.RUNNING
    assert record.error is None
    assert move.rows("items") == ["(1,a)", "(2,b)"]


def test_an_interrupted_stream_says_so_and_goes_on(move: Any) -> None:
    move.pair("items", "id integer, name text")
    move.begin()

    with move.stream() as stream:
        stream.catch_up()
    state = move.record.state
    move.run("INSERT INTO items VALUES (1, 'a')")
    with move.stream() as again:
        again.catch_up()

    assert state is StreamState.INTERRUPTED
    assert stream.result is not None
    assert stream.result.reason.startswith("interrupted")
    assert move.rows("items") == ["(1,a)"]


def test_a_slot_that_somebody_else_consumed_is_noticed(move: Any) -> None:
    move.pair("items", "id integer, name text")
    move.begin()
    move.run("INSERT INTO items VALUES (1, 'a')")
    move.execute(
        move.source, "SELECT pg_replication_slot_advance(%s, pg_current_wal_lsn())",
        move.tenant.slot,
    )  # fmt: skip

    with move.stream() as stream:
        error = stream.failure()

    assert isinstance(error, LostChangesError)
    assert "backfill" in error.hint
    assert move.record.state is StreamState.FAILED


def test_a_missing_slot_is_noticed_gotcha_12(move: Any) -> None:
    move.pair("items", "id integer, name text")
    move.begin()
    move.execute(move.source, "SELECT pg_drop_replication_slot(%s)", move.tenant.slot)

    with move.stream() as stream:
        error = stream.failure()

    assert isinstance(error, LostChangesError)


def test_an_invalidated_slot_is_noticed_gotcha_12(move: Any, source_server: Any) -> None:
    move.pair("items", "id integer, name text")
    move.begin()
    try:
        source_server.psql("-c", "ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'",
                           "-c", "SELECT pg_reload_conf()")  # fmt: skip
        for _ in range(3):
            move.run("SELECT pg_logical_emit_message(false, 'x', repeat('x', 1000000))")
            source_server.psql("-c", "SELECT pg_switch_wal()", "-c", "CHECKPOINT")
    finally:
        source_server.psql("-c", "ALTER SYSTEM RESET max_slot_wal_keep_size",
                           "-c", "SELECT pg_reload_conf()")  # fmt: skip

    with move.stream() as stream:
        error = stream.failure()

    assert isinstance(error, LostChangesError)
    assert "invalidated" in error.message


def test_a_position_that_its_origin_does_not_confirm_is_noticed(move: Any) -> None:
    move.pair("items", "id integer, name text")
    move.begin()
    move.execute(move.target, "UPDATE tenantferry.streams SET position = position + 1")

    with move.stream() as stream:
        error = stream.failure()

    assert isinstance(error, PermanentError)
    assert "disagree" in error.message


def test_an_origin_moved_by_a_rolled_back_transaction_skips_nothing(move: Any) -> None:
    move.pair("items", "id integer, name text")
    move.begin()
    lost = move.record.position
    move.run("INSERT INTO items VALUES (1, 'one')")
    ahead = emit_marker(move.source, move.tenant)
    name = origin_name(move.tenant.key)
    # What a stream leaves behind that is killed between setting its origin up and its COMMIT.
    with closing(open_connection(move.target_params, purpose="killed")) as killed:
        with killed.cursor() as cursor:
            cursor.execute("SELECT pg_replication_origin_session_setup(%s)", (name,))
            cursor.execute("UPDATE tenantferry.streams SET changes = changes")
            cursor.execute(
                "SELECT pg_replication_origin_xact_setup(%s, now())", (format_lsn(ahead),)
            )
        killed.rollback()
    moved = move.execute(move.target, "SELECT pg_replication_origin_progress(%s, true)", name)

    with move.stream() as stream:
        stream.catch_up()

    # If this stops holding, a server no longer has the behaviour that settle_origin() mends.
    assert parse_lsn(moved[0][0]) in (lost, ahead)
    assert move.rows("items") == ["(1,one)"]


def test_reset_ends_a_stream_that_still_runs(move: Any) -> None:
    move.pair("items", "id integer, name text")
    move.begin()

    with move.stream() as stream:
        stream.catch_up()
        reset_stream(move.target, move.tenant.key, 1234)
        error = stream.failure()

    assert isinstance(error, TransientError)
    assert move.record.position == 1234
    [(progress,)] = move.execute(
        move.target, "SELECT pg_replication_origin_progress(%s, true)::text", move.tenant.origin
    )
    assert parse_lsn(progress) == 1234


def test_retire_gives_the_origin_up(move: Any) -> None:
    move.pair("items", "id integer, name text")
    move.begin()

    retire_stream(move.target, move.tenant.key)
    retire_stream(move.target, move.tenant.key)

    assert move.execute(
        move.target, "SELECT pg_replication_origin_oid(%s)", move.tenant.origin
    ) == [(None,)]


def test_a_commit_is_flushed_even_if_the_role_says_otherwise_gotcha_7(
    move: Any, target_server: Any
) -> None:
    move.pair("items", "id integer, name text")
    move.begin()
    database = move.target_params.database
    target_server.psql("-c", f"ALTER ROLE tenantferry IN DATABASE {database}"
                             " SET synchronous_commit = off")  # fmt: skip

    with move.stream() as stream:
        for i in range(20):
            move.run(f"INSERT INTO items VALUES ({i}, 'a')")
            stream.catch_up()
            # What has arrived was flushed before anybody could be told so.
            [(confirmed,)] = move.execute(
                move.source,
                "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = %s",
                move.tenant.slot,
            )
            assert parse_lsn(confirmed) <= move.record.position
        target_server.kill()
        error = stream.failure()
    target_server.start()
    with closing(open_connection(move.target_params, purpose="after the crash")) as after:
        rows = move.execute(after, "SELECT count(*) FROM public.items")
        record = require_stream(after, move.tenant.key)

    assert isinstance(error, TransientError)
    assert rows == [(20,)]
    assert record.position >= parse_lsn(confirmed)


def test_a_keepalive_never_moves_the_position_but_frees_the_slot_gotcha_10(
    move: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tenantferry.stream.loop.IDLE_CONFIRM_SECONDS", 0.1)
    monkeypatch.setattr("tenantferry.stream.heartbeat.Heartbeat.is_due", False)
    move.pair("items", "id integer, name text")
    move.begin()

    with move.stream() as stream:
        stream.catch_up()
        position = move.record.position
        # Log that holds nothing of the tenant.
        move.run("CREATE TABLE noise AS SELECT i FROM generate_series(1, 20000) AS i")
        [(end,)] = move.execute(move.source, "SELECT pg_current_wal_flush_lsn()::text")
        deadline = threading.Event()
        for _ in range(100):
            [(confirmed,)] = move.execute(
                move.source,
                "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = %s",
                move.tenant.slot,
            )
            if parse_lsn(confirmed) >= parse_lsn(end):
                break
            deadline.wait(0.1)
        record = move.record

    assert parse_lsn(confirmed) >= parse_lsn(end)
    assert record.position == position
    assert record.confirmed >= parse_lsn(confirmed)


def test_an_unknown_lag_is_not_zero_gotcha_5(move: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    move.pair("items", "id integer, name text")
    move.begin()
    move.execute(move.target, "UPDATE tenantferry.streams SET lag_seconds = 0, lag_bytes = 0")

    with monkeypatch.context() as patch:
        patch.setattr("tenantferry.stream.heartbeat.Heartbeat.is_due", False)
        with move.stream() as stream:
            stream.catch_up()
            unknown = move.record
    with move.stream() as stream:
        stream.catch_up()
        threading.Event().wait(1.5)
        known = move.record

    assert unknown.lag_seconds is None
    assert unknown.lag_bytes is None
    assert known.lag_seconds is not None
    assert 0 < known.lag_seconds < 5
    assert known.lag_bytes is not None


def test_a_transaction_larger_than_a_batch_is_applied_in_bounded_memory(move: Any) -> None:
    move.pair("items", "id integer, name text")
    move.begin()
    process = start_process(move, batch_bytes=1 << 20)
    wait_until_position_moves(move, process)

    move.run(
        "BEGIN; INSERT INTO items SELECT i, repeat('x', 300) FROM generate_series(1, 150000) AS i;"
        " UPDATE items SET name = 'y' WHERE id % 3 = 0; DELETE FROM items WHERE id % 3 = 1; COMMIT"
    )
    stop_at(
        move.target_params, move.tenant.key, emit_marker(move.source, move.tenant),
        timeout_seconds=120,
    )  # fmt: skip
    process.wait(timeout=30)
    assert process.stdout is not None
    output = process.stdout.read()

    assert process.returncode == 0
    # 150,000 images of 300 bytes are 45 MB, and more than 100 MB as objects.
    assert json.loads(output)["added_kilobytes"] < 20_000
    assert move.rows("items") == move.source_rows("items")


def test_nothing_of_an_unfinished_large_transaction_is_seen(move: Any) -> None:
    move.pair("items", "id integer, body text")
    move.begin()
    process = start_process(move, batch_bytes=1 << 16)
    wait_until_position_moves(move, process)

    move.run(f"INSERT INTO items SELECT i, {LONG} FROM generate_series(1, 3000) AS i")
    threading.Event().wait(0.3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    between = len(move.rows("items"))
    with move.stream() as stream:
        stream.catch_up()

    assert between in (0, 3000)
    assert move.rows("items") == move.source_rows("items")
