"""The latency of queries through a real PgBouncer, and real work that waits for them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import pytest
from psycopg2.extensions import connection

from move_stage import Stage, rows, with_tenant, written
from tenantferry.connections import open_client_connection
from tenantferry.errors import TransientError
from tenantferry.fleet.declaration import ThrottleLimits
from tenantferry.local.pgbouncer import PgBouncer
from tenantferry.moves.move import Move
from tenantferry.throttle import throttle as throttle_module
from tenantferry.traffic.latency import QueryLatency

WaitFor = Callable[[Callable[[], object]], None]


@pytest.fixture
def move(move: Move) -> Move:
    """A tenant whose clients' queries have a limit."""
    return with_tenant(move, throttle=ThrottleLimits(query_latency_ms=100.0))


@pytest.fixture
def latency(move: Move) -> Iterator[QueryLatency]:
    with closing(QueryLatency(move.router.instances, tenant="acme", limit_ms=100)) as latency:
        latency.look()
        yield latency


@pytest.fixture
def client(move: Move) -> Iterator[connection]:
    """An application's session through the pooler."""
    with closing(open_client_connection(move.probe, purpose="client")) as client:
        client.autocommit = True
        yield client


@contextmanager
def slow_queries(client: connection) -> Iterator[None]:
    """Let a client run queries that take twice as long as the limit, one after the other."""
    done = threading.Event()

    def run() -> None:
        while not done.is_set():
            rows(client, "SELECT pg_sleep(0.2)")

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(30)
        assert not thread.is_alive()


def test_query_latency_tells_slow_queries_of_the_time_between_two_looks(
    latency: QueryLatency, client: connection
) -> None:
    rows(client, "SELECT pg_sleep(0.4)")

    slow = latency.look()
    idle = latency.look()
    rows(client, "SELECT 1")
    quick = latency.look()

    assert slow is not None
    assert slow.startswith("latency of queries: 4")
    assert slow.endswith(" ms")
    assert (idle, quick) == (None, None)


def test_query_latency_averages_over_all_queries(latency: QueryLatency, client: connection) -> None:
    rows(client, "SELECT pg_sleep(0.4)")
    for _ in range(9):
        rows(client, "SELECT 1")

    assert latency.look() is None


def test_query_latency_begins_anew_after_a_restart_of_the_pooler(
    latency: QueryLatency, client: connection, pooler: PgBouncer, move: Move
) -> None:
    rows(client, "SELECT 1")
    latency.look()
    pooler.kill()
    with pytest.raises(TransientError):
        latency.look()
    pooler.start()

    first = latency.look()
    with closing(open_client_connection(move.probe, purpose="client")) as again, again:
        rows(again, "SELECT pg_sleep(0.4)")
    after = latency.look()

    assert first is None
    assert after is not None


def test_backfill_waits_while_queries_are_slow_and_goes_on_afterwards(
    *,
    copying: threading.Thread,
    client: connection,
    source_owner: connection,
    target: connection,
    wait_for: WaitFor,
    throttled_by: Callable[[], str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "tenantferry.throttle")
    # Its slot waits for an open transaction, and so does the first chunk for the first two looks.
    rows(source_owner, "BEGIN; SELECT pg_current_xact_id()")
    copied = "SELECT count(*) FROM public.wide"

    with slow_queries(client):
        copying.start()
        wait_for(lambda: "throttled tenant=acme by=latency of queries: " in caplog.text)
        rows(source_owner, "COMMIT")
        # Without a throttle it takes less than a second.
        copying.join(3)
        was_waiting, before = copying.is_alive(), rows(target, copied)
        reason = throttled_by()
    # Slowed down, each of its nine megabytes would take ten seconds.
    copying.join(30)

    assert reason.startswith("latency of queries: ")
    assert (was_waiting, before) == (True, [(0,)])
    assert not copying.is_alive()
    assert rows(target, copied) == rows(source_owner, copied)
    assert not throttled_by()


def test_stream_waits_while_queries_are_slow_and_goes_on_afterwards(
    *,
    stage: Stage,
    client: connection,
    source_owner: connection,
    wait_for: WaitFor,
    throttled_by: Callable[[], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(throttle_module, "LONGEST_WAIT_SECONDS", 600.0)

    def wait_for_report() -> None:
        query = "SELECT reported_at FROM tenantferry.streams"
        last = rows(stage.target, query)
        wait_for(lambda: rows(stage.target, query) != last)

    with slow_queries(client):
        wait_for(throttled_by)
        reason = throttled_by()
        rows(source_owner, "INSERT INTO public.written VALUES (1)")
        # Reports are a second apart; without a throttle the row is there before the second.
        for _ in range(3):
            wait_for_report()
        before = written(stage, "target")
    wait_for(lambda: written(stage, "target") == [1])

    assert reason.startswith("latency of queries: ")
    assert before == []
