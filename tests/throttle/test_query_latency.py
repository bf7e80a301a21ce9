"""The latency of queries through a real PgBouncer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
from psycopg2.extensions import connection

from move_stage import rows
from tenantferry.connections import open_client_connection
from tenantferry.errors import TransientError
from tenantferry.local.pgbouncer import PgBouncer
from tenantferry.moves.move import Move
from tenantferry.traffic.latency import QueryLatency

WaitFor = Callable[[Callable[[], object]], None]


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
