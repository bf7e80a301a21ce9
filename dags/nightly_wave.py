"""``nightly_wave``: the fleet moves by itself, and stops itself; ``nightly_plan`` shows how."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from airflow.sdk import DAG, CronTriggerTimetable, get_parsing_context

from tenantferry_airflow.defaults import task_defaults
from tenantferry_airflow.documents import read_sections
from tenantferry_airflow.fleet import load_declared_fleet
from tenantferry_airflow.waves import (
    PLAN,
    WAVE,
    PlanWaveOperator,
    RunWaveOperator,
    ShowPlanOperator,
)

if TYPE_CHECKING:
    from tenantferry.fleet import Fleet

DOCUMENTS = read_sections(Path(__file__).with_suffix(".md"))

# A wave that nobody looks at survives a target, or an Airflow, that is away for half the night.
WAVE_RETRIES = 240


def build_wave_dag(fleet: Fleet) -> DAG:
    """Wire the wave. Touches no database."""
    waves = fleet.waves
    schedule = waves.schedule
    with DAG(
        dag_id=WAVE,
        dag_display_name="nightly wave",
        description="Move the next tenants of the fleet, the least critical and smallest first",
        doc_md=DOCUMENTS["dag"],
        tags=["tenantferry"],
        schedule=None if schedule is None else CronTriggerTimetable(schedule, waves.timezone),
        catchup=False,
        # Whoever wrote a schedule into the fleet file wants it.
        is_paused_upon_creation=False,
        max_active_runs=1,
        default_args=task_defaults(fleet, retry_delay=timedelta(minutes=2)),
    ) as dag:
        plan = PlanWaveOperator(task_id="plan", doc_md=DOCUMENTS["plan"], retries=10)
        run_wave = RunWaveOperator(
            task_id="run_wave", doc_md=DOCUMENTS["run_wave"], retries=WAVE_RETRIES
        )
        plan >> run_wave
    return dag


def build_plan_dag(fleet: Fleet) -> DAG:
    """Wire the dry run: a Dag of its own, for it must not wait for a wave. Touches no database."""
    with DAG(
        dag_id=PLAN,
        dag_display_name="nightly plan",
        description="Show what the next nightly_wave is going to do; start nobody",
        doc_md=DOCUMENTS["nightly_plan"],
        tags=["tenantferry"],
        schedule=None,
        is_paused_upon_creation=False,
        default_args=task_defaults(fleet, retry_delay=timedelta(minutes=2)),
    ) as dag:
        ShowPlanOperator(task_id="show_plan", doc_md=DOCUMENTS["show_plan"])
    return dag


# A worker parses this file to run one task of a tenant; it then needs none of this.
wanted_dag_id = get_parsing_context().dag_id

for dag_id, build in {WAVE: build_wave_dag, PLAN: build_plan_dag}.items():
    if wanted_dag_id in (None, dag_id):
        globals()[dag_id] = build(load_declared_fleet())
