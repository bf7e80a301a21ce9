from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import yaml
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk import CronTriggerTimetable
from airflow.sdk.exceptions import AirflowRuntimeError, AirflowSkipException, ErrorType
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.comms import ErrorResponse, OKResponse
from airflow.triggers.base import TriggerEvent

from tenantferry.connections import ConnectionParams
from tenantferry.control.waves import Standing
from tenantferry.errors import TransientError
from tenantferry.waves.standings import RunLook, judge_run
from tenantferry_airflow.dag_runs import AirflowRuns
from tenantferry_airflow.fleet import load_declared_fleet
from tenantferry_airflow.waves import RunWaveOperator, WaveTrigger, read_databases

DAGS = Path(__file__).resolve().parents[2] / "dags"
PASSWORD = "correct horse battery staple"


def parse() -> Any:
    bag = DagBag(
        dag_folder=str(DAGS / "nightly_wave.py"), bundle_path=DAGS, bundle_name="dags-folder"
    )
    assert bag.import_errors == {}
    return bag.dags.get("nightly_wave")


def declare(fleet_file: Path, **waves: object) -> None:
    document = yaml.safe_load(fleet_file.read_text("utf-8"))
    fleet_file.write_text(yaml.safe_dump({**document, "waves": waves}), "utf-8")


def connect(monkeypatch: pytest.MonkeyPatch, *conn_ids: str) -> None:
    for conn_id in conn_ids:
        fields = {"conn_type": "postgres", "host": f"host-of-{conn_id}", "login": "ferry"}
        monkeypatch.setenv(
            f"AIRFLOW_CONN_{conn_id.upper()}",
            json.dumps({**fields, "password": PASSWORD, "schema": "shop"}),
        )


def test_the_wave_plans_and_then_runs_one_wave_at_a_time(fleet_file: Path) -> None:
    dag = parse()

    edges = {task.task_id: task.downstream_task_ids for task in dag.tasks}
    assert edges == {"plan": {"run_wave"}, "run_wave": set()}
    assert (dag.max_active_runs, dag.catchup, dag.is_paused_upon_creation) == (1, False, False)
    assert all("*Clear it*" in str(task.doc_md) for task in dag.tasks)
    assert dag.params["dry_run"] is False


def test_the_wave_runs_by_hand_only_until_a_schedule_is_declared(fleet_file: Path) -> None:
    by_hand = parse()
    declare(fleet_file, schedule="0 22 * * *", timezone="Europe/Berlin")
    by_clock = parse()

    assert by_hand.schedule is None
    assert isinstance(by_clock.schedule, CronTriggerTimetable)
    assert by_clock.schedule.expression == "0 22 * * *"
    assert str(by_clock.schedule.timezone) == str(ZoneInfo("Europe/Berlin"))


