"""A physical standby of each server, the gauge that looks at it, and a copy that has limits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace

import pytest
from psycopg2.extensions import connection

from move_fixtures import move, pooler, stage
from move_stage import APP_PASSWORD, rows, with_tenant
from standby import create_standby
from tenantferry.connections import ConnectionParams, open_client_connection
from tenantferry.fleet.declaration import ThrottleLimits
from tenantferry.local.postgres import PostgresServer
from tenantferry.moves.backfill import backfill
from tenantferry.moves.move import Move
from tenantferry.moves.prepare import prepare
from tenantferry.throttle.standbys import ReplicaLag

__all__ = ["move", "pooler", "stage"]

ROWS = 9000
WIDTH = 1000
REPORT_EVERY = "ALTER SYSTEM SET wal_receiver_status_interval"

WaitFor = Callable[[Callable[[], object]], None]


@pytest.fixture
def wait_for() -> WaitFor:
    """Wait until a condition holds; fail after half a minute."""

    def wait(condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    return wait


@pytest.fixture
def side(request: pytest.FixtureRequest) -> str:
    """Whose standby lags."""
    return str(getattr(request, "param", "source"))


@pytest.fixture
def primary(
    side: str, source_server: PostgresServer, target_server: PostgresServer
) -> PostgresServer:
    """The server that has it."""
    return source_server if side == "source" else target_server


@pytest.fixture(scope="session")
def standbys(
    source_server: PostgresServer, target_server: PostgresServer
) -> Iterator[dict[str, PostgresServer]]:
    """A physical standby of each server."""
    running: dict[str, PostgresServer] = {}
    try:
        for side, server in (("source", source_server), ("target", target_server)):
            running[side] = create_standby(
                server, cluster_name="standby_1", wal_receiver_status_interval="1s"
            )
        yield running
    finally:
        for server in running.values():
            server.stop("immediate")


@pytest.fixture
def lagging(
    side: str, standbys: dict[str, PostgresServer], primary: PostgresServer
) -> Iterator[PostgresServer]:
    """The standby while it replays nothing."""
    standby = standbys[side]
    standby.psql("-c", "SELECT pg_wal_replay_pause()")
    primary.psql("-c", "SELECT pg_logical_emit_message(true, 'test', 'written')")
    yield standby
    standby.psql("-c", "SELECT pg_wal_replay_resume()", "-c", f"{REPORT_EVERY} = '1s'")
    standby.psql("-c", "SELECT pg_reload_conf()")


@pytest.fixture
def gauge(
    side: str, source_params: ConnectionParams, target_params: ConnectionParams
) -> Iterator[ReplicaLag]:
    """That of the standby, with a limit of a second."""
    params = source_params if side == "source" else target_params
    gauge = ReplicaLag(params, side=side, tenant="acme", limit_seconds=1.0)
    yield gauge
    gauge.close()


@pytest.fixture
def wide(source_params: ConnectionParams, move: Move) -> Move:
    """A tenant with nine megabytes in small chunks, prepared, with a limit on everything."""
    owner = replace(source_params, user="app_owner", password=APP_PASSWORD)
    with closing(open_client_connection(owner, purpose="schema")) as session, session:
        rows(session, "CREATE TABLE public.wide (id bigint PRIMARY KEY, filler text)")
        rows(
            session,
            "INSERT INTO public.wide SELECT n, repeat('x', %s) FROM generate_series(1, %s) n",
            WIDTH,
            ROWS,
        )
    limits = ThrottleLimits(replica_lag_seconds=1.0, query_latency_ms=100.0)
    move = with_tenant(move, throttle=limits, chunk_rows=3000, backfill_workers=1)
    prepare(move)
    return move


@pytest.fixture
def copying(wide: Move) -> Iterator[threading.Thread]:
    """A backfill that begins when it is started."""
    thread = threading.Thread(target=lambda: backfill(wide), daemon=True)
    yield thread
    thread.join(60)
    assert not thread.is_alive()


@pytest.fixture
def throttled_by(target: connection) -> Callable[[], str]:
    """Read what people see of the throttle; empty: nothing slows down the tenant."""

    def read() -> str:
        ((reason,),) = rows(target, "SELECT throttled_by FROM tenantferry.progress")
        return str(reason or "")

    return read
