"""A whole fleet through a real Airflow, while its clients work and on-call interferes."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import psycopg2
import pytest

from tenantferry.connections import open_connection
from tenantferry.local.airflow_api import AirflowApi
from tenantferry.local.demo import make_report, start_clients
from tenantferry.local.fleet import LocalFleet, name_tenants
from tenantferry.local.ledger import Ledger, Role, find_processes
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

# What any one process may use: Airflow itself takes most of it.
MOST_MEMORY_MB = 400.0
# Long enough to be seen, and cleared, by somebody who can only ask Airflow's API.
ACME_WRITE_PAUSE_SECONDS = 12.0
FORGOTTEN = "forgotten console"

pytestmark = pytest.mark.timeout(900)


class MemoryWatch:
    """The most memory that each process of a fleet was seen with, servers left out."""

    def __init__(self, ledger: Ledger) -> None:
        self.most_mb: dict[str, float] = {}
        self.samples = 0
        self._ledger = ledger
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(2):
            for entry in self._ledger.read():
                if entry.role is Role.SESSION:
                    for process in find_processes(entry):
                        self._look_at(process)
            self.samples += 1

    def _look_at(self, process: psutil.Process) -> None:
        # A child may have begun a session of its own.
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            for one in (process, *process.children(recursive=True)):
                with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                    name = f"{one.pid} {' '.join(one.cmdline())[:80]}"
                    used = one.memory_info().rss / 1e6
                    self.most_mb[name] = max(used, self.most_mb.get(name, 0.0))


class Scenario:
    """
    A started fleet with its clients and its runs.

    ``acme`` asks for approval and has a client that sleeps in a transaction, ``globex`` loses its
    stream, ``initech`` has its tasks cleared.
    """

    def __init__(self, root: Path) -> None:
        versions = [installation.major for installation in find_installations()]
        acme, globex, initech = name_tenants(3, rows=12_000)
        pause = {"max_write_pause_seconds": ACME_WRITE_PAUSE_SECONDS}
        self.fleet = LocalFleet(
            root,
            project_root=PROJECT_ROOT,
            tenants=[
                replace(acme, approval=True, settings=pause),
                # Their gates stay shut for a while, so that much can happen to them meanwhile.
                replace(globex, settings={"lag_samples": 20}),
                replace(initech, settings={"lag_samples": 20}),
            ],
            source_major=versions[-1],
            target_major=versions[0],
        )
        self.runs: dict[str, Run] = {}
        self.memory = MemoryWatch(self.fleet.ledger)
        self.held_log = ""

    @cached_property
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
        self.memory.start()

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

    def phase(self, tenant: str) -> str:
        [(phase,)] = self.query("SELECT phase FROM tenantferry.tenants WHERE tenant = %s", tenant)
        return str(phase)

    def attempts(self, tenant: str) -> list[tuple[bool, str | None]]:
        """Return of each cutover whether it is over, and why it was undone."""
        return self.query(
            "SELECT undone_at IS NOT NULL OR resumed_at IS NOT NULL, undo_reason"
            " FROM tenantferry.write_pauses WHERE tenant = %s ORDER BY id",
            tenant,
        )

    @contextmanager
    def sleeping_in_a_transaction(self, key: str) -> Iterator[None]:
        """Hold a transaction of the application open, through the pooler."""
        (tenant,) = (tenant for tenant in self.fleet.tenants if tenant.key == key)
        params = self.fleet.client_params(tenant)
        opened = psycopg2.connect(
            host=params.host, port=params.port, user=params.user, password=params.password,
            dbname=params.database, application_name=FORGOTTEN,
        )  # fmt: skip
        with closing(opened), opened.cursor() as cursor:
            cursor.execute("SELECT 1")
            yield

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

    # On-call clears tasks of a run that is on its way.
    scenario.wait_for_task("initech", "stream_cdc", "running")
    scenario.clear("initech", "prepare", "backfill", "stream_cdc", "wait_for_lag")

    # A worker dies in mid-stream, the hard way.
    pid = scenario.wait_for("a stream of globex", lambda: scenario.find_stream_process("globex"))
    os.kill(pid, signal.SIGKILL)

    scenario.wait_for("a closed gate of initech", lambda: is_streaming(scenario, "initech"))
    scenario.clear("initech", "preflight", "wait_for_lag")
    scenario.wait_for_task("initech", "preflight", "success")

    # A person is asked; meanwhile the stream goes on and everything before may be cleared.
    scenario.wait_for_task("acme", "approve", "awaiting_input", "deferred")
    scenario.clear("acme", "validate")
    scenario.wait_for_task("acme", "validate", "success")
    scenario.wait_for_task("acme", "approve", "awaiting_input", "deferred")
    run = scenario.runs["acme"]
    with scenario.sleeping_in_a_transaction("acme"):
        scenario.api.respond(run.dag_id, run.run_id, "approve", option="Approve")
        scenario.wait_for_task("acme", "cutover", "up_for_retry")
        scenario.held_log = scenario.api.task_log(run.dag_id, run.run_id, "cutover")
        # Cleared before its retry is due, and once more in the middle of the next pause.
        scenario.clear("acme", "cutover")
        scenario.wait_for("a second pause", lambda: is_paused(scenario, "acme", attempts=2))
        scenario.clear("acme", "cutover")
        scenario.wait_for("its undoing", lambda: scenario.attempts("acme")[1][0])

    for tenant in scenario.runs:
        scenario.wait_for_success(tenant)

    # Every task of a run that is over, one after the other.
    for task_id in TASKS:
        scenario.clear("initech", task_id)
        scenario.wait_for_task("initech", task_id, "success")
        # Airflow loses a clear that meets the scheduler's own "this run is over".
        scenario.wait_for_success("initech")
    finished = make_report(scenario.fleet, scenario.clients, total_seconds=0.0)
    scenario.memory.stop()
    return finished


def is_streaming(scenario: Scenario, tenant: str) -> bool:
    states = scenario.states(tenant)
    wanted = {
        "prepare": "success",
        "backfill": "success",
        "stream_cdc": "running",
        "wait_for_lag": "deferred",
    }
    return wanted.items() <= states.items() and scenario.phase(tenant) == "streaming"


def is_paused(scenario: Scenario, tenant: str, *, attempts: int) -> bool:
    ended = [is_over for is_over, _ in scenario.attempts(tenant)]
    return len(ended) == attempts and not ended[-1]


def test_every_tenant_is_live_and_nothing_is_lost(report: Report) -> None:
    problems = {tenant.tenant: tenant.find_problems() for tenant in report.tenants}

    assert problems == {"acme": [], "globex": [], "initech": []}
    assert report.is_success


def test_the_killed_stream_was_started_again(scenario: Scenario, report: Report) -> None:
    run = scenario.runs["globex"]

    assert scenario.api.tasks(run.dag_id, run.run_id)["stream_cdc"]["try_number"] >= 2


def test_a_cutover_that_a_client_held_up_was_undone_and_names_the_client(
    scenario: Scenario, report: Report
) -> None:
    first, second, *others, last = scenario.attempts("acme")

    assert "did not finish within" in scenario.held_log
    assert FORGOTTEN in scenario.held_log
    assert "acme_app" in scenario.held_log
    assert "did not finish within" in (first[1] or "")
    assert second[1] == 'task "cutover" of tenant "acme" was told to end'
    assert all(reason for _, reason in others)
    assert last == (True, None)


def test_no_process_of_the_fleet_needs_much_memory(scenario: Scenario, report: Report) -> None:
    too_large = {n: mb for n, mb in scenario.memory.most_mb.items() if mb > MOST_MEMORY_MB}

    assert scenario.memory.samples > 10
    assert any("client" in name for name in scenario.memory.most_mb)
    assert any("airflow" in name for name in scenario.memory.most_mb)
    assert too_large == {}


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
