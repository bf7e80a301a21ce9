"""One Airflow Dag for the whole fleet: ``rollback_tenant`` hands a tenant back to its source."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from airflow.sdk import DAG, Param, get_parsing_context

from tenantferry_airflow.defaults import task_defaults
from tenantferry_airflow.documents import read_sections
from tenantferry_airflow.fleet import load_declared_fleet
from tenantferry_airflow.operators import ProbeOperator, StreamOperator
from tenantferry_airflow.pools import CUTOVER_POOL, STREAM_POOL
from tenantferry_airflow.rollback import RollbackOperator

if TYPE_CHECKING:
    from tenantferry.fleet import Fleet

DAG_ID = "rollback_tenant"
DOCUMENTS = read_sections(Path(__file__).with_suffix(".md"))
TENANT = "{{ params.tenant }}"

# A stream is started again for as long as a source may be away: 14 hours at five seconds.
STREAM_RETRIES = 10_000
# An attempt that undoes itself has held clients up: leave them some peace.
ROLLBACK_RETRY_DELAY = timedelta(seconds=30)
# A run lasts until its tenant is moved again, and no tenant's emergency waits for another's.
MOST_RUNS = 1_000
# Whatever else waits for a slot: this is an emergency.
FIRST = 1_000_000


def build_dag(fleet: Fleet) -> DAG:
    """Wire the rollback. Touches no database."""
    with DAG(
        dag_id=DAG_ID,
        dag_display_name="rollback tenant",
        description="Send a live tenant back to its own database, with all that was written since",
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
                description="Which tenant goes back.",
            )
        },
        default_args=task_defaults(
            fleet,
            retries=5,
            retry_delay=timedelta(seconds=10),
            weight_rule="absolute",
            priority_weight=FIRST,
        ),
    ) as dag:
        rollback = RollbackOperator(
            task_id="rollback",
            tenant=TENANT,
            doc_md=DOCUMENTS["rollback"],
            pool=CUTOVER_POOL,
            retry_delay=ROLLBACK_RETRY_DELAY,
        )
        probe = ProbeOperator(task_id="probe", tenant=TENANT, doc_md=DOCUMENTS["probe"])
        stream_cdc = StreamOperator(
            task_id="stream_cdc",
            tenant=TENANT,
            doc_md=DOCUMENTS["stream_cdc"],
            # Not the tenant's own pool: which tenant it is shows when the run starts.
            pool=STREAM_POOL,
            retries=STREAM_RETRIES,
            retry_delay=timedelta(seconds=5),
        )
        rollback >> [probe, stream_cdc]
    return dag


# A worker parses this file to run one task of a tenant; it then needs none of this.
if get_parsing_context().dag_id in (None, DAG_ID):
    globals()[DAG_ID] = build_dag(load_declared_fleet())
