"""
Declares no Airflow Dag: it fails to import while ``fleet.yaml`` has a notifier that cannot be made.

The other files leave such a notifier out, so that a wrong address costs nobody a Dag; here people
see it, on the Dags page.
"""

from __future__ import annotations

from tenantferry_airflow.fleet import load_declared_fleet
from tenantferry_airflow.notifying import NotifierError, find_bad_notifiers

bad = find_bad_notifiers(load_declared_fleet())
if bad:
    raise NotifierError(
        f"{len(bad)} notifier(s) of the fleet file tell nobody",
        detail=" ".join(f"{name}: {why}" for name, why in bad.items()),
        hint='Mend "notifiers" below "watch" in the fleet file. The Dags are not affected.',
    )
