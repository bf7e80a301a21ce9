"""One Airflow Dag for the whole fleet: ``reverse_stream`` keeps the way back of live tenants."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from airflow.sdk import DAG, get_parsing_context

from tenantferry.fleet import Fleet
from tenantferry_airflow.defaults import task_defaults
from tenantferry_airflow.documents import read_sections
from tenantferry_airflow.fleet import load_declared_fleet
from tenantferry_airflow.pools import REVERSE_POOL
from tenantferry_airflow.reverse import ReverseStreamOperator, WaitForReverseSlotOperator

DOCUMENTS = read_sections(Path(__file__).with_suffix(".md"))

DAG_ID = "reverse_stream"
# Started again for as long as the target may be away: 14 hours at five seconds; then by a new run.
STREAM_RETRIES = 10_000
# A failure that a person has to mend would fail every run anew, at once.
MOST_FAILED_RUNS = 5
# Whoever waits for a worker slot: without this one the way back of every live tenant stands still.
FIRST = 1_000_000


def build_dag(fleet: Fleet) -> DAG:
    """Wire the reverse streams. Touches no database."""
    budget = f"{fleet.grace.wal_budget_bytes / 1024**3:g} GiB"
    with DAG(
        dag_id=DAG_ID,
        dag_display_name="reverse stream",
        description="Keep the sources of live tenants current, so that each can go back",
        doc_md=DOCUMENTS["dag"].replace("BUDGET", budget),
        tags=["tenantferry"],
        # There is always one run: it waits, or it works.
        schedule="@continuous",
        start_date=datetime(2026, 1, 1, tzinfo=UTC),
        catchup=False,
        max_active_runs=1,
        max_consecutive_failed_dag_runs=MOST_FAILED_RUNS,
        is_paused_upon_creation=False,
        default_args=task_defaults(
            fleet,
            retries=STREAM_RETRIES,
            retry_delay=timedelta(seconds=5),
            weight_rule="absolute",
            priority_weight=FIRST,
        ),
    ) as dag:
        wait_for_slot = WaitForReverseSlotOperator(
            task_id="wait_for_slot", doc_md=DOCUMENTS["wait_for_slot"]
        )
        follow = ReverseStreamOperator(
            task_id="follow", doc_md=DOCUMENTS["follow"], pool=REVERSE_POOL
        )
        wait_for_slot >> follow
    return dag


if get_parsing_context().dag_id in (None, DAG_ID):
    globals()[DAG_ID] = build_dag(load_declared_fleet())
