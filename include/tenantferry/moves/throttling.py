"""What slows down the copy and the stream of a move: the limits of its tenant."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager

from tenantferry.moves.move import Move
from tenantferry.throttle.board import ControlBoard
from tenantferry.throttle.standbys import ReplicaLag
from tenantferry.throttle.throttle import Throttle
from tenantferry.throttle.watching import Gauge, watch_gauges
from tenantferry.traffic.latency import QueryLatency


def throttled(move: Move) -> AbstractContextManager[Throttle]:
    """Return the tenant's throttle, which is kept up to date within its block."""
    tenant = move.tenant.key
    board = ControlBoard(move.target, tenant=tenant)
    return watch_gauges(list(_gauges(move)), tenant=tenant, board=board)


def _gauges(move: Move) -> Iterator[Gauge]:
    limits, tenant = move.tenant.throttle, move.tenant.key
    if limits.replica_lag_seconds is not None:
        for side, params in (("source", move.source), ("target", move.target)):
            yield ReplicaLag(
                params,
                side=side,
                tenant=tenant,
                limit_seconds=limits.replica_lag_seconds,
                ignored=limits.ignored_standbys,
            )
    if limits.query_latency_ms is not None:
        yield QueryLatency(move.router.instances, tenant=tenant, limit_ms=limits.query_latency_ms)
