"""The pools that tasks run in, named where the engine plans them."""

from tenantferry.fleet.pools import CUTOVER_POOL, backfill_pool

__all__ = ["CUTOVER_POOL", "backfill_pool"]
