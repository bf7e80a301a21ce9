from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk.exceptions import ParamValidationError
from airflow.serialization.serialized_objects import DagSerialization

from tenantferry_airflow.abort import AbortOperator

DAGS = Path(__file__).resolve().parents[2] / "dags"


def parse() -> DagBag:
    return DagBag(dag_folder=str(DAGS / "abort.py"), bundle_path=DAGS, bundle_name="dags-folder")


def require_dag() -> Any:
    bag = parse()
    assert bag.import_errors == {}
    return bag.dags["abort_tenant"]


def test_abort_is_one_task_that_learns_its_tenant_when_the_run_starts(fleet_file: Path) -> None:
    [task] = require_dag().tasks

    task.render_template_fields({"params": {"tenant": "globex"}})

    assert (task.task_id, type(task), task.tenant) == ("abort", AbortOperator, "globex")


def test_the_tenant_is_chosen_among_those_that_are_declared(fleet_file: Path) -> None:
    param = require_dag().params.get_param("tenant")

    assert param.schema["enum"] == ["acme", "globex"]
    for wrong in ("hooli", ""):
        with pytest.raises(ParamValidationError):
            param.resolve(wrong)
    with pytest.raises(ParamValidationError):  # nobody is aborted for want of an answer
        require_dag().params.get_param("tenant").resolve()


def test_an_abort_is_started_by_a_person_and_explains_itself(fleet_file: Path) -> None:
    dag = require_dag()
    [task] = dag.tasks

    assert (dag.schedule, dag.catchup, dag.is_paused_upon_creation) == (None, False, False)
    assert "rollback_tenant" in str(dag.doc_md)
    assert "*Clear it*" in str(task.doc_md)
    assert task.retry_policy is not None


def test_the_dag_stays_valid_with_an_empty_fleet(fleet_file: Path) -> None:
    head, _, _ = fleet_file.read_text("utf-8").partition("tenants:")
    fleet_file.write_text(f"{head}tenants: []\n", "utf-8")

    dag = require_dag()

    assert DagSerialization.from_dict(DagSerialization.to_dict(dag)).dag_id == "abort_tenant"


def test_a_task_of_a_tenant_does_not_build_it(
    fleet_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_AIRFLOW_PARSING_CONTEXT_DAG_ID", "migrate_acme")

    assert parse().dags == {}
