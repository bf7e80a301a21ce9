"""Which gauges a move has, and that they hold the limits of its settings."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from move_stage import with_tenant
from tenantferry.fleet.declaration import ThrottleLimits
from tenantferry.local.postgres import PostgresServer
from tenantferry.moves.move import Move
from tenantferry.moves.throttling import _gauges
from tenantferry.throttle.standbys import ReplicaLag

WaitFor = Callable[[Callable[[], object]], None]

STANDBYS = ["replica lag of the source", "replica lag of the target"]
QUERIES = ["latency of queries"]


@pytest.mark.parametrize(
    ("limits", "names"),
    [
        (ThrottleLimits(), STANDBYS),
        (ThrottleLimits(query_latency_ms=100), STANDBYS + QUERIES),
        (ThrottleLimits(replica_lag_seconds=None, query_latency_ms=100), QUERIES),
        (ThrottleLimits(replica_lag_seconds=None), []),
    ],
    ids=["default", "both", "queries only", "none"],
)
def test_a_move_has_a_gauge_of_each_limit(
    move: Move, limits: ThrottleLimits, names: list[str]
) -> None:
    gauges = _gauges(with_tenant(move, throttle=limits))

    assert [gauge.name for gauge in gauges] == names


@pytest.mark.parametrize(
    ("limits", "side", "shown"),
    [
        (ThrottleLimits(replica_lag_seconds=1), "source", [True, False]),
        (ThrottleLimits(replica_lag_seconds=1), "target", [False, True]),
        (ThrottleLimits(replica_lag_seconds=600), "source", [False, False]),
        (
            ThrottleLimits(replica_lag_seconds=1, ignored_standbys=frozenset({"standby_1"})),
            "source",
            [False, False],
        ),
    ],
    indirect=["side"],
    ids=["source", "target", "below the limit", "ignored"],
)
def test_a_gauge_of_a_move_holds_its_limit(
    *,
    move: Move,
    limits: ThrottleLimits,
    lagging: PostgresServer,
    gauge: ReplicaLag,
    wait_for: WaitFor,
    shown: list[bool],
) -> None:
    gauges = list(_gauges(with_tenant(move, throttle=limits)))
    wait_for(gauge.look)

    found = [gauge.look() is not None for gauge in gauges]

    for used in gauges:
        used.close()
    assert found == shown
