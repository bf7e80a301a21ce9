"""Through a real Airflow: one tenant gives its source up, one keeps it, one leaves its move."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import yaml

import recording_notifier
from scheduler_log import may_be_answered
from tenantferry.connections import open_connection
from tenantferry.local.airflow_api import AirflowApi
from tenantferry.local.fleet import LocalFleet, LocalTenant

PROJECT_ROOT = Path(__file__).parents[2]
RETIRE, ABORT, WATCH = "retire_tenants", "abort_tenant", "watch_fleet"
# Slots of nobody, on the server of the sources.
PLANT = "SELECT pg_create_logical_replication_slot('tenantferry_nobody', 'pgoutput')"
PULL_UP = "SELECT pg_drop_replication_slot('tenantferry_nobody')"
TIMEOUT_SECONDS = 240.0

pytestmark = pytest.mark.timeout(900)


class Leaving:
    """``acme`` and ``globex`` are live; ``initech`` waits for a person before its cutover."""

    def __init__(self, root: Path) -> None:
        self.archive = root / "archive"
        self.told = root / "told.txt"
        self.fleet = LocalFleet(
            root,
            project_root=PROJECT_ROOT,
            tenants=[
                LocalTenant("acme", 600),
                LocalTenant("globex", 600),
                LocalTenant("initech", 600, approval=True),
            ],
        )
        self.moves: dict[str, str] = {}

    @cached_property
    def api(self) -> AirflowApi:
        assert self.fleet.airflow is not None
        return self.fleet.airflow.api

    def start(self) -> None:
        self.fleet.start_servers()
        self.fleet.source.psql("-c", "ALTER ROLE tenantferry CREATEDB")
        for tenant in self.fleet.tenants:
            self.fleet.load_tenant(tenant)
        self.fleet.start_pooler()
        self.fleet.write_fleet_file()
        document = yaml.safe_load(self.fleet.fleet_file.read_text("utf-8"))
        document["archive"] = {
            "url": f"file://{self.archive}", "restore_conn_id": "source_1", "schedule": None,
        }  # fmt: skip
        document["watch"] = {
            "schedule": None,
            "notifiers": [
                {
                    "class": "recording_notifier.RecordingNotifier",
                    "arguments": {
                        "text": "{{ task.task_id }}: {{ exception }}", "file": str(self.told),
                    },
                }
            ],
        }  # fmt: skip
        self.fleet.fleet_file.write_text(yaml.safe_dump(document), "utf-8")
        # Airflow looks for modules of its users there, too.
        config = self.fleet.root / "airflow" / "config"
        config.mkdir(parents=True)
        shutil.copy(str(recording_notifier.__file__), config)
        self.fleet.start_airflow()
        for tenant in self.fleet.tenants:
            self.api.wait_for_dag(f"migrate_{tenant.key}")
            self.moves[tenant.key] = self.api.trigger(f"migrate_{tenant.key}")
        for key in ("acme", "globex"):
            self.wait_for_end(f"migrate_{key}", self.moves[key])
        self.wait_for(
            "initech asking", lambda: self.is_asking("migrate_initech", self.moves["initech"])
        )

    def is_asking(self, dag_id: str, run_id: str, map_index: int = -1) -> bool:
        """Tell whether a run asks for approval, and may be answered."""
        assert self.fleet.airflow is not None
        task = self.api.mapped_tasks(dag_id, run_id).get(("approve", map_index))
        return (
            task is not None
            and task["state"] == "awaiting_input"
            and may_be_answered(
                self.fleet.airflow,
                dag_id,
                run_id,
                "approve",
                try_number=task["try_number"],
                map_index=map_index,
            )
        )

    def wait_for_end(self, dag_id: str, run_id: str) -> None:
        def is_over() -> bool:
            return self.api.run_state(dag_id, run_id) in ("success", "failed")

        self.wait_for(f"end of {dag_id}", is_over)

    def wait_for(self, what: str, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not condition():
            if time.monotonic() > deadline:
                pytest.fail(f"{what} did not come about in time: {self.phases()}")
            time.sleep(0.6)  # Airflow's API can only be asked

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        opened = open_connection(self.fleet.target_params, purpose="test")
        with closing(opened) as target, target, target.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def phases(self) -> dict[str, str]:
        return dict(self.query("SELECT tenant, phase FROM tenantferry.tenants"))

    def end_graces(self) -> None:
        self.query("UPDATE tenantferry.graces SET ends_at = now() WHERE ended_at IS NULL")

    def ask(self) -> tuple[str, list[str]]:
        """Start a run, and return it with the keys of the tenants that it asks for."""
        run_id = self.api.trigger(RETIRE)

        def has_found() -> bool:
            return self.states(run_id).get(("find_tenants", -1)) == "success"

        self.wait_for("find_tenants", has_found)
        return run_id, self.api.xcom(RETIRE, run_id, "find_tenants")

    def answer(self, run_id: str, options: list[str]) -> None:
        """Answer every request, in the order of the tenants, and wait for the end of the run."""

        def is_over() -> bool:
            for index, option in enumerate(options):
                if self.is_asking(RETIRE, run_id, index):
                    self.api.respond(RETIRE, run_id, "approve", option=option, map_index=index)
            return self.api.run_state(RETIRE, run_id) in ("success", "failed")

        self.wait_for("end of the run", is_over)

    def states(self, run_id: str) -> dict[tuple[str, int], str | None]:
        tasks = self.api.mapped_tasks(RETIRE, run_id)
        return {place: task["state"] for place, task in tasks.items()}


@pytest.fixture(scope="module")
def leaving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Leaving]:
    made = Leaving(tmp_path_factory.mktemp("leaving") / ".local")
    folder = made.fleet.source.installation.bin_directory
    before = os.environ["PATH"]
    os.environ["PATH"] = f"{folder}{os.pathsep}{before}"  # where pg_dump is looked for
    try:
        made.start()
        yield made
    finally:
        os.environ["PATH"] = before
        made.fleet.stop()


def test_nobody_is_asked_while_the_grace_lasts(leaving: Leaving) -> None:
    run_id = leaving.api.trigger(RETIRE)
    leaving.wait_for_end(RETIRE, run_id)

    assert leaving.api.run_state(RETIRE, run_id) == "success"
    states = set(leaving.states(run_id).items())
    assert (("find_tenants", -1), "success") in states
    assert {state for (task, _), state in states if task != "find_tenants"} == {"skipped"}
    assert leaving.phases()["acme"] == "live"


def test_a_slot_of_nobody_fails_a_look_and_whoever_is_declared_is_told(leaving: Leaving) -> None:
    leaving.fleet.source.psql("-c", PLANT, database="globex")
    try:
        run_id = leaving.api.trigger(WATCH)
        leaving.wait_for_end(WATCH, run_id)
    finally:
        leaving.fleet.source.psql("-c", PULL_UP, database="globex")

    log = leaving.api.task_log(WATCH, run_id, "slots_and_wal")
    assert leaving.api.task_states(WATCH, run_id)["slots_and_wal"] == "failed"
    for text in (log, leaving.told.read_text("utf-8")):
        assert "No tenant of this fleet owns it. Nobody reads it." in text
        assert f"If no other fleet moves a tenant of that server: {PULL_UP}" in text


def test_each_tenant_is_asked_for_and_one_rejection_does_not_hold_up_the_other(
    leaving: Leaving,
) -> None:
    leaving.end_graces()
    run_id, keys = leaving.ask()
    assert sorted(keys) == ["acme", "globex"]
    place = {key: index for index, key in enumerate(keys)}
    leaving.answer(run_id, ["Approve" if key == "acme" else "Reject" for key in keys])

    states = leaving.states(run_id)
    for task in ("begin", "archive", "verify", "lock"):
        assert states[task, place["acme"]] == "success"
        assert states[task, place["globex"]] == "skipped"
    assert leaving.api.run_state(RETIRE, run_id) == "success"
    assert (leaving.phases()["acme"], leaving.phases()["globex"]) == ("retired", "live")
    [dump] = leaving.archive.rglob("*.dump")
    [(url, size)] = leaving.query("SELECT url, bytes FROM tenantferry.archives")
    assert (url, size) == (f"file://{dump}", dump.stat().st_size)
    limit = "SELECT datconnlimit FROM pg_database WHERE datname = 'acme'"
    assert leaving.fleet.source.psql("-c", limit) == "0"


def test_a_tenant_that_was_rejected_is_asked_for_again(leaving: Leaving) -> None:
    run_id, keys = leaving.ask()

    assert keys == ["globex"]
    leaving.answer(run_id, ["Reject"])
    assert leaving.phases()["globex"] == "live"


def test_an_abort_ends_the_stream_of_its_move_and_leaves_nothing_of_the_tenant(
    leaving: Leaving,
) -> None:
    run_id = leaving.api.trigger(ABORT, conf={"tenant": "initech"})
    leaving.wait_for_end(ABORT, run_id)

    assert leaving.api.task_states(ABORT, run_id) == {"abort": "success"}
    assert leaving.api.xcom(ABORT, run_id, "abort")["rows"] >= 600
    assert leaving.phases()["initech"] == "registered"
    assert leaving.query("SELECT FROM tenantferry.chunks WHERE tenant = 'initech'") == []

    def is_over() -> bool:
        states = leaving.api.task_states("migrate_initech", leaving.moves["initech"])
        return states["stream_cdc"] == "success"

    leaving.wait_for("the end of the stream", is_over)
    slots = "SELECT count(*) FROM pg_replication_slots"
    assert leaving.fleet.source.psql("-c", slots) == "0"
