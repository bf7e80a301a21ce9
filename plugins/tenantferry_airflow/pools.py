"""The pools that tasks run in, named where the engine plans them."""

from tenantferry.fleet.pools import CUTOVER_POOL, REVERSE_POOL, STREAM_POOL, backfill_pool

__all__ = ["CUTOVER_POOL", "REVERSE_POOL", "STREAM_POOL", "backfill_pool"]
