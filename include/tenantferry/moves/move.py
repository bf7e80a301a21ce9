"""All that one move needs to know; made from the declared fleet and Airflow's connections."""

from __future__ import annotations

from dataclasses import dataclass

from tenantferry.connections import ConnectionParams
from tenantferry.fleet import Tenant
from tenantferry.traffic.router import Router


@dataclass(frozen=True, slots=True)
class Move:
    """
    One tenant on its way from its source to the target.

    :ivar target_regions: regions that the target may hold; empty means every region.
    :ivar source: the tenant's own database, as the migration role.
    :ivar target: the shared database, as the migration role.
    :ivar target_address: host, port and database of the target as PgBouncer reaches it.
    :ivar probe: the tenant's database as its application reaches it, through PgBouncer.
    :ivar run_id: the Airflow run, for the audit trail; ``None`` from a script.
    """

    tenant: Tenant
    target_regions: frozenset[str]
    source: ConnectionParams
    target: ConnectionParams
    router: Router
    target_address: tuple[str, int, str]
    probe: ConnectionParams
    run_id: str | None
