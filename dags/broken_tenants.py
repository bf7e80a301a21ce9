"""
Declares no Airflow Dag: it fails to import while ``fleet.yaml`` has a tenant that cannot be used.

Airflow keeps one import error per file. With this file for it, people see the error on the Dags
page, and ``migrate.py`` goes on with all the other tenants.
"""

from __future__ import annotations

from tenantferry_airflow.fleet import FleetError, load_declared_fleet

broken = load_declared_fleet().broken
if broken:
    raise FleetError(
        f"{len(broken)} tenant(s) have no Dag: {', '.join(sorted(broken))}",
        detail=" ".join(f"({n}) {text}" for n, (_, text) in enumerate(sorted(broken.items()), 1)),
        hint="Mend them in the fleet file. The other tenants are not affected.",
    )
