"""A whole fleet through a real Airflow, while its clients work and on-call interferes."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

from tenantferry.connections import open_connection
from tenantferry.local.airflow_api import AirflowApi
from tenantferry.local.demo import make_report, start_clients
from tenantferry.local.fleet import LocalFleet, name_tenants
from tenantferry.local.options import Options
from tenantferry.local.postgres import find_installations
from tenantferry.local.report import Report
from tenantferry.local.runs import Run, trigger_runs

PROJECT_ROOT = Path(__file__).parents[2]
RUN_TIMEOUT_SECONDS = 420.0
TASKS = (
    "preflight",
    "prepare",
    "backfill",
    "stream_cdc",
    "wait_for_lag",
    "validate",
    "approve",
    "cutover",
    "probe",
)

pytestmark = pytest.mark.timeout(900)


class Scenario:
    """
    A started fleet with its clients and its runs.

    ``acme`` asks for approval, ``globex`` loses its stream, ``initech`` has its tasks cleared.
    """

    def __init__(self, root: Path) -> None:
        versions = [installation.major for installation in find_installations()]
        acme, *others = name_tenants(3, rows=12_000)
        self.fleet = LocalFleet(
            root,
            project_root=PROJECT_ROOT,
            tenants=[replace(acme, approval=True), *others],
            source_major=versions[-1],
            target_major=versions[0],
        )
        self.runs: dict[str, Run] = {}

    @property
    def api(self) -> AirflowApi:
        assert self.fleet.airflow is not None
        return self.fleet.airflow.api

    def start(self) -> None:
        self.fleet.start_servers()
        for tenant in self.fleet.tenants:
            self.fleet.load_tenant(tenant)
        self.fleet.start_pooler()
        self.clients = start_clients(self.fleet, Options(rate=30))
        self.fleet.write_fleet_file()
        self.fleet.start_airflow()

    def trigger(self) -> None:
        dags = {tenant.key: f"migrate_{tenant.key}" for tenant in self.fleet.tenants}
        self.runs = {run.tenant: run for run in trigger_runs(self.api, dags)}

    def states(self, tenant: str) -> dict[str, str | None]:
        run = self.runs[tenant]
        return self.api.task_states(run.dag_id, run.run_id)

    def clear(self, tenant: str, *task_ids: str) -> None:
        run = self.runs[tenant]
        self.api.clear(run.dag_id, run.run_id, list(task_ids))

    def wait_for(self, what: str, condition: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + RUN_TIMEOUT_SECONDS
        while not (found := condition()):
            if time.monotonic() > deadline:
                states = {tenant: self.states(tenant) for tenant in self.runs}
                pytest.fail(f"{what} did not come about in time: {states}")
            time.sleep(0.2)  # Airflow's API can only be asked
        return found

    def wait_for_task(self, tenant: str, task_id: str, *states: str) -> None:
        self.wait_for(
            f"{task_id} of {tenant} in {states}", lambda: self.states(tenant)[task_id] in states
        )

    def wait_for_success(self, tenant: str) -> None:
        run = self.runs[tenant]

        def is_over() -> bool:
            state = self.api.run_state(run.dag_id, run.run_id)
            if state == "failed":
                pytest.fail(
                    Run(tenant, run.dag_id, run.run_id, tasks=self.states(tenant)).tell_failure(
                        self.api
                    )
                )
            return state == "success"

        self.wait_for(f"success of {tenant}", is_over)

    def query(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        with (
            closing(open_connection(self.fleet.target_params, purpose="test")) as target,
            target.cursor() as cursor,
        ):
            cursor.execute(statement, values)
            return cursor.fetchall()

    def find_stream_process(self, tenant: str) -> int | None:
        """Return the process behind the stream's session in the target."""
        found = self.query(
            "SELECT client_port FROM pg_stat_activity WHERE application_name = %s",
            f"tenantferry stream {tenant}",
        )
        ports = {port for (port,) in found}
        return next(
            (c.pid for c in psutil.net_connections("tcp") if c.laddr.port in ports and c.pid), None
        )


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scenario]:
    created = Scenario(tmp_path_factory.mktemp("scenario") / ".local")
    try:
        created.start()
        yield created
    finally:
        created.fleet.stop()


