from __future__ import annotations

import asyncio
import json
import pkgutil
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk import TriggerRule
from airflow.sdk.exceptions import TaskDeferred
from airflow.serialization.serialized_objects import DagSerialization
from psycopg2.extensions import connection

from reverse_stage import Way, drop_slot, make_way, wait_until
from tenantferry.connections import ConnectionParams
from tenantferry.errors import PermanentError, TransientError
from tenantferry.fleet import load_fleet
from tenantferry.fleet.pools import REVERSE_POOL, plan_pools
from tenantferry.local.accounts import free_port
from tenantferry.local.postgres import PostgresServer
from tenantferry.reverse.slot import drop_reverse_slot
from tenantferry_airflow import reverse
from tenantferry_airflow.reverse import (
    ReverseSlotTrigger,
    ReverseStreamOperator,
    WaitForReverseSlotOperator,
    find_source,
)

DAGS = Path(__file__).resolve().parents[2] / "dags"


def parse() -> Any:
    bag = DagBag(dag_folder=str(DAGS / "reverse.py"), bundle_path=DAGS, bundle_name="dags-folder")
    assert bag.import_errors == {}
    return bag.dags["reverse_stream"]


def declare(monkeypatch: pytest.MonkeyPatch, conn_id: str, params: ConnectionParams) -> None:
    """Give Airflow a connection."""
    fields = {
        "conn_type": "postgres",
        "host": params.host,
        "port": params.port,
        "login": params.user,
        "password": params.password,
        "schema": params.database,
    }
    monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(fields))


@pytest.fixture
def way(
    *,
    monkeypatch: pytest.MonkeyPatch,
    fleet_file: Path,
    source_server: PostgresServer,
    target_server: PostgresServer,
    target_params: ConnectionParams,
    target: connection,
) -> Iterator[Way]:
    """The declared tenant acme, live."""
    declare(monkeypatch, "target", target_params)
    with ExitStack() as stack:
        stack.callback(drop_slot, target_server)
        way = make_way(stack, target_params, target, source_server)
        acme = way.add("acme")
        way.table("items", "id integer, name text")
        declare(monkeypatch, "source_1", acme.params)
        # The fleet file of these tests names another database of that server.
        text = fleet_file.read_text("utf-8")
        fleet_file.write_text(text.replace("database: acme", f"database: {acme.params.database}"))
        yield way


def test_there_is_always_one_run_that_waits_or_works(fleet_file: Path) -> None:
    dag = parse()

    assert dag.schedule == "@continuous"
    assert (dag.max_active_runs, dag.catchup, dag.is_paused_upon_creation) == (1, False, False)
    assert {task.task_id: (type(task), task.downstream_task_ids) for task in dag.tasks} == {
        "wait_for_slot": (WaitForReverseSlotOperator, {"follow"}),
        "follow": (ReverseStreamOperator, set()),
    }
    assert {task.trigger_rule for task in dag.tasks} == {TriggerRule.ALL_SUCCESS}


def test_the_streams_are_started_again_and_only_once_at_a_time(fleet_file: Path) -> None:
    follow = parse().get_task("follow")

    assert follow.pool == REVERSE_POOL
    assert plan_pools(load_fleet(fleet_file))[REVERSE_POOL]["slots"] == 1
    assert follow.retries * follow.retry_delay > timedelta(hours=12)
    assert parse().max_consecutive_failed_dag_runs > 0


def test_the_texts_say_what_clearing_does_and_how_much_log_is_kept(fleet_file: Path) -> None:
    dag = parse()

    assert "8 GiB" in str(dag.doc_md)
    assert "BUDGET" not in str(dag.doc_md)
    assert all("*Clear it*" in str(task.doc_md) for task in dag.tasks)


def test_failures_follow_the_retry_policy(fleet_file: Path) -> None:
    tasks = DagSerialization.to_dict(parse())["dag"]["tasks"]

    assert all("has_retry_policy" in task["__var"] for task in tasks)


def test_waiting_defers_at_once_and_stores_nothing(fleet_file: Path) -> None:
    waiting = WaitForReverseSlotOperator(task_id="wait_for_slot")

    with pytest.raises(TaskDeferred) as deferred:
        waiting.execute({})

    path, fields = deferred.value.trigger.serialize()
    assert fields == {}
    assert pkgutil.resolve_name(path)(**fields).serialize() == (path, fields)
    finish = getattr(waiting, deferred.value.method_name)
    assert finish({}, {"status": "there"}) is None


def test_waiting_ends_when_a_cutover_has_created_the_slot(
    way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reverse, "POLL_SECONDS", 0.05)
    events: list[Any] = []

    async def wait() -> None:
        # At first the target cannot even be asked.
        declare(monkeypatch, "target", ConnectionParams("127.0.0.1", free_port(), "x", "y"))
        waiting = ReverseSlotTrigger()  # type: ignore[no-untyped-call]  # Airflow gives it no types
        trigger = asyncio.ensure_future(anext(waiting.run()))
        await asyncio.sleep(0.3)
        declare(monkeypatch, "target", way.target_params)
        await asyncio.sleep(0.3)
        events.append(trigger.done())
        await asyncio.to_thread(way.ensure)
        events.append((await asyncio.wait_for(trigger, 10)).payload)

    asyncio.run(wait())

    assert events == [False, {"status": "there"}]


def test_the_operator_follows_until_nobody_needs_it(way: Way) -> None:
    way.ensure()
    way.go_live()
    operator = ReverseStreamOperator(task_id="follow")
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(operator.execute({})))

    thread.start()
    way["acme"].write("INSERT INTO items VALUES (1, 'a')")
    wait_until(lambda: way["acme"].rows("items") == ["(1,a)"])
    way.end_grace("acme")
    assert drop_reverse_slot(way.target_params)
    thread.join(20)

    assert not thread.is_alive()
    assert results[0]["reason"] == "the reverse slot was given up"
    assert json.loads(json.dumps(results[0])) == results[0]


def test_an_operator_that_is_told_to_end_is_no_success(way: Way) -> None:
    way.ensure()
    operator = ReverseStreamOperator(task_id="follow")
    failures: list[BaseException] = []

    def execute() -> None:
        try:
            operator.execute({})
        except TransientError as error:
            failures.append(error)

    thread = threading.Thread(target=execute)
    thread.start()
    wait_until(lambda: way.slot.reported_at is not None)
    operator.on_kill()
    thread.join(20)

    assert len(failures) == 1
    assert "told to end" in str(failures[0])


def test_a_tenant_without_a_connection_fails_alone(fleet_file: Path) -> None:
    with pytest.raises(PermanentError, match='"source_1" does not exist'):
        find_source("acme")
    with pytest.raises(PermanentError, match="not declared"):
        find_source("hooli")
