from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import yaml
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk import CronTriggerTimetable
from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType, TaskDeferred
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.comms import ErrorResponse, MaskSecret, OKResponse
from airflow.triggers.base import TriggerEvent
from psycopg2.extensions import connection

from tenantferry.connections import ConnectionParams
from tenantferry.control.waves import (
    Pick,
    Standing,
    read_wave,
    record_plan,
    record_standing,
    record_start,
    stop_wave,
)
from tenantferry.errors import TransientError
from tenantferry.waves import nightly
from tenantferry.waves.planning import WavePlan
from tenantferry.waves.reading import Databases
from tenantferry.waves.standings import RunLook, judge_run
from tenantferry_airflow.dag_runs import AirflowRuns
from tenantferry_airflow.fleet import load_declared_fleet
from tenantferry_airflow.waves import (
    PlanWaveOperator,
    RunWaveOperator,
    ShowPlanOperator,
    WaveTrigger,
    read_databases,
)

DAGS = Path(__file__).resolve().parents[2] / "dags"
PASSWORD = "correct horse battery staple"


def parse(dag_id: str = "nightly_wave") -> Any:
    bag = DagBag(
        dag_folder=str(DAGS / "nightly_wave.py"), bundle_path=DAGS, bundle_name="dags-folder"
    )
    assert bag.import_errors == {}
    return bag.dags.get(dag_id)


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


def test_the_plan_is_shown_by_a_dag_of_its_own_that_never_waits_for_a_wave(
    fleet_file: Path,
) -> None:
    declare(fleet_file, schedule="0 22 * * *")

    dag = parse("nightly_plan")

    assert [task.task_id for task in dag.tasks] == ["show_plan"]
    assert (dag.schedule, dag.is_paused_upon_creation) == (None, False)
    assert "*Clear it*" in str(dag.task_dict["show_plan"].doc_md)


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
    assert parse("nightly_plan") is None


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
        if isinstance(msg, MaskSecret):  # told whenever a connection is read
            return None
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


def reach(monkeypatch: pytest.MonkeyPatch, target: ConnectionParams) -> None:
    """Let the fleet's target be a real one, and its sources be away."""
    fields = {"conn_type": "postgres", "host": target.host, "login": target.user}
    fields |= {"password": target.password, "schema": target.database}
    for conn_id, port in {"target": target.port, "source_1": 1, "source_2": 1}.items():
        declared = json.dumps({**fields, "port": port})
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", declared)


def test_the_shown_plan_is_that_of_the_time_of_the_next_wave(
    fleet_file: Path,
    supervisor: Supervisor,
    monkeypatch: pytest.MonkeyPatch,
    target_params: ConnectionParams,
) -> None:
    reach(monkeypatch, target_params)
    asked: list[datetime | None] = []

    def show_plan(databases: Databases, runs: AirflowRuns, *, at: datetime | None) -> WavePlan:
        asked.append(at)
        return nightly.show_plan(databases, runs, at=at)

    monkeypatch.setattr("tenantferry_airflow.waves.show_plan", show_plan)
    tonight = datetime(2126, 1, 1, 22, tzinfo=UTC)
    supervisor.answers = [Found(next_dagrun=tonight), Found(next_dagrun=None)]

    told = ShowPlanOperator(task_id="show_plan").execute({})
    ShowPlanOperator(task_id="show_plan").execute({})

    assert asked == [tonight, None]
    assert told["picked"] == []
    assert "stage 1 of 4" in told["sentence"]


@pytest.mark.parametrize(
    ("hours_ago", "is_over"), [(7.9, False), (8.1, True)], ids=["in time", "too late"]
)
def test_a_wave_that_is_late_counts_its_hours_from_its_time(
    fleet_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    target_params: ConnectionParams,
    hours_ago: float,
    is_over: bool,
) -> None:
    reach(monkeypatch, target_params)
    run_after = datetime.now(UTC) - timedelta(hours=hours_ago)
    context: Any = {"run_id": "night 1", "dag_run": Found(run_after=run_after)}

    told = PlanWaveOperator(task_id="plan").execute(context)

    assert ("the time of this wave is over" in told["sentence"]) == is_over


def test_a_try_after_the_first_does_not_let_a_stopped_wave_go_on(
    fleet_file: Path,
    supervisor: Supervisor,
    monkeypatch: pytest.MonkeyPatch,
    target_params: ConnectionParams,
    target: connection,
) -> None:
    reach(monkeypatch, target_params)
    until = datetime.now(UTC) + timedelta(hours=1)
    wave = record_plan(
        target, "night 1", [Pick("acme", False, 1), Pick("globex", False, 1)],
        stage=1, stage_size=2, stage_wave=None, starts_from=None, starts_until=until,
    )  # fmt: skip
    assert wave is not None
    record_start(target, wave, "acme")
    record_standing(target, wave, "acme", Standing.RUNNING, detail="")
    stop_wave(target, wave, reason="the budget is spent")
    tasks = {"wave_1__acme": {"backfill": "running"}}
    supervisor.answers = [Found(state="running"), Found(task_states=tasks)]

    with pytest.raises(TaskDeferred):
        RunWaveOperator(task_id="run_wave").execute({"run_id": "night 1"})

    found = read_wave(target, "night 1")
    assert found is not None
    assert found.stop_reason == "the budget is spent"
    assert supervisor.answers == []


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
