"""The stage on which the model plays its cases."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import UUID

import pytest

from model_stage import Stage
from tenantferry.connections import ConnectionParams
from tenantferry.fleet import Source, Tenant
from tenantferry.moves.move import Move
from tenantferry.traffic.router import Router


@pytest.fixture
def stage(source_params: ConnectionParams, target_params: ConnectionParams) -> Iterator[Stage]:
    """One tenant, one source and one target for any number of cases."""
    tenant = Tenant(
        key="acme",
        id=UUID("11111111-1111-1111-1111-111111111111"),
        source=Source(conn_id="acme"),
        round_budget_seconds=0.001,
        slot_timeout_seconds=20,
    )
    stage = Stage(
        Move(
            tenant=tenant,
            target_regions=frozenset(),
            source=source_params,
            target=target_params,
            router=Router([]),
            target_address=(target_params.host, target_params.port, target_params.database),
            probe=source_params,
            run_id="test",
        )
    )
    yield stage
    # A prepared transaction of a case that failed would keep its database.
    stage.clear()
