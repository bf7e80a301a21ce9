"""``nightly_wave``: the fleet moves by itself, and stops itself."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from airflow.sdk import DAG, CronTriggerTimetable, Param, get_parsing_context

from tenantferry_airflow.defaults import task_defaults
from tenantferry_airflow.documents import read_sections
from tenantferry_airflow.fleet import load_declared_fleet
from tenantferry_airflow.waves import DRY_RUN, PlanWaveOperator, RunWaveOperator

if TYPE_CHECKING:
    from tenantferry.fleet import Fleet

DAG_ID = "nightly_wave"
DOCUMENTS = read_sections(Path(__file__).with_suffix(".md"))

# A wave that nobody looks at survives a target, or an Airflow, that is away for half the night.
WAVE_RETRIES = 240


def build_dag(fleet: Fleet) -> DAG:
    """Wire the wave. Touches no database."""
    waves = fleet.waves
    schedule = waves.schedule
    with DAG(
        dag_id=DAG_ID,
        dag_display_name="nightly wave",
        description="Move the next tenants of the fleet, the least critical and smallest first",
        doc_md=DOCUMENTS["dag"],
        tags=["tenantferry"],
        schedule=None if schedule is None else CronTriggerTimetable(schedule, waves.timezone),
        catchup=False,
        # Whoever wrote a schedule into the fleet file wants it.
        is_paused_upon_creation=False,
        max_active_runs=1,
        params={
            DRY_RUN: Param(
                False,
                type="boolean",
                title="Dry run",
                description="Only show tonight's plan, in the log and the XCom of the task plan.",
            )
        },
        default_args=task_defaults(
            fleet,
            retry_delay=timedelta(minutes=2),
        ),
    ) as dag:
        plan = PlanWaveOperator(task_id="plan", doc_md=DOCUMENTS["plan"], retries=10)
        run_wave = RunWaveOperator(
            task_id="run_wave", doc_md=DOCUMENTS["run_wave"], retries=WAVE_RETRIES
        )
        plan >> run_wave
    return dag


# A worker parses this file to run one task of a tenant; it then needs none of this.
if get_parsing_context().dag_id in (None, DAG_ID):
    globals()[DAG_ID] = build_dag(load_declared_fleet())
