from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import yaml
from airflow.dag_processing.dagbag import DagBag
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import DAG, TriggerRule
from airflow.serialization.serialized_objects import DagSerialization

from tenantferry.fleet import load_fleet
from tenantferry.fleet.pools import plan_pools

PROJECT_ROOT = Path(__file__).resolve().parents[2]
DAGS = PROJECT_ROOT / "dags"
EDGES = {
    "preflight": {"prepare"},
    "prepare": {"backfill"},
    "backfill": {"stream_cdc", "wait_for_lag"},
    "stream_cdc": set(),
    "wait_for_lag": {"validate"},
    "validate": {"approve"},
    "approve": {"cutover"},
    "cutover": {"probe"},
    "probe": set(),
}


def parse(folder: Path = DAGS) -> DagBag:
    return DagBag(dag_folder=str(folder), bundle_path=DAGS, bundle_name="dags-folder")


def moves(bag: DagBag) -> dict[str, Any]:
    """Return the Dags that move a tenant."""
    return {key: dag for key, dag in bag.dags.items() if key.startswith("migrate_")}


def test_each_tenant_has_a_dag_with_the_steps_in_their_order(fleet_file: Path) -> None:
    bag = parse()

    assert bag.import_errors == {}
    assert sorted(moves(bag)) == ["migrate_acme", "migrate_globex"]
    for dag in moves(bag).values():
        assert {task.task_id: task.downstream_task_ids for task in dag.tasks} == EDGES


def test_every_task_may_be_cleared_alone_because_it_waits_for_success_only(
    fleet_file: Path,
) -> None:
    rules = {task.trigger_rule for dag in parse().dags.values() for task in dag.tasks}

    assert rules == {TriggerRule.ALL_SUCCESS}


def test_a_dag_and_each_of_its_tasks_explain_themselves(fleet_file: Path) -> None:
    dag = parse().dags["migrate_globex"]

    assert "globex" in str(dag.doc_md)
    assert {"tenantferry", "region:eu", "size:large"} <= set(dag.tags)
    assert [task.task_id for task in dag.tasks if not task.doc_md] == []
    assert all("*Clear it*" in str(task.doc_md) for task in dag.tasks)


def test_a_run_is_started_by_a_person_and_only_one_at_a_time(fleet_file: Path) -> None:
    dag = parse().dags["migrate_acme"]

    assert dag.schedule is None
    assert (dag.catchup, dag.max_active_runs, dag.is_paused_upon_creation) == (False, 1, False)


def test_approve_asks_a_person_only_where_the_tenant_wants_it(fleet_file: Path) -> None:
    dags = parse().dags

    assert isinstance(dags["migrate_acme"].get_task("approve"), EmptyOperator)
    assert isinstance(dags["migrate_globex"].get_task("approve"), ApprovalOperator)


def test_a_rejected_approval_fails_and_does_not_ask_again(fleet_file: Path) -> None:
    approve: Any = parse().dags["migrate_globex"].get_task("approve")

    assert (approve.fail_on_reject, approve.retries) == (True, 0)


@pytest.mark.parametrize(
    "answers",
    [
        {},
        {
            "backfill": {"rows": 41, "tables": 3},
            "validate": {"rows": 42, "mismatches": 0, "validation_id": 7},
            "wait_for_lag": {"samples": [0.1, 0.2]},
        },
    ],
    ids=["tasks cleared", "usual"],
)
def test_the_approval_request_renders_whatever_the_tasks_before_it_returned(
    fleet_file: Path, answers: dict[str, Any]
) -> None:
    approve: Any = parse().dags["migrate_globex"].get_task("approve")

    class Instance:
        def xcom_pull(self, task_ids: str) -> object:
            return answers.get(task_ids)

    text = approve.render_template(approve.body, {"ti": Instance()})

    assert ("42" in text and "0.1 s, 0.2 s" in text) if answers else "unknown" in text


