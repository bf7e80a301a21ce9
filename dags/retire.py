"""``retire_tenants``: decommission the sources of tenants whose grace is over."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from airflow.sdk import DAG, CronTriggerTimetable, get_parsing_context, task_group

from tenantferry_airflow.defaults import task_defaults
from tenantferry_airflow.documents import read_sections
from tenantferry_airflow.fleet import load_declared_fleet
from tenantferry_airflow.retire import (
    ApproveRetireOperator,
    ArchiveOperator,
    BeginRetireOperator,
    FindRetirableOperator,
    LockSourceOperator,
    VerifyArchiveOperator,
)

if TYPE_CHECKING:
    from tenantferry.fleet import Fleet

DAG_ID = "retire_tenants"
DOCUMENTS = read_sections(Path(__file__).with_suffix(".md"))

# Who has not answered by then is asked again by the next run, which waits for this one.
ANSWER_WITHIN = timedelta(hours=20)
# A dump is read and restored as fast as it goes; sources and storage serve others meanwhile.
DUMPS_AT_ONCE = 2


def build_dag(fleet: Fleet) -> DAG:
    """Wire the retirement. Touches no database."""
    archive = fleet.archive
    schedule = None if archive is None else archive.schedule
    with DAG(
        dag_id=DAG_ID,
        dag_display_name="retire tenants",
        description="Archive and lock the sources of tenants that need them no more",
        doc_md=DOCUMENTS["dag"],
        tags=["tenantferry"],
        schedule=None if schedule is None else CronTriggerTimetable(schedule, timezone="UTC"),
        catchup=False,
        # Whoever declared an archive wants it, and nothing happens without a person.
        is_paused_upon_creation=False,
        max_active_runs=1,
        default_args=task_defaults(
            fleet,
            retries=5,
            retry_delay=timedelta(seconds=30),
        ),
    ) as dag:
        find_tenants = FindRetirableOperator(
            task_id="find_tenants", doc_md=DOCUMENTS["find_tenants"]
        )

        @task_group(group_id="retire", prefix_group_id=False)
        def retire(tenant: str) -> None:
            approve = ApproveRetireOperator(
                task_id="approve",
                doc_md=DOCUMENTS["approve"],
                subject=DOCUMENTS["approval subject"],
                body=DOCUMENTS["approval request"],
                response_timeout=ANSWER_WITHIN,
                retry_delay=timedelta(seconds=5),
            )
            begin = BeginRetireOperator(task_id="begin", **_step("begin", tenant))
            archive = ArchiveOperator(
                task_id="archive",
                max_active_tis_per_dag=DUMPS_AT_ONCE,
                **_step("archive", tenant),
            )
            verify = VerifyArchiveOperator(
                task_id="verify", max_active_tis_per_dag=DUMPS_AT_ONCE, **_step("verify", tenant)
            )
            lock = LockSourceOperator(task_id="lock", **_step("lock", tenant))
            approve >> begin >> archive >> verify >> lock

        retire.expand(tenant=find_tenants.output)
    return dag


def _step(task_id: str, tenant: str) -> dict[str, str]:
    return {
        "tenant": tenant,
        "doc_md": DOCUMENTS[task_id],
        "map_index_template": "{{ task.tenant }}",
    }


# A worker parses this file to run one task of a tenant; it then needs none of this.
if get_parsing_context().dag_id in (None, DAG_ID):
    globals()[DAG_ID] = build_dag(load_declared_fleet())
