"""A source that goes back in time where it is, and begins no new timeline."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest

from standby import wait_until_true
from tenantferry.backfill.finished import find_obstacle
from tenantferry.connections import open_connection
from tenantferry.control.streams import StreamState, reset_stream
from tenantferry.errors import TransientError
from tenantferry.local.postgres import PostgresServer
from tenantferry.lsn import parse_lsn
from tenantferry.schema.catalog import read_tables
from tenantferry.stream.catching_up import catch_up
from tenantferry.stream.standing import ForkedError
from tenantferry.stream.takeover import LostChangesError

PutBack = Callable[[], None]

# Takes about 3 MB of the log.
LARGE = "(SELECT string_agg(md5(i::text), '') FROM generate_series(1, 100000) AS i)"


@pytest.fixture
def source_server(own_source_server: PostgresServer) -> PostgresServer:
    """Nobody else's, for it is stopped."""
    return own_source_server


@pytest.fixture
def put_back(move: Any, source_server: PostgresServer) -> PutBack:
    """
    Let a source be as it was: its files were copied when the test began to look.

    The tenant is copied, with one row.
    """
    begin(move)
    stream_rows(move, "INSERT INTO items VALUES (1, 'a')")
    data = source_server.data
    saved = data.with_name("saved")
    with stopped(move, source_server):
        subprocess.run(["cp", "--archive", data, saved], check=True)

    def put() -> None:
        with stopped(move, source_server):
            shutil.rmtree(data)
            subprocess.run(["cp", "--archive", saved, data], check=True)

    return put


@contextmanager
def stopped(move: Any, server: PostgresServer) -> Iterator[None]:
    server.stop("immediate")
    yield
    server.start()
    move.reach_source(server.superuser.port)


def begin(move: Any) -> None:
    move.pair("items", "id integer, name text")
    move.backfill()


def stream_rows(move: Any, *statements: str) -> None:
    with move.stream() as stream:
        move.run(*statements)
        stream.catch_up()


def read_slot(move: Any) -> int:
    """Return up to where the source's slot is confirmed."""
    [(text,)] = move.execute(
        move.source, "SELECT confirmed_flush_lsn::text FROM pg_replication_slots"
    )
    return parse_lsn(text)


def read_log_end(move: Any) -> int:
    [(text,)] = move.execute(move.source, "SELECT pg_current_wal_insert_lsn()::text")
    return parse_lsn(text)


def test_a_source_that_was_put_back_is_noticed(move: Any, put_back: PutBack) -> None:
    stream_rows(move, f"INSERT INTO items VALUES (2, {LARGE})")
    put_back()
    move.run("INSERT INTO items VALUES (3, 'where something else was in the log')")
    before = move.record

    with move.stream() as stream:
        error = stream.failure()

    assert isinstance(error, ForkedError)
    assert "lacks transactions that the target has" in error.message
    assert "went back in time" in error.detail
    assert '"backfill"' in error.hint
    assert move.record.state is StreamState.FAILED
    assert move.record.position == before.position > read_log_end(move)
    assert read_slot(move) < before.position
    assert move.rows_of_ids("items") == [1, 2]


def test_a_source_that_was_put_back_stays_refused_when_its_log_has_grown_again(
    move: Any, put_back: PutBack
) -> None:
    stream_rows(move, f"INSERT INTO items VALUES (2, {LARGE})")
    put_back()
    with move.stream() as stream:
        error = stream.failure()
    move.run(f"INSERT INTO items VALUES (3, {LARGE})", f"INSERT INTO items VALUES (4, {LARGE})")
    assert read_log_end(move) > move.record.position

    with move.stream() as stream:
        again = stream.failure()
    tables = read_tables(move.source, move.tenant)
    obstacle = find_obstacle(move.source, move.target, move.tenant, tables)
    move.backfill()
    stream_rows(move, "INSERT INTO items VALUES (5, 'b')")

    assert isinstance(again, ForkedError)
    assert str(again) == str(error)
    assert obstacle == "the source went back in time, and lacks what the target has"
    # The new copy is of what the source is now.
    assert move.rows("items") == move.source_rows("items")
    assert move.rows_of_ids("items") == [1, 3, 4, 5]


def test_catch_up_notices_a_source_that_was_put_back(move: Any, put_back: PutBack) -> None:
    """What is asked for lies before P, so that there is nothing to apply."""
    stream_rows(move, f"INSERT INTO items VALUES (2, {LARGE})")
    put_back()
    tables = read_tables(move.source, move.tenant)

    with pytest.raises(ForkedError, match="lacks transactions"):
        catch_up(move.source_params, move.target_params, move.tenant, tables, read_log_end(move))


def test_a_source_that_was_put_back_no_further_than_p_goes_on(
    move: Any, put_back: PutBack, source_server: PostgresServer
) -> None:
    """Beyond P the slot was confirmed over log that held nothing of the tenant."""
    move.execute(
        move.target, "UPDATE tenantferry.streams SET confirmed = confirmed + (1 << 30)::numeric"
    )
    put_back()

    stream_rows(move, "INSERT INTO items VALUES (2, 'b')")

    assert move.rows("items") == move.source_rows("items") == ["(1,a)", "(2,b)"]
    # Else a slot that somebody else consumes would pass.
    assert move.record.confirmed <= read_log_end(move)
    wait_until_true(source_server, "SELECT active_pid IS NULL FROM pg_replication_slots")
    move.run("INSERT INTO items VALUES (3, 'c')")
    move.execute(
        move.source, "SELECT pg_replication_slot_advance(%s, pg_current_wal_lsn())",
        move.tenant.slot,
    )  # fmt: skip
    with move.stream() as stream:
        assert isinstance(stream.failure(), LostChangesError)


def test_a_source_that_crashes_is_not_refused_when_it_commits_asynchronously(
    move: Any, source_server: PostgresServer
) -> None:
    """It loses what it has not flushed, and that was never sent."""
    begin(move)
    source_server.psql("-c", "ALTER SYSTEM SET wal_writer_delay = '10s'",
                       "-c", "SELECT pg_reload_conf()")  # fmt: skip

    for attempt in range(3):
        with move.stream() as stream:
            stream.catch_up()
            move.run("SET synchronous_commit = off")
            for number in range(300):
                move.run(f"INSERT INTO items VALUES ({attempt * 1000 + number}, 'a')")
            source_server.kill()
            assert isinstance(stream.failure(), TransientError)
        with stopped(move, source_server):
            pass
        stream_rows(move, f"INSERT INTO items VALUES ({attempt * 1000 + 999}, 'b')")

        assert move.rows("items") == move.source_rows("items")
        assert move.record.went_back_to is None


def test_a_source_whose_log_is_not_flushed_up_to_p_is_not_refused(
    move: Any, source_server: PostgresServer
) -> None:
    """A rollback lets the next stream begin where the source's log was written to."""
    begin(move)
    params = source_server.superuser
    with closing(open_connection(params, purpose="test")) as session:
        # The end of a transaction that has written would flush it, soon at least.
        move.execute(session, "SELECT pg_logical_emit_message(false, 'x', 'x')")
        [(lsn,)] = move.execute(session, "SELECT pg_current_wal_insert_lsn()::text")
        reset_stream(move.target, move.tenant.key, parse_lsn(lsn))
        with move.stream() as stream:
            while move.record.state is not StreamState.RUNNING:
                assert stream.error is None, stream.error
                time.sleep(0.05)
            move.run("INSERT INTO items VALUES (1, 'a')")
            stream.catch_up()

    assert move.rows("items") == ["(1,a)"]