def test_a_broken_tenant_is_an_import_error_and_costs_no_other_tenant_its_dag(
    fleet_file: Path,
) -> None:
    with fleet_file.open("a", encoding="utf-8") as file:
        file.write("  - {key: initech, id: 17, source: {conn_id: source_2, database: initech}}\n")

    bag = parse()

    assert sorted(moves(bag)) == ["migrate_acme", "migrate_globex"]
    assert list(bag.import_errors) == ["broken_tenants.py"]
    (error,) = bag.import_errors.values()
    assert str(fleet_file) in error
    assert 'tenant "initech"' in error
    assert "id:" in error


@pytest.mark.parametrize("text", ["tenants: [", None], ids=["not YAML", "missing"])
def test_a_fleet_file_that_is_broken_as_a_whole_is_named_by_the_import_error(
    fleet_file: Path, text: str | None
) -> None:
    if text is None:
        fleet_file.unlink()
    else:
        fleet_file.write_text(text, "utf-8")

    bag = parse()

    assert bag.dags == {}
    assert "migrate.py" in bag.import_errors
    assert all(str(fleet_file) in error for error in bag.import_errors.values())


def test_parsing_opens_no_connection(fleet_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection was opened while Dags were parsed")

    monkeypatch.setattr(psycopg2, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)

    bag = parse()

    assert bag.import_errors == {}
    assert len(moves(bag)) == 2


def test_gotcha_45_parsing_for_a_task_of_one_tenant_builds_one_dag(
    fleet_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_large_fleet(fleet_file, tenants=100)
    monkeypatch.setenv("_AIRFLOW_PARSING_CONTEXT_DAG_ID", "migrate_tenant_42")
    built: list[str] = []
    original: Any = DAG.__attrs_post_init__

    def count(dag: DAG) -> None:
        built.append(dag.dag_id)
        original(dag)

    monkeypatch.setattr(DAG, "__attrs_post_init__", count)

    bag = parse(DAGS / "migrate.py")

    assert list(bag.dags) == built == ["migrate_tenant_42"]


def test_gotcha_45_a_thousand_tenants_parse_within_the_import_timeout(fleet_file: Path) -> None:
    write_large_fleet(fleet_file, tenants=1000)

    began = time.process_time()
    bag = parse(DAGS / "migrate.py")
    seconds = time.process_time() - began

    assert len(bag.dags) == 1000
    assert seconds < 30  # where Airflow gives up on a file


def test_parsing_again_gives_the_same_dags_so_that_no_new_version_is_stored(
    fleet_file: Path,
) -> None:
    first, second = (
        {key: json.dumps(DagSerialization.to_dict(dag)) for key, dag in parse().dags.items()}
        for _ in range(2)
    )

    assert first == second


def test_failures_follow_the_retry_policy_in_every_step_of_the_engine(fleet_file: Path) -> None:
    serialized = DagSerialization.to_dict(parse().dags["migrate_acme"])["dag"]["tasks"]

    policies = {
        task["__var"]["task_id"]: "has_retry_policy" in task["__var"] for task in serialized
    }

    assert all(policies[task] for task in EDGES if task != "approve")


def test_every_pool_of_the_dags_is_planned(fleet_file: Path) -> None:
    used = {task.pool for dag in parse().dags.values() for task in dag.tasks}

    assert used - {"default_pool"} == plan_pools(load_fleet(fleet_file)).keys()
    assert "tenantferry_backfill_source_2" in used


def test_the_shipped_pools_are_those_of_the_shipped_fleet() -> None:
    shipped = json.loads((PROJECT_ROOT / "include" / "pools.json").read_text("utf-8"))

    assert shipped == plan_pools(load_fleet(PROJECT_ROOT / "include" / "fleet.yaml"))


def test_the_shipped_fleet_has_no_broken_tenant() -> None:
    fleet = load_fleet(PROJECT_ROOT / "include" / "fleet.yaml")

    assert fleet.broken == {}
    assert sorted(fleet.tenants) == ["acme", "globex", "initech"]


def write_large_fleet(path: Path, *, tenants: int) -> None:
    document = yaml.safe_load(path.read_text("utf-8"))
    document["tenants"] = [
        {
            "key": f"tenant_{n}",
            "id": f"7f3b1c52-0000-4000-8000-{n:012d}",
            "source": {"conn_id": f"source_{n % 10}", "database": f"tenant_{n}"},
        }
        for n in range(tenants)
    ]
    path.write_text(yaml.safe_dump(document), "utf-8")
