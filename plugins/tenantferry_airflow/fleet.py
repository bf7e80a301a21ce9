"""Where Airflow's processes find the declared fleet."""

from __future__ import annotations

import os
from pathlib import Path

from tenantferry.fleet import Fleet, FleetError, Tenant, load_fleet

__all__ = ["FleetError", "fleet_path", "load_declared_fleet", "require_tenant"]

PROJECT_ROOT = Path(__file__).resolve().parents[2]
FLEET_VARIABLE = "TENANTFERRY_FLEET"


def fleet_path() -> Path:
    """Return the fleet file: ``TENANTFERRY_FLEET``, or ``include/fleet.yaml`` of this project."""
    return PROJECT_ROOT / os.environ.get(FLEET_VARIABLE, "include/fleet.yaml")


def load_declared_fleet() -> Fleet:
    """
    Read the fleet file. No database is touched.

    :raises FleetError: if the file as a whole is not usable.
    """
    return load_fleet(fleet_path())


def require_tenant(fleet: Fleet, key: str) -> Tenant:
    """
    Return one tenant of the fleet.

    :raises FleetError: if it is not declared, or not usable as it is declared.
    """
    if key in fleet.broken:
        raise FleetError(fleet.broken[key])
    if key not in fleet.tenants:
        raise FleetError(
            f'tenant "{key}" is not declared in fleet file "{fleet_path()}"',
            hint="Declare it again to go on with its move.",
        )
    return fleet.tenants[key]
