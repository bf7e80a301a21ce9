"""The lag of a real physical standby, and a real copy that waits for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace

import pytest
from psycopg2.extensions import connection

from move_stage import APP_PASSWORD, Stage, rows
from tenantferry.connections import ConnectionParams
from tenantferry.errors import PermanentError
from tenantferry.local.postgres import PostgresServer
from tenantferry.throttle.standbys import ReplicaLag

WaitFor = Callable[[Callable[[], object]], None]


def test_replica_lag_grows_while_a_standby_replays_nothing_and_ends_when_it_has_caught_up(
    lagging: PostgresServer, gauge: ReplicaLag, wait_for: WaitFor
) -> None:
    wait_for(gauge.look)

    reason = gauge.look()
    # It says that it has caught up, and only much later that its lag is no more.
    lagging.psql("-c", "ALTER SYSTEM SET wal_receiver_status_interval = '60s'")
    lagging.psql("-c", "SELECT pg_reload_conf()", "-c", "SELECT pg_wal_replay_resume()")

    assert reason is not None
    assert reason.startswith("replica lag of the source: ")
    assert reason.endswith(' s (standby "standby_1")')
    began = time.monotonic()
    wait_for(lambda: gauge.look() is None)
    assert time.monotonic() - began < 8


def test_replica_lag_leaves_out_the_standbys_that_are_named(
    lagging: PostgresServer, gauge: ReplicaLag, source_params: ConnectionParams, wait_for: WaitFor
) -> None:
    wait_for(gauge.look)
    blind = ReplicaLag(
        source_params, side="source", tenant="acme", limit_seconds=1.0, ignored={"standby_1"}
    )

    with closing(blind):
        assert blind.look() is None


def test_replica_lag_leaves_out_streams(
    stage: Stage, source_params: ConnectionParams, wait_for: WaitFor
) -> None:
    tight = ReplicaLag(source_params, side="source", tenant="acme", limit_seconds=1e-9)
    senders = "SELECT replay_lag FROM pg_stat_replication WHERE replay_lag > interval '0'"

    with closing(tight):
        # The source goes on writing: each report of the stream is behind it by something.
        def is_behind() -> bool:
            rows(stage.source, "SELECT pg_logical_emit_message(true, 'test', 'written')")
            return bool(rows(stage.source, senders))

        wait_for(is_behind)
        assert tight.look() is None


def test_replica_lag_cannot_be_told_by_a_role_that_sees_no_standbys(
    lagging: PostgresServer, source_params: ConnectionParams
) -> None:
    owner = replace(source_params, user="app_owner", password=APP_PASSWORD)
    gauge = ReplicaLag(owner, side="source", tenant="acme", limit_seconds=1.0)

    with closing(gauge), pytest.raises(PermanentError, match="cannot see the standbys"):
        gauge.look()


@pytest.mark.parametrize("side", ["source", "target"], indirect=True)
def test_backfill_waits_while_a_standby_lags_and_goes_on_afterwards(
    *,
    side: str,
    lagging: PostgresServer,
    gauge: ReplicaLag,
    copying: threading.Thread,
    source: connection,
    target: connection,
    wait_for: WaitFor,
    throttled_by: Callable[[], str],
) -> None:
    wait_for(gauge.look)

    copying.start()
    wait_for(throttled_by)
    reason = throttled_by()
    # Without a throttle it takes less than a second.
    copying.join(3)
    was_waiting = copying.is_alive()
    reading = rows(source, "SELECT pid FROM pg_stat_activity WHERE query LIKE 'COPY%'")
    lagging.psql("-c", "SELECT pg_wal_replay_resume()")
    # Slowed down, each of its nine megabytes would take ten seconds.
    copying.join(30)

    assert reason.startswith(f"replica lag of the {side}: ")
    assert was_waiting
    assert reading == []
    assert not copying.is_alive()
    assert rows(target, "SELECT count(*) FROM public.wide") == rows(
        source, "SELECT count(*) FROM public.wide"
    )
    assert not throttled_by()