def test_a_task_of_a_tenant_does_not_build_the_wave(
    fleet_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_AIRFLOW_PARSING_CONTEXT_DAG_ID", "migrate_acme")

    assert parse() is None


def test_a_dry_run_touches_no_connection_when_it_skips_the_wave(fleet_file: Path) -> None:
    with pytest.raises(AirflowSkipException):
        RunWaveOperator(task_id="run_wave").execute({"params": {"dry_run": True}})


def test_read_databases_reaches_each_source_by_its_own_connection(
    fleet_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(monkeypatch, "target", "source_1", "source_2")

    databases = read_databases(load_declared_fleet())

    assert databases.target.describe() == "ferry@host-of-target:5432/shop"
    described = {
        key: source.describe() if isinstance(source, ConnectionParams) else source
        for key, source in databases.sources.items()
    }
    assert described == {
        "acme": "ferry@host-of-source_1:5432/acme",
        "globex": "ferry@host-of-source_2:5432/shop",
    }
    assert databases.servers() == {
        "acme": "host-of-source_1:5432",
        "globex": "host-of-source_2:5432",
    }


def test_a_source_connection_that_is_missing_costs_only_its_own_tenants(
    fleet_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(monkeypatch, "target", "source_1")
    monkeypatch.setenv("AIRFLOW_CONN_SOURCE_2", json.dumps({"conn_type": "postgres"}))

    lacking = read_databases(load_declared_fleet()).sources["globex"]
    monkeypatch.delenv("AIRFLOW_CONN_SOURCE_2")
    databases = read_databases(load_declared_fleet())

    assert isinstance(databases.sources["acme"], ConnectionParams)
    assert lacking == 'connection "source_2" lacks host, login, schema (the database)'
    assert databases.sources["globex"] == 'connection "source_2" does not exist'


@pytest.mark.parametrize(
    ("state", "tasks", "expected"),
    [
        ("queued", {}, RunLook(Standing.RUNNING)),
        ("success", {"cutover": "success"}, RunLook(Standing.LIVE, is_open=False)),
        (
            "running",
            {"stream_cdc": "running", "validate": "failed", "cutover": "upstream_failed"},
            RunLook(Standing.FAILED, detail='task "validate" failed'),
        ),
        ("failed", {}, RunLook(Standing.FAILED, is_open=False, detail="its run failed")),
        (
            "running",
            {"stream_cdc": "running", "approve": "failed", "cutover": "upstream_failed"},
            RunLook(Standing.DECLINED, detail="its cutover was not approved"),
        ),
        (
            "running",
            {"stream_cdc": "running", "approve": "awaiting_input", "cutover": None},
            RunLook(Standing.ASKING, detail="it waits for an approval"),
        ),
        ("running", {"cutover": "up_for_retry"}, RunLook(Standing.RUNNING, is_cutting_over=True)),
        (
            "running",
            {"stream_cdc": "failed", "cutover": "running"},
            RunLook(Standing.FAILED, is_cutting_over=True, detail='task "stream_cdc" failed'),
        ),
    ],
    ids=[
        "just started",
        "live",
        "failed, the stream goes on",
        "marked",
        "rejected",
        "asking",
        "an undone cutover is tried again",
        "its cutover is not undone yet",
    ],
)
def test_judge_run_tells_how_a_run_stands(
    state: str, tasks: dict[str, str | None], expected: RunLook
) -> None:
    assert judge_run(state, tasks) == expected


class Supervisor:
    """Answers in the place of a task's supervisor."""

    def __init__(self, *answers: object) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    def send(self, msg: Any) -> object:
        self.asked.append(type(msg).__name__)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


class Found:
    """Any answer of Airflow's."""

    def __init__(self, **fields: object) -> None:
        self.__dict__.update(fields)


def refusal(status: int | None) -> AirflowRuntimeError:
    detail = {"detail": {"reason": "not_found", "message": "no such thing"}}
    return AirflowRuntimeError(
        ErrorResponse(
            error=ErrorType.API_SERVER_ERROR,
            detail={"status_code": status, "message": "x", "detail": detail},
        )
    )


@pytest.fixture
def supervisor(monkeypatch: pytest.MonkeyPatch) -> Supervisor:
    made = Supervisor()
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", made, raising=False)
    return made


def test_start_finds_a_run_that_is_there_already(supervisor: Supervisor) -> None:
    exists = ErrorResponse(error=ErrorType.DAGRUN_ALREADY_EXISTS)
    supervisor.answers = [Found(is_paused=False), OKResponse(ok=True)]
    supervisor.answers += [Found(is_paused=False), exists]

    answers = [AirflowRuns().start("acme", "wave_1__acme", note="") for _ in range(2)]

    assert answers == ["", ""]
    assert supervisor.asked == ["GetDag", "TriggerDagRun"] * 2


def test_start_does_not_queue_a_run_of_a_paused_dag(supervisor: Supervisor) -> None:
    supervisor.answers = [Found(is_paused=True)]

    assert AirflowRuns().start("acme", "x", note="") == 'Dag "migrate_acme" is paused'


def test_start_says_why_airflow_refuses_and_retries_where_it_does_not_answer(
    supervisor: Supervisor,
) -> None:
    supervisor.answers = [refusal(404), refusal(503)]

    refused = AirflowRuns().start("acme", "x", note="")
    with pytest.raises(TransientError, match="did not answer"):
        AirflowRuns().start("acme", "x", note="")

    assert refused == 'Airflow cannot start Dag "migrate_acme": no such thing'


def test_look_tells_a_missing_run_from_an_airflow_that_does_not_answer(
    supervisor: Supervisor,
) -> None:
    supervisor.answers = [refusal(404), refusal(None)]

    assert AirflowRuns().look("acme", "x") is None
    with pytest.raises(TransientError):
        AirflowRuns().look("acme", "x")


def test_find_open_looks_at_the_run_that_is_open(supervisor: Supervisor) -> None:
    runs = {
        "old": {"validate": "success", "stream_cdc": "success"},
        "new": {"validate": "failed", "cutover": "upstream_failed", "stream_cdc": "running"},
    }
    supervisor.answers = [Found(count=1), Found(task_states=runs), Found(count=0)]

    assert AirflowRuns().find_open("acme") == RunLook(
        Standing.FAILED, detail='task "validate" failed'
    )
    assert AirflowRuns().find_open("acme") is None


async def first_event(trigger: WaveTrigger) -> TriggerEvent:
    """Wait for the only event of a trigger."""
    (event,) = [event async for event in trigger.run()]
    return event


def test_the_trigger_survives_being_stored_and_fires_when_a_run_stands_differently(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tenantferry_airflow.waves.POLL_SECONDS", 0.01)
    running = {"standing": "running", "is_open": True, "is_cutting_over": False, "detail": ""}
    made = WaveTrigger(watched=[["acme", "wave_1__acme", running]], until=None)
    path, stored = made.serialize()
    again = WaveTrigger(**json.loads(json.dumps(stored)))
    goes_on, ended = (
        Found(task_states={"wave_1__acme": {"backfill": "running"}}),
        Found(task_states={"wave_1__acme": {"backfill": "failed"}}),
    )
    supervisor.answers = [Found(state="running"), goes_on, refusal(503)]
    supervisor.answers += [Found(state="running"), ended]

    event = asyncio.run(first_event(again))

    assert path == "tenantferry_airflow.waves.WaveTrigger"
    assert event.payload == {"reason": "run wave_1__acme stands differently"}
    assert supervisor.answers == []


def test_the_trigger_fires_when_its_time_has_come(supervisor: Supervisor) -> None:
    past = datetime(2026, 1, 1, tzinfo=UTC).timestamp()

    event = asyncio.run(first_event(WaveTrigger(watched=[], until=past)))

    assert event.payload == {"reason": "its time has come"}
