"""One Airflow Dag for the whole fleet: ``abort_tenant`` takes a tenant out of its move."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from airflow.sdk import DAG, Param, get_parsing_context

from tenantferry_airflow.abort import AbortOperator
from tenantferry_airflow.defaults import task_defaults
from tenantferry_airflow.documents import read_sections
from tenantferry_airflow.fleet import load_declared_fleet

if TYPE_CHECKING:
    from tenantferry.fleet import Fleet

DAG_ID = "abort_tenant"
DOCUMENTS = read_sections(Path(__file__).with_suffix(".md"))

# Each try waits a minute for a step that is just running; a comparison may take hours.
ABORT_RETRIES = 400
MOST_RUNS = 100


def build_dag(fleet: Fleet) -> DAG:
    """Wire the abort. Touches no database."""
    with DAG(
        dag_id=DAG_ID,
        dag_display_name="abort tenant",
        description="Take a tenant that is not live yet out of its move, and out of the target",
        doc_md=DOCUMENTS["dag"],
        tags=["tenantferry"],
        schedule=None,
        catchup=False,
        is_paused_upon_creation=False,
        max_active_runs=MOST_RUNS,
        params={
            "tenant": Param(
                type="string",
                enum=sorted(fleet.tenants),
                description="Which tenant is taken out. Its rows in the target are deleted.",
            )
        },
        default_args=task_defaults(
            fleet,
            retries=ABORT_RETRIES,
            retry_delay=timedelta(seconds=10),
        ),
    ) as dag:
        AbortOperator(task_id="abort", tenant="{{ params.tenant }}", doc_md=DOCUMENTS["abort"])
    return dag


# A worker parses this file to run one task of a tenant; it then needs none of this.
if get_parsing_context().dag_id in (None, DAG_ID):
    globals()[DAG_ID] = build_dag(load_declared_fleet())
