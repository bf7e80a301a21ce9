from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk.execution_time.task_runner import _run_task_state_change_callbacks
from airflow.serialization.serialized_objects import DagSerialization
from psycopg2.extensions import connection

from recording_notifier import RecordingNotifier
from tenantferry.connections import ConnectionParams
from tenantferry.errors import PermanentError
from tenantferry.fleet import FleetError, load_fleet
from tenantferry.fleet.operation import Watch
from tenantferry.local.accounts import free_port
from tenantferry.watch.checks import CHECKS
from tenantferry.watch.report import FindingsError, Report
from tenantferry_airflow.notifying import failure_callbacks, find_bad_notifiers
from tenantferry_airflow.watch import WatchGracesOperator, WatchOperator, render_looks

DAGS = Path(__file__).resolve().parents[2] / "dags"
NOTIFIER = (
    "{class: recording_notifier.RecordingNotifier,"
    " arguments: {text: 'task {{ task.task_id }}: {{ exception }}'}}"
)


def parse(folder: Path = DAGS / "watch.py") -> DagBag:
    return DagBag(dag_folder=str(folder), bundle_path=DAGS, bundle_name="dags-folder")


def add(fleet_file: Path, text: str) -> None:
    with fleet_file.open("a", encoding="utf-8") as file:
        file.write(f"watch: {{{text}}}\n")


class Instance:
    """What a task may do with its instance: here, push."""

    def __init__(self) -> None:
        self.pushed: dict[str, Any] = {}

    def xcom_push(self, key: str, value: Any) -> None:
        self.pushed[key] = value


def run(task: Any, **params: Any) -> dict[str, Any]:
    """Run a task, as far as it gets, and return what it pushed."""
    instance = Instance()
    context = {"ti": instance, "run_id": "manual", "params": {"acknowledge": [], **params}}
    try:
        task.execute(context)
    except PermanentError as error:
        instance.pushed["error"] = error
    return instance.pushed


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch, target_params: ConnectionParams) -> None:
    """The target is there; the sources are not."""
    gone = {"host": "127.0.0.1", "port": free_port(), "login": "x", "schema": "z"}
    there = {
        "host": target_params.host,
        "port": target_params.port,
        "login": target_params.user,
        "password": target_params.password,
        "schema": target_params.database,
    }
    for conn_id, fields in {"source_1": gone, "source_2": gone, "target": there}.items():
        monkeypatch.setenv(
            f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps({"conn_type": "postgres", **fields})
        )


@pytest.fixture(autouse=True)
def told() -> Iterator[list[str]]:
    """What the notifier was told."""
    RecordingNotifier.told.clear()
    yield RecordingNotifier.told
    RecordingNotifier.told.clear()


def test_each_kind_of_check_is_a_task_of_its_own(fleet_file: Path) -> None:
    bag = parse()

    assert bag.import_errors == {}
    watch = bag.dags["watch_fleet"]
    assert {task.task_id for task in watch.tasks} == set(CHECKS)
    assert all(task.downstream_task_ids == set() for task in watch.tasks)
    assert [task.task_id for task in bag.dags["validate_fleet"].tasks] == ["validate_sample"]


def test_a_finding_is_told_at_once_and_by_one_run_at_a_time(fleet_file: Path) -> None:
    for dag in parse().dags.values():
        assert (dag.max_active_runs, dag.catchup, dag.is_paused_upon_creation) == (1, False, False)
        assert {task.retries for task in dag.tasks} == {0}


def test_the_fleet_file_says_when_the_dags_run(fleet_file: Path) -> None:
    before: dict[str, Any] = {key: dag.schedule for key, dag in parse().dags.items()}
    add(fleet_file, "schedule: '*/2 * * * *', validate_schedule: null")

    after: dict[str, Any] = {key: dag.schedule for key, dag in parse().dags.items()}

    assert before == {"watch_fleet": "*/5 * * * *", "validate_fleet": "*/15 * * * *"}
    assert after == {"watch_fleet": "*/2 * * * *", "validate_fleet": None}


