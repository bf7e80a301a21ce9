"""docs/runbook.md names only Dags, their parameters, tasks, columns and settings that there are."""

from __future__ import annotations

import re
from pathlib import Path

from airflow.dag_processing.dagbag import DagBag

from tenantferry.control.phases import Phase

PROJECT_ROOT = Path(__file__).resolve().parents[2]
RUNBOOK = (PROJECT_ROOT / "docs" / "runbook.md").read_text("utf-8")
# Words of Airflow and Postgres.
FOREIGN = {
    "up_for_retry",
    "pg_restore",
    "sync_replication_slots",
    "synchronized_standby_slots",
}


def names_in(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+(?:_[a-z]+)*", text))


def test_the_runbook_names_only_what_there_is(fleet_file: Path) -> None:
    bag = DagBag(dag_folder=str(PROJECT_ROOT / "dags"), bundle_name="dags-folder")
    known = {str(phase) for phase in Phase} | FOREIGN
    for dag_id, dag in bag.dags.items():
        known |= {dag_id, dag_id.replace("acme", "<tenant>"), *dag.task_ids, *dag.params}
    for file in ("control/control.sql", "fleet/declaration.py", "fleet/operation.py"):
        known |= names_in((PROJECT_ROOT / "include" / "tenantferry" / file).read_text("utf-8"))

    assert fleet_file.exists()
    told = re.findall(r"`((?:[a-z]+\.)?[a-z_]+(?:<tenant>)?)`", RUNBOOK)
    assert len(told) > 40
    assert [name for name in told if name.split(".")[-1] not in known] == []


def test_the_links_within_the_runbook_lead_somewhere() -> None:
    headings = re.findall(r"^## (.+)$", RUNBOOK, re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9_ -]", "", title.lower()).replace(" ", "-") for title in headings}

    wanted = set(re.findall(r"\]\(#([^)]+)\)", RUNBOOK))

    assert wanted - anchors == set()
