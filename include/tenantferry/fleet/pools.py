"""
The Airflow pools that a fleet needs.

``python -m tenantferry.fleet.pools include/fleet.yaml > include/pools.json`` writes what
``airflow pools import`` reads.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tenantferry.fleet.declaration import Fleet, Settings, Source
from tenantferry.fleet.loading import load_fleet

CUTOVER_POOL = "tenantferry_cutover"
# Of tenants that name none, and of every tenant after its rollback.
STREAM_POOL: str = Settings.model_fields["stream_pool"].default
# Of the one task that runs the reverse streams of all tenants.
REVERSE_POOL = "tenantferry_reverse"

# A stream holds a worker slot for hours: keep the sum well below the executor's parallelism.
STREAM_SLOTS = 16
# A backfill reads as fast as it can; a source server serves its other tenants meanwhile.
BACKFILL_SLOTS_PER_SOURCE_SERVER = 2
CUTOVER_SLOTS = 2


def backfill_pool(source: Source) -> str:
    """Return the pool that bounds the backfills of one source server."""
    return f"tenantferry_backfill_{source.conn_id}"


def plan_pools(fleet: Fleet) -> dict[str, dict[str, object]]:
    """Return the pools of a fleet in the form of Airflow's pools file."""
    streams = _pool(STREAM_SLOTS, "Streams: tenants in flight.")
    pools = {
        CUTOVER_POOL: _pool(CUTOVER_SLOTS, "Cutovers at the same time."),
        STREAM_POOL: streams,
        REVERSE_POOL: _pool(1, "The reverse streams of all live tenants: one task."),
    }
    for tenant in fleet.tenants.values():
        pools[tenant.stream_pool] = streams
        pools[backfill_pool(tenant.source)] = _pool(
            BACKFILL_SLOTS_PER_SOURCE_SERVER,
            f"Backfills at the same time from source server {tenant.source.conn_id}.",
        )
    return dict(sorted(pools.items()))


def _pool(slots: int, description: str) -> dict[str, object]:
    return {"slots": slots, "description": description, "include_deferred": False}


if __name__ == "__main__":
    print(json.dumps(plan_pools(load_fleet(Path(sys.argv[1]))), indent=2))
