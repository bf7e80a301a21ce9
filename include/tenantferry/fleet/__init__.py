"""The declared fleet: which tenants there are, where they come from and where they go."""

from tenantferry.fleet.declaration import (
    Fleet,
    Router,
    RouterInstance,
    Source,
    TableKind,
    Target,
    Tenant,
)
from tenantferry.fleet.loading import FleetError, load_fleet

__all__ = [
    "Fleet",
    "FleetError",
    "Router",
    "RouterInstance",
    "Source",
    "TableKind",
    "Target",
    "Tenant",
    "load_fleet",
]
