"""A whole fleet under live traffic; each drill has a tenant, a client and a run of its own."""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]  # comes without types
import psycopg2

from live_fleet import DrillFailedError, LiveFleet
from scheduler_log import may_be_answered
from tenantferry.connections import ConnectionParams, open_connection
from tenantferry.control.registry import ensure_control_schema
from tenantferry.fleet.pools import CUTOVER_POOL
from tenantferry.local.acts import ROLLBACK_DAG
from tenantferry.local.airflow import LocalAirflow
from tenantferry.local.airflow_api import AirflowApi
from tenantferry.local.fleet import LocalFleet, LocalTenant
from tenantferry.local.ledger import Ledger, Role
from tenantferry.local.postgres import find_installations
from tenantferry.local.runs import Run
from tenantferry.reverse.slot import ensure_reverse

PROJECT_ROOT = Path(__file__).parents[2]
TIMEOUT_SECONDS = 240.0
# A comparison that came at some quarter of an hour would wait where only a drill's own task is to.
_WATCH = """
watch:
  validate_schedule: null
"""
# A drill keeps its cutover for a while; it should not keep those of the others.
_CUTOVER_SLOTS = 8
# Each look takes some ten milliseconds of a processor, and many drills look at the same time.
_RECHECK_SECONDS = 0.2
_AIRFLOW_RECHECK_SECONDS = 0.5
_LOOK_SECONDS = 3.0

_WAITING = """
SELECT client_port FROM pg_catalog.pg_stat_activity
WHERE application_name = %s AND wait_event_type = 'Lock'
"""

_TASKS = "SELECT task_id, state, try_number FROM task_instance WHERE dag_id = %s AND run_id = %s"
_RUN = "SELECT state FROM dag_run WHERE dag_id = %s AND run_id = %s"


