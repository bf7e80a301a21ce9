"""The Dags that look after the fleet: ``watch_fleet``, and ``validate_fleet`` beside it."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, Param, get_parsing_context

from tenantferry.fleet import Fleet
from tenantferry.watch.checks import CHECKS
from tenantferry_airflow.documents import read_sections
from tenantferry_airflow.fleet import load_declared_fleet
from tenantferry_airflow.notifying import failure_callbacks
from tenantferry_airflow.watch import (
    ACKNOWLEDGE,
    ValidateSampleOperator,
    WatchGracesOperator,
    WatchOperator,
)

DOCUMENTS = read_sections(Path(__file__).with_suffix(".md"))

WATCH = "watch_fleet"
VALIDATE = "validate_fleet"
# A look is over in seconds; with many servers gone at once, in minutes.
LOOK_TIMEOUT = timedelta(minutes=15)


def build_watch_dag(fleet: Fleet) -> DAG:
    """Wire the looks: one task each, so that its name says what is wrong. Touches no database."""
    with DAG(
        dag_id=WATCH,
        dag_display_name="watch fleet",
        description="Say what of the fleet is wrong, or about to be, and what to do",
        doc_md=DOCUMENTS["watch_fleet"],
        schedule=fleet.watch.schedule,
        params={
            ACKNOWLEDGE: Param(
                [],
                type="array",
                items={"type": "string"},
                title="Take note of lost ways back",
                description="Keys of tenants whose lost way back need not be told any more, one"
                " per line.",
            )
        },
        **_settings(fleet),
    ) as dag:
        for check in CHECKS:
            operator = WatchGracesOperator if check == "graces" else WatchOperator
            operator(
                task_id=check,
                check=check,
                doc_md=DOCUMENTS[check],
                execution_timeout=LOOK_TIMEOUT,
            )
    return dag


def build_validate_dag(fleet: Fleet) -> DAG:
    """Wire the comparison, which may take hours: no look waits for it. Touches no database."""
    with DAG(
        dag_id=VALIDATE,
        dag_display_name="validate fleet",
        description="Compare every row of a few tenants, again and again",
        doc_md=DOCUMENTS["validate_fleet"],
        schedule=fleet.watch.validate_schedule,
        **_settings(fleet),
    ) as dag:
        ValidateSampleOperator(task_id="validate_sample", doc_md=DOCUMENTS["validate_sample"])
    return dag


def _settings(fleet: Fleet) -> dict[str, Any]:
    return {
        "tags": ["tenantferry"],
        "catchup": False,
        "max_active_runs": 1,
        # A watch that somebody has to switch on first is none.
        "is_paused_upon_creation": False,
        "default_args": {
            "owner": "tenantferry",
            # The next run looks again; a finding is told at once.
            "retries": 0,
            "on_failure_callback": failure_callbacks(fleet),
        },
    }


wanted_dag_id = get_parsing_context().dag_id
declared = load_declared_fleet()

for dag_id, build in {WATCH: build_watch_dag, VALIDATE: build_validate_dag}.items():
    if wanted_dag_id in (None, dag_id):
        globals()[dag_id] = build(declared)
