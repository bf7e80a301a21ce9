"""One Airflow Dag per tenant: ``migrate_<tenant>`` moves it to the shared database, live."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import DAG, Param, TaskGroup, get_parsing_context

from tenantferry_airflow.defaults import task_defaults
from tenantferry_airflow.documents import read_sections
from tenantferry_airflow.fleet import load_declared_fleet
from tenantferry_airflow.operators import (
    BackfillOperator,
    CutoverOperator,
    PreflightOperator,
    PrepareOperator,
    ProbeOperator,
    StreamOperator,
    ValidateOperator,
)
from tenantferry_airflow.pools import CUTOVER_POOL, backfill_pool
from tenantferry_airflow.sensors import LagSensor

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator

    from tenantferry.fleet import Fleet, Tenant

DOCUMENTS = read_sections(Path(__file__).with_suffix(".md"))
REPAIR = "{{ params.repair }}"

# A stream is started again for as long as a source may be away: 14 hours at five seconds.
STREAM_RETRIES = 10_000
LAG_TIMEOUT = timedelta(hours=6)
CUTOVER_RETRY_DELAY = timedelta(seconds=30)


def build_dag(tenant: Tenant, fleet: Fleet) -> DAG:
    """Wire the move of one tenant. Touches no database."""
    with DAG(
        dag_id=tenant.dag_id,
        dag_display_name=f"migrate {tenant.key}",
        description=f"Move {tenant.key} from its own database to the shared one, live",
        doc_md=DOCUMENTS["dag"].replace("TENANT", tenant.key),
        tags=["tenantferry", f"region:{tenant.region or 'any'}", f"size:{tenant.size_class}"],
        schedule=None,
        catchup=False,
        # Without a schedule nothing runs by itself, and a run of a paused Dag would just wait.
        is_paused_upon_creation=False,
        max_active_runs=1,
        params={
            "repair": Param(
                default=False,
                type="boolean",
                description="Copy chunks once more in which validate finds other rows than on the"
                " source.",
            )
        },
        default_args=task_defaults(
            fleet,
            retries=5,
            retry_delay=timedelta(seconds=10),
            # The nearer a tenant is to its end, the sooner it gets a slot.
            weight_rule="upstream",
        ),
    ) as dag:
        with _group("get_ready", "Get ready"):
            preflight = PreflightOperator(**_step(tenant, "preflight"), retries=1)
            prepare = PrepareOperator(**_step(tenant, "prepare"))
        with _group("copy_and_follow", "Copy and follow"):
            backfill = BackfillOperator(
                **_step(tenant, "backfill"), repair=REPAIR, pool=backfill_pool(tenant.source)
            )
            stream_cdc = StreamOperator(
                **_step(tenant, "stream_cdc"),
                pool=tenant.stream_pool,
                retries=STREAM_RETRIES,
                retry_delay=timedelta(seconds=5),
            )
        with _group("prove", "Prove"):
            wait_for_lag = LagSensor(**_step(tenant, "wait_for_lag"), timeout=LAG_TIMEOUT)
            validate = ValidateOperator(**_step(tenant, "validate"), repair=REPAIR)
        with _group("hand_over", "Hand over"):
            approve = _build_approval(tenant)
            cutover = CutoverOperator(
                **_step(tenant, "cutover"),
                pool=CUTOVER_POOL,
                # An attempt that undoes itself has held clients up: leave them some peace.
                retry_delay=CUTOVER_RETRY_DELAY,
            )
            probe = ProbeOperator(**_step(tenant, "probe"))
        preflight >> prepare >> backfill >> [stream_cdc, wait_for_lag]
        wait_for_lag >> validate >> approve >> cutover >> probe
    return dag


def _build_approval(tenant: Tenant) -> BaseOperator:
    if not tenant.approval:
        return EmptyOperator(task_id="approve", doc_md=DOCUMENTS["approve"])
    return ApprovalOperator(
        task_id="approve",
        doc_md=DOCUMENTS["approve"],
        subject=f"Cut {tenant.key} over to the shared database?",
        body=DOCUMENTS["approval request"],
        # A rejection holds the cutover back. A retry would ask the same question again.
        fail_on_reject=True,
        retries=0,
    )


def _group(group_id: str, title: str) -> TaskGroup:
    return TaskGroup(group_id, group_display_name=title, prefix_group_id=False)


def _step(tenant: Tenant, task_id: str) -> dict[str, str]:
    return {"task_id": task_id, "tenant": tenant.key, "doc_md": DOCUMENTS[task_id]}


# A worker parses this file to run one task; it then needs one Dag, not a thousand. A tenant that
# cannot be used is reported by broken_tenants.py and does not cost the others their Dags.
wanted_dag_id = get_parsing_context().dag_id

declared_fleet = load_declared_fleet()
for declared in declared_fleet.tenants.values():
    if wanted_dag_id in (None, declared.dag_id):
        globals()[declared.dag_id] = build_dag(declared, declared_fleet)