class DrillFleet(LiveFleet):
    """
    A fleet of small tenants.

    :param tenants: each with a key that tells what happens to it.
    """

    def __init__(self, root: Path, tenants: Sequence[LocalTenant]) -> None:
        versions = [installation.major for installation in find_installations()]
        super().__init__(
            LocalFleet(
                root,
                project_root=PROJECT_ROOT,
                tenants=tenants,
                source_major=versions[-1],
                target_major=versions[0],
            )
        )
        # By the key of their tenant; a rollback has a name of its own.
        self.runs: dict[str, Run] = {}
        # All that a tenant had, in their order.
        self.history: defaultdict[str, list[Run]] = defaultdict(list)
        self.memory = MemoryWatch(self.local.ledger)
        self._is_over = threading.Event()

    @property
    def airflow(self) -> LocalAirflow:
        if self.local.airflow is None:
            raise DrillFailedError("Airflow was not started")
        return self.local.airflow

    @cached_property
    def api(self) -> AirflowApi:
        return self.airflow.api

    def start(self) -> None:
        """Start everything; the clients work from then on."""
        self.local.start_servers()
        self._create_reverse_slot()
        self.local.start_pooler()
        self.local.write_fleet_file()
        with self.local.fleet_file.open("a", encoding="utf-8") as declared:
            declared.write(_WATCH)
        with ThreadPoolExecutor(2) as pool:
            loaded = pool.submit(self.local.load_tenants)
            airflow = pool.submit(self.local.start_airflow)
            loaded.result()
            self.start_clients()
            airflow.result()
        self.api.resize_pool(CUTOVER_POOL, _CUTOVER_SLOTS)
        self.memory.start()

    def give_up(self) -> None:
        """Let nobody wait any longer."""
        self._is_over.set()

    def stop(self) -> None:
        """Stop everything."""
        self.memory.stop()
        self.local.stop()

    # What on-call does.

    def trigger(self, key: str) -> None:
        dag_id = f"migrate_{key}"
        self.api.wait_for_dag(dag_id)
        self.remember(key, Run(key, dag_id, self.api.trigger(dag_id)))

    def repair(self, key: str) -> None:
        """Give a run up, and begin another one that copies again what differs."""
        run = self.runs[key]
        self.api.mark_run(run.dag_id, run.run_id, state="failed")
        run_id = self.api.trigger(run.dag_id, conf={"repair": True})
        self.remember(key, Run(key, run.dag_id, run_id))

    def roll_back(self, key: str) -> str:
        """Trigger the rollback of a tenant, and return the name of that run."""
        self.api.wait_for_dag(ROLLBACK_DAG)
        run_id = self.api.trigger(ROLLBACK_DAG, conf={"tenant": key})
        name = f"{key} back"
        self.remember(name, Run(key, ROLLBACK_DAG, run_id))
        return name

    def remember(self, name: str, run: Run) -> None:
        """Know a run by a name from now on."""
        self.runs[name] = run
        self.history[run.tenant].append(run)

    def clear(self, key: str, *task_ids: str, downstream: bool = False) -> None:
        run = self.runs[key]
        self.api.clear(run.dag_id, run.run_id, list(task_ids), downstream=downstream)

    def mark(self, key: str, task_id: str, state: str) -> None:
        run = self.runs[key]
        self.api.mark(run.dag_id, run.run_id, task_id, state=state)

    def answer(self, key: str, option: str) -> None:
        """Answer the approval request of a run, once it is asked."""
        self.wait_until_asked(key)
        run = self.runs[key]
        self.api.respond(run.dag_id, run.run_id, "approve", option=option)

    # What on-call sees.

    def states(self, key: str) -> dict[str, str | None]:
        """Return task id to state."""
        return {task_id: state for task_id, state, _ in self._ask_airflow(_TASKS, key)}

    def try_number(self, key: str, task_id: str) -> int:
        numbers = {name: int(number) for name, _, number in self._ask_airflow(_TASKS, key)}
        return numbers[task_id]

    def task_log(self, key: str, task_id: str) -> str:
        run = self.runs[key]
        return self.api.task_log(run.dag_id, run.run_id, task_id)

    def find_waiting(self, server: ConnectionParams, application: str) -> int | None:
        """Return the process behind a session that waits for a lock."""
        opened = open_connection(server, purpose="test", autocommit=True)
        with closing(opened), opened.cursor() as cursor:
            cursor.execute(_WAITING, (f"tenantferry {application}",))
            ports = {port for (port,) in cursor.fetchall()}
        return find_process(ports, server.port)

    def find_session(self, application: str) -> int | None:
        """Return the process behind a session of the target."""
        found = self.query(
            "SELECT client_port FROM pg_stat_activity WHERE application_name = %s",
            f"tenantferry {application}",
        )
        return find_process({port for (port,) in found}, self.local.target.superuser.port)

    # Waiting. Nothing tells, so all of it is asked for.

    def wait_for(
        self,
        what: str,
        condition: Callable[[], Any],
        *,
        key: str | None = None,
        recheck_seconds: float = _RECHECK_SECONDS,
    ) -> Any:
        """
        Wait until a condition is truthy, and return what it is.

        :param key: fail as soon as a task of this tenant has failed.
        """
        deadline = time.monotonic() + TIMEOUT_SECONDS
        looked_at = time.monotonic()
        while not (found := condition()):
            now = time.monotonic()
            if now > deadline:
                states = {key: self.states(key) for key in self.runs}
                raise DrillFailedError(f"{what} did not come about in time: {states}")
            if key is not None and now > looked_at + _LOOK_SECONDS:
                looked_at = now
                self._check_not_failed(key)
            if self._is_over.wait(recheck_seconds):
                raise DrillFailedError(f"{what}: the fleet is being stopped")
        return found

    def wait_for_task(self, key: str, task_id: str, *states: str) -> None:
        """Wait until a task is in one of these states; fail where the run has failed."""

        def is_there() -> bool:
            found = self.states(key)
            if found.get(task_id) in states:
                return True
            if not {"failed", "upstream_failed"} & set(states):
                self._check_not_failed(key, found)
            return False

        self.wait_for(
            f"{task_id} of {key} in {states}", is_there, recheck_seconds=_AIRFLOW_RECHECK_SECONDS
        )

    def wait_for_failure(self, key: str, task_id: str) -> None:
        """
        Wait until a task has failed, and until those after it know.

        Airflow loses a clear that meets the scheduler's own "what is before it has failed".
        """
        self.wait_for_task(key, task_id, "failed")
        self.wait_for_task(key, "probe", "upstream_failed")

    def wait_until_asked(self, key: str) -> None:
        """Wait until a run asks for approval, and may be answered."""
        self.wait_for_task(key, "approve", "awaiting_input")
        run = self.runs[key]
        number = self.try_number(key, "approve")
        self.wait_for(
            f"the scheduler to hear of {key}",
            lambda: may_be_answered(
                self.airflow, run.dag_id, run.run_id, "approve", try_number=number
            ),
            recheck_seconds=_AIRFLOW_RECHECK_SECONDS,
        )

    def wait_for_success(self, key: str) -> None:
        """Wait until a whole run has succeeded."""

        def is_over() -> bool:
            [(state,)] = self._ask_airflow(_RUN, key)
            if state == "failed":
                self._check_not_failed(key)
            return bool(state == "success")

        self.wait_for(f"success of {key}", is_over, recheck_seconds=_AIRFLOW_RECHECK_SECONDS)

    def wait_until_gone(self, pid: int) -> None:
        self.wait_for(f"the end of process {pid}", lambda: not psutil.pid_exists(pid))

    def _create_reverse_slot(self) -> None:
        """
        Do what the first cutover does, and no later one.

        Creating a slot waits for every transaction of the target that has written: also for those
        that drills hold open to make that very cutover wait.
        """
        params = self.local.target_params
        with closing(open_connection(params, purpose="test")) as target, target:
            ensure_control_schema(target)
        ensure_reverse(params)

    def _ask_airflow(self, statement: str, key: str) -> list[tuple[Any, ...]]:
        """
        Ask Airflow's database about a run.

        Its API server serves the tasks; with as many questions as all drills have it would do
        nothing else.
        """
        run = self.runs[key]
        params = self.airflow.metadata
        opened = psycopg2.connect(
            host=params.host, port=params.port, user=params.user, password=params.password,
            dbname=params.database,
        )  # fmt: skip
        with closing(opened), opened.cursor() as cursor:
            cursor.execute(statement, (run.dag_id, run.run_id))
            return cursor.fetchall()

    def _check_not_failed(self, key: str, states: Mapping[str, str | None] | None = None) -> None:
        found = self.states(key) if states is None else dict(states)
        if "failed" in found.values():
            run = self.runs[key]
            failed = Run(key, run.dag_id, run.run_id, tasks=found)
            raise DrillFailedError(failed.tell_failure(self.api))


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
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(2):
            for process in self._find_all():
                with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                    name = f"{process.pid} {' '.join(process.cmdline())[:80]}"
                    used = process.memory_info().rss / 1e6
                    self.most_mb[name] = max(used, self.most_mb.get(name, 0.0))
            self.samples += 1

    def _find_all(self) -> list[psutil.Process]:
        """Return the members of the recorded sessions, and what they started in sessions anew."""
        sessions = {entry.pid for entry in self._ledger.read() if entry.role is Role.SESSION}
        ours: dict[int, psutil.Process] = {}
        # In the order of their ids, so that a parent nearly always comes first.
        for process in psutil.process_iter():
            with suppress(psutil.NoSuchProcess, ProcessLookupError, PermissionError):
                if os.getsid(process.pid) in sessions or process.ppid() in ours:
                    ours[process.pid] = process
        return list(ours.values())


def find_process(ports: set[int], server_port: int) -> int | None:
    """
    Return a process of this machine that is connected to a server from one of these ports.

    Connections to two servers may have the same local port.
    """
    return next(
        (
            c.pid
            for c in psutil.net_connections("tcp")
            if c.pid and c.raddr and c.raddr.port == server_port and c.laddr.port in ports
        ),
        None,
    )