@pytest.fixture(scope="module")
def report(scenario: Scenario) -> Report:
    """Everything that happens to the fleet, in order; the tests look at what came of it."""
    scenario.trigger()

    # A worker dies in mid-stream, the hard way.
    scenario.wait_for_task("globex", "stream_cdc", "running")
    pid = scenario.wait_for("a stream of globex", lambda: scenario.find_stream_process("globex"))
    os.kill(pid, signal.SIGKILL)

    # On-call clears tasks of a run that is on its way.
    scenario.wait_for_task("initech", "stream_cdc", "running")
    scenario.clear("initech", "prepare", "backfill", "stream_cdc")

    # A person is asked; meanwhile the stream goes on and everything before may be cleared.
    scenario.wait_for_task("acme", "approve", "awaiting_input", "deferred")
    scenario.clear("acme", "validate")
    scenario.wait_for_task("acme", "validate", "success")
    scenario.wait_for_task("acme", "approve", "awaiting_input", "deferred")
    run = scenario.runs["acme"]
    scenario.api.respond(run.dag_id, run.run_id, "approve", option="Approve")

    for tenant in scenario.runs:
        scenario.wait_for_success(tenant)

    # Every task of a run that is over, one after the other.
    for task_id in TASKS:
        scenario.clear("initech", task_id)
        scenario.wait_for_task("initech", task_id, "success")
    scenario.wait_for_success("initech")
    return make_report(scenario.fleet, scenario.clients, total_seconds=0.0)


def test_every_tenant_is_live_and_nothing_is_lost(report: Report) -> None:
    problems = {tenant.tenant: tenant.find_problems() for tenant in report.tenants}

    assert problems == {"acme": [], "globex": [], "initech": []}
    assert report.is_success


def test_the_killed_stream_was_started_again(scenario: Scenario, report: Report) -> None:
    run = scenario.runs["globex"]

    assert scenario.api.tasks(run.dag_id, run.run_id)["stream_cdc"]["try_number"] >= 2


def test_each_move_left_its_whole_way_in_the_audit_trail(
    scenario: Scenario, report: Report
) -> None:
    for tenant, run in scenario.runs.items():
        trail = scenario.query(
            "SELECT to_phase, run_id FROM tenantferry.phase_changes WHERE tenant = %s ORDER BY id",
            tenant,
        )

        phases = list(dict.fromkeys(phase for phase, _ in trail))
        assert phases == [
            "registered",
            "prepared",
            "backfilling",
            "streaming",
            "validated",
            "cutting_over",
            "live",
        ]
        assert {run_id for _, run_id in trail} == {run.run_id}


def test_a_live_tenant_is_not_moved_again(scenario: Scenario, report: Report) -> None:
    dag_id = scenario.runs["globex"].dag_id
    again = Run("globex", dag_id, scenario.api.trigger(dag_id))

    def has_failed() -> bool:
        again.refresh(scenario.api)
        return again.tasks.get("preflight") == "failed"

    scenario.wait_for("failure of preflight", has_failed)

    task = scenario.api.tasks(dag_id, again.run_id)["preflight"]
    assert task["try_number"] == 1
    assert "is already live" in scenario.api.task_log(dag_id, again.run_id, "preflight")


def test_the_source_of_a_live_tenant_is_fenced_and_keeps_nothing_back(
    scenario: Scenario, report: Report
) -> None:
    source = scenario.fleet.source
    slots = source.psql("-c", "SELECT count(*) FROM pg_replication_slots")
    may_connect = source.psql(
        "-c", "SELECT has_database_privilege('globex_app', 'globex', 'CONNECT')"
    )

    assert (slots, may_connect) == ("0", "f")


def test_no_secret_is_in_a_log_or_in_airflows_database(scenario: Scenario, report: Report) -> None:
    secrets = [params.password for params in scenario.fleet.connections().values()]
    aliases = scenario.fleet.pooler.aliases_file.read_text("utf-8")
    secrets += re.findall(r"password=(\S+)", aliases)
    logs = [path.read_text("utf-8", "replace") for path in scenario.fleet.root.rglob("*.log")]
    xcoms = scenario.fleet.metadata_server.psql("-c", "SELECT value FROM xcom", database="airflow")
    rendered = scenario.fleet.metadata_server.psql(
        "-c", "SELECT rendered_fields FROM rendered_task_instance_fields", database="airflow"
    )

    assert logs
    for text in (*logs, xcoms, rendered):
        assert not [secret for secret in secrets if secret in text]
