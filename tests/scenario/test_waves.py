"""Two nights of a small fleet through a real Airflow: one stops itself, the next one goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import yaml

from drill_verdict import conclude
from live_fleet import LiveFleet
from tenantferry.control.phases import Phase
from tenantferry.local.airflow_api import AirflowApi
from tenantferry.local.fleet import LocalFleet, LocalTenant

PROJECT_ROOT = Path(__file__).parents[2]
DAG_ID = "nightly_wave"
PLAN_DAG_ID = "nightly_plan"
TIMEOUT_SECONDS = 240.0
WAVES = {"stages": [100], "error_budget": 0, "most_in_flight": 2}

pytestmark = pytest.mark.timeout(600)


class TwoNights(LiveFleet):
    """
    A fleet and its nights; all its tenants have clients.

    ``acme`` and ``broken`` go first; ``initech`` is next, if there is a next; ``abroad`` is of a
    region that the target does not serve.
    """

    def __init__(self, root: Path) -> None:
        low, here = {"criticality": "low", "region": "eu"}, {"region": "eu"}
        super().__init__(
            LocalFleet(
                root,
                project_root=PROJECT_ROOT,
                tenants=[
                    LocalTenant("acme", 600, settings=low),
                    LocalTenant("broken", 6_000, settings=low),
                    LocalTenant("initech", 600, settings=here),
                    LocalTenant("abroad", 100, settings={"region": "us"}),
                ],
            )
        )

    @cached_property
    def api(self) -> AirflowApi:
        assert self.local.airflow is not None
        return self.local.airflow.api

    def start(self) -> None:
        self.local.start_servers()
        for tenant in self.local.tenants:
            self.local.load_tenant(tenant)
        # No stream carries the rows of an unlogged table: preflight refuses it.
        self.local.source.psql("-c", "CREATE UNLOGGED TABLE scratch (id int)", database="broken")
        self.local.start_pooler()
        self.start_clients()
        self.local.write_fleet_file()
        document = yaml.safe_load(self.local.fleet_file.read_text("utf-8"))
        document["target"]["regions"] = ["eu"]
        document["waves"] = WAVES
        self.local.fleet_file.write_text(yaml.safe_dump(document), "utf-8")
        self.local.start_airflow()
        for dag_id in (
            DAG_ID,
            PLAN_DAG_ID,
            *(f"migrate_{tenant.key}" for tenant in self.local.tenants),
        ):
            self.api.wait_for_dag(dag_id)

    def begin(self, dag_id: str = DAG_ID) -> str:
        """Trigger a wave, or only its plan."""
        return self.api.trigger(dag_id)

    def wait_for_task(self, run_id: str, state: str) -> None:
        def is_there() -> bool:
            return self.api.task_states(DAG_ID, run_id).get("run_wave") == state

        self.wait_for(f"run_wave in state {state}", is_there)

    def wait_for_end(self, dag_id: str, run_id: str) -> None:
        def is_over() -> bool:
            return self.api.run_state(dag_id, run_id) in ("success", "failed")

        self.wait_for(f"end of {dag_id}", is_over)

    def wait_for(self, what: str, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not condition():
            if time.monotonic() > deadline:
                pytest.fail(f"{what} did not come about in time: {self.query_members()}")
            time.sleep(0.6)  # Airflow's API can only be asked

    def query_members(self) -> list[tuple[Any, ...]]:
        return self.query(
            "SELECT wave, tenant, standing, detail FROM tenantferry.wave_members"
            " ORDER BY wave, position"
        )

    def has_schema(self) -> bool:
        return self.query("SELECT to_regnamespace('tenantferry') IS NOT NULL") == [(True,)]

    def conclude(self, **phases: Phase) -> None:
        """
        End a night: stop the clients, and check that nothing is lost and each tenant on one side.

        :param phases: of the tenants that are known to the target; the others stay where they were.
        """
        for tenant in self.local.tenants:
            conclude(self, tenant.key, phase=phases.get(tenant.key))

    def go_on(self) -> None:
        """Let the clients work again."""
        for tenant in self.local.tenants:
            self.start_client_again(tenant.key)


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoNights]:
    made = TwoNights(tmp_path_factory.mktemp("waves") / ".local")
    try:
        made.start()
        yield made
    finally:
        made.local.stop()


def test_the_plan_is_shown_and_nobody_is_started(nights: TwoNights) -> None:
    run_id = nights.begin(PLAN_DAG_ID)
    nights.wait_for_end(PLAN_DAG_ID, run_id)

    states = nights.api.task_states(PLAN_DAG_ID, run_id)
    shown = nights.api.xcom(PLAN_DAG_ID, run_id, "show_plan")
    log = nights.api.task_log(PLAN_DAG_ID, run_id, "show_plan")
    assert states == {"show_plan": "success"}
    assert shown["picked"] == ["acme", "broken", "initech"]
    assert shown["reasons"]["abroad"] == "its region is us; the target holds eu"
    assert "tonight's plan" in log
    assert not nights.has_schema()


def test_a_wave_that_exceeds_its_budget_stops_and_lets_those_in_flight_land(
    nights: TwoNights,
) -> None:
    run_id = nights.begin()
    nights.wait_for_end(DAG_ID, run_id)

    assert nights.api.task_states(DAG_ID, run_id) == {"plan": "success", "run_wave": "failed"}
    assert nights.query_members() == [
        (1, "acme", "live", ""),
        (1, "broken", "failed", 'task "preflight" failed'),
        (1, "initech", None, None),
    ]
    log = nights.api.task_log(DAG_ID, run_id, "run_wave")
    assert "wave 1 stopped: 1 failure exceeds error budget 0: broken (task" in log
    assert nights.api.task_states("migrate_acme", "wave_1__acme")["probe"] == "success"
    # It failed once and for all: a wave that was stopped is not tried again by itself.
    assert nights.api.tasks(DAG_ID, run_id)["run_wave"]["try_number"] == 1
    nights.conclude(acme=Phase.LIVE)


def test_the_next_wave_goes_on_where_the_first_one_stopped_and_survives_being_cleared(
    nights: TwoNights,
) -> None:
    nights.go_on()
    nights.local.source.psql("-c", "DROP TABLE scratch", database="broken")
    nights.api.clear("migrate_broken", "wave_1__broken", ["preflight"], downstream=True)
    nights.wait_for_end("migrate_broken", "wave_1__broken")

    run_id = nights.begin()
    nights.wait_for_task(run_id, "deferred")
    nights.api.clear(DAG_ID, run_id, ["run_wave"])
    nights.wait_for_end(DAG_ID, run_id)

    assert nights.api.task_states(DAG_ID, run_id) == {"plan": "success", "run_wave": "success"}
    live = nights.query("SELECT tenant FROM tenantferry.tenants WHERE phase = 'live' ORDER BY 1")
    assert live == [("acme",), ("broken",), ("initech",)]
    assert nights.query_members()[3:] == [(2, "initech", "live", "")]
    assert nights.api.xcom(DAG_ID, run_id, "run_wave")["live"] == ["initech"]
    assert nights.api.tasks(DAG_ID, run_id)["run_wave"]["try_number"] == 2
    assert nights.api.task_states("migrate_initech", "wave_2__initech")["probe"] == "success"
    assert nights.api.tasks("migrate_initech", "wave_2__initech")["prepare"]["try_number"] == 1
    nights.conclude(acme=Phase.LIVE, broken=Phase.LIVE, initech=Phase.LIVE)