def test_the_example_of_the_shipped_fleet_file_says_the_defaults(
    fleet_file: Path,
) -> None:
    shipped = (DAGS.parent / "include" / "fleet.yaml").read_text("utf-8")
    _, _, rest = shipped.partition("# watch:\n")
    example = rest.partition("\n\n")[0]
    with fleet_file.open("a", encoding="utf-8") as file:
        file.write("watch:\n" + "\n".join(line[2:] for line in example.splitlines()))

    watch = load_fleet(fleet_file).watch

    given = {"wal_disk_bytes", "notifiers"}
    assert watch.model_dump(exclude=given) == Watch().model_dump(exclude=given)
    assert find_bad_notifiers(load_fleet(fleet_file)) == {}


def test_parsing_for_one_task_builds_one_dag(
    fleet_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_AIRFLOW_PARSING_CONTEXT_DAG_ID", "watch_fleet")

    assert list(parse().dags) == ["watch_fleet"]


def test_the_dags_and_each_task_explain_themselves(fleet_file: Path) -> None:
    for dag in parse().dags.values():
        assert dag.doc_md
        assert all("*Clear it*" in str(task.doc_md) for task in dag.tasks)


def test_the_dags_survive_serialization(fleet_file: Path) -> None:
    add(fleet_file, f"notifiers: [{NOTIFIER}]")

    for dag in parse().dags.values():
        json.dumps(DagSerialization.to_dict(dag))


def test_a_task_whose_check_finds_nothing_shows_its_numbers(
    fleet_file: Path, connections: None, target: connection
) -> None:
    with target.cursor() as cursor:
        cursor.execute(
            "INSERT INTO tenantferry.tenants (tenant, tenant_id, phase, source_identity)"
            " VALUES ('acme', gen_random_uuid(), 'streaming', '1/acme');"
            "INSERT INTO tenantferry.streams (tenant, position, confirmed, state, lag_seconds,"
            " lag_measured_at, reported_at)"
            " VALUES ('acme', '0/9', '0/9', 'running', 0.25, now(), now())"
        )

    pushed = run(WatchOperator(task_id="lag_and_streams", check="lag_and_streams"))

    assert "error" not in pushed
    look = pushed["report"]["looks"][0]
    assert look["subject"] == 'forward stream of tenant "acme"'
    assert look["numbers"]["lag_seconds"] == 0.25
    assert look["numbers"]["lag_bytes"] is None


def test_a_task_with_findings_fails_and_lists_them_with_what_to_do(
    fleet_file: Path, connections: None
) -> None:
    with fleet_file.open("a", encoding="utf-8") as file:
        file.write("  - {key: initech, id: 17, source: {conn_id: source_2, database: initech}}\n")

    pushed = run(WatchOperator(task_id="servers", check="servers"))

    error = pushed["error"]
    assert isinstance(error, FindingsError)
    assert '(1) Tenant "initech": tenant "initech" in fleet file' in str(error)
    assert "(2) Server 127.0.0.1:" in str(error)
    assert "Tenants: acme, globex." in str(error)
    assert str(error).count("To do: ") == 2
    assert len(pushed["report"]["findings"]) == 2


@pytest.mark.parametrize("check", sorted(CHECKS))
def test_no_check_fails_where_nothing_was_ever_prepared_but_for_dead_servers(
    fleet_file: Path, connections: None, target: connection, check: str
) -> None:
    with target.cursor() as cursor:
        cursor.execute("DROP SCHEMA tenantferry CASCADE")

    pushed = run(WatchOperator(task_id=check, check=check))

    assert ("error" in pushed) == (check == "servers")


def test_a_source_without_a_connection_is_a_finding(
    fleet_file: Path, connections: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AIRFLOW_CONN_SOURCE_2")

    error = str(run(WatchOperator(task_id="servers", check="servers"))["error"])

    assert 'Airflow connection "source_2" does not exist' in error
    assert "Tenants: acme." in error


def test_a_person_takes_note_of_a_lost_way_back_by_a_run_of_the_dag(
    fleet_file: Path, connections: None, target: connection
) -> None:
    with target.cursor() as cursor:
        cursor.execute(
            "INSERT INTO tenantferry.tenants (tenant, tenant_id, phase, source_identity)"
            " VALUES ('acme', gen_random_uuid(), 'live', '1/acme');"
            "INSERT INTO tenantferry.write_pauses (tenant, deadline, resumed_at)"
            " VALUES ('acme', now(), now());"
            "INSERT INTO tenantferry.graces"
            " (tenant, attempt, start_lsn, ends_at, lost_at, lost_reason)"
            " SELECT 'acme', max(id), '0/1', now() + interval '7 days', now(), 'Gone.'"
            " FROM tenantferry.write_pauses"
        )
    operator = WatchGracesOperator(task_id="graces", check="graces")

    pushed = [run(operator), run(operator, acknowledge=["acme"]), run(operator)]

    assert ["error" in each for each in pushed] == [True, False, False]


def test_the_declared_notifier_is_told_what_the_task_found(
    fleet_file: Path, told: list[str]
) -> None:
    add(fleet_file, f"notifiers: [{NOTIFIER}]")
    task: Any = parse().dags["watch_fleet"].get_task("servers")
    context: Any = {"task": task, "dag": task.dag, "exception": FindingsError("3 things")}

    _run_task_state_change_callbacks(task, "on_failure_callback", context, structlog.get_logger())

    assert told == ["task servers: 3 things"]


@pytest.mark.parametrize(
    ("notifier", "why"),
    [
        ("{class: no.such.Notifier}", "cannot be imported"),
        ("{class: pathlib.Path}", "is not a notifier of Airflow"),
        ("{class: pathlib.PurePath.parts}", "cannot be imported"),
        ("{class: recording_notifier.RecordingNotifier}", "cannot be made with its arguments"),
    ],
    ids=["missing", "another class", "no class", "arguments"],
)
def test_a_bad_notifier_is_an_import_error_and_costs_no_dag(
    fleet_file: Path, notifier: str, why: str
) -> None:
    add(fleet_file, f"notifiers: [{notifier}, {NOTIFIER}]")

    bag = parse(DAGS)

    assert list(bag.import_errors) == ["broken_notifiers.py"]
    assert why in bag.import_errors["broken_notifiers.py"]
    assert {"watch_fleet", "validate_fleet", "migrate_acme"} <= set(bag.dags)
    fleet = load_fleet(fleet_file)
    assert [type(made) for made in failure_callbacks(fleet)] == [RecordingNotifier]
    assert list(find_bad_notifiers(fleet)) == ["notifier 1"]


def test_a_bad_notifier_is_a_finding_too(fleet_file: Path, connections: None) -> None:
    add(fleet_file, "notifiers: [{class: no.such.Notifier}]")

    error = str(run(WatchOperator(task_id="servers", check="servers"))["error"])

    assert '(1) Notifier 1: notifier "no.such.Notifier" cannot be imported' in error


def test_smtp_can_be_declared(fleet_file: Path) -> None:
    add(
        fleet_file,
        "notifiers: [{class: airflow.providers.smtp.notifications.smtp.SmtpNotifier,"
        " arguments: {to: on-call@example.com, subject: '{{ task.task_id }}'}}]",
    )

    assert parse().import_errors == {}
    assert find_bad_notifiers(load_fleet(fleet_file)) == {}


@pytest.mark.parametrize(
    "text",
    ["notifiers: [{class: NoDot}]", "lag_seconds: 0", "validate_tenants: -1", "unheard_of: 1"],
)
def test_what_the_watch_cannot_be_told_is_refused(fleet_file: Path, text: str) -> None:
    add(fleet_file, text)

    with pytest.raises(FleetError, match="watch"):
        load_fleet(fleet_file)


def test_the_table_of_numbers_tells_unknown_from_zero() -> None:
    report = Report()
    report.see("one", kept_bytes=None, rows=0)
    report.see("two", rows=1.5)

    lines = render_looks(report).splitlines()
    one = next(line.split("│") for line in lines if "one" in line)

    assert "kept bytes" in lines[1]
    assert [cell.strip() for cell in one[1:4]] == ["one", "unknown", "0"]
