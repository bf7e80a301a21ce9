from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk import TriggerRule
from airflow.sdk.exceptions import ParamValidationError
from airflow.serialization.serialized_objects import DagSerialization

from tenantferry.fleet import load_fleet
from tenantferry.fleet.pools import CUTOVER_POOL, plan_pools
from tenantferry_airflow.operators import ProbeOperator, StreamOperator
from tenantferry_airflow.rollback import RollbackOperator

DAGS = Path(__file__).resolve().parents[2] / "dags"


def parse() -> Any:
    bag = DagBag(dag_folder=str(DAGS / "rollback.py"), bundle_path=DAGS, bundle_name="dags-folder")
    assert bag.import_errors == {}
    return bag.dags["rollback_tenant"]


def test_the_tenant_is_back_before_it_is_probed_and_streamed(fleet_file: Path) -> None:
    dag = parse()

    assert {task.task_id: (type(task), task.downstream_task_ids) for task in dag.tasks} == {
        "rollback": (RollbackOperator, {"probe", "stream_cdc"}),
        "probe": (ProbeOperator, set()),
        "stream_cdc": (StreamOperator, set()),
    }
    assert {task.trigger_rule for task in dag.tasks} == {TriggerRule.ALL_SUCCESS}


def test_the_tenant_is_chosen_among_those_that_are_declared(fleet_file: Path) -> None:
    param = parse().params.get_param("tenant")

    assert param.schema["enum"] == ["acme", "globex"]
    assert param.resolve("globex") == "globex"
    with pytest.raises(ParamValidationError):
        param.resolve("hooli")
    with pytest.raises(ParamValidationError):
        parse().params.get_param("tenant").resolve()


def test_the_steps_learn_their_tenant_when_the_run_starts(fleet_file: Path) -> None:
    for task in parse().tasks:
        task.render_template_fields({"params": {"tenant": "globex"}})
        assert task.tenant == "globex"


def test_an_emergency_comes_before_everything_else_and_waits_for_no_other(
    fleet_file: Path,
) -> None:
    dag = parse()
    rollback = dag.get_task("rollback")

    assert rollback.pool == CUTOVER_POOL
    assert (rollback.weight_rule, rollback.priority_weight > 1000) == ("absolute", True)
    assert dag.max_active_runs >= 100
    assert (dag.schedule, dag.is_paused_upon_creation) == (None, False)


def test_the_pools_of_a_rollback_are_planned_for_every_fleet(fleet_file: Path) -> None:
    text = fleet_file.read_text("utf-8").replace(
        "defaults: {region: eu}", "defaults: {region: eu, stream_pool: their_own}"
    )
    fleet_file.write_text(text, "utf-8")

    used = {task.pool for task in parse().tasks} - {"default_pool"}

    assert used <= plan_pools(load_fleet(fleet_file)).keys()
    assert "their_own" in plan_pools(load_fleet(fleet_file))


def test_the_dag_stays_valid_with_an_empty_fleet(fleet_file: Path) -> None:
    head, _, _ = fleet_file.read_text("utf-8").partition("tenants:")
    fleet_file.write_text(f"{head}tenants: []\n", "utf-8")

    dag = parse()

    assert dag.params.get_param("tenant").schema["enum"] == []
    assert DagSerialization.from_dict(DagSerialization.to_dict(dag)).dag_id == "rollback_tenant"


def test_each_task_explains_itself_and_follows_the_retry_policy(fleet_file: Path) -> None:
    dag = parse()

    assert "its own database" in str(dag.doc_md)
    assert all("*Clear it*" in str(task.doc_md) for task in dag.tasks)
    assert all(task.retry_policy is not None for task in dag.tasks)
