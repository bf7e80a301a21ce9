from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tenantferry.fleet import load_fleet
from tenantferry.local.airflow import COMPONENTS, IMPORT_POOLS, MIGRATE
from tenantferry_airflow.assembly import connection_ids

PROJECT_ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def services() -> Any:
    text = (PROJECT_ROOT / "docker-compose.yaml").read_text("utf-8")
    return yaml.safe_load(text)["services"]


def test_compose_runs_each_component_as_the_local_runner_does(services: Any) -> None:
    commands = {name: tuple(services[name]["command"]) for name in COMPONENTS}

    assert commands == COMPONENTS


def test_compose_prepares_airflow_as_the_local_runner_does(services: Any) -> None:
    assert tuple(services["airflow-migrate"]["command"]) == MIGRATE
    *verb, file = services["airflow-pools"]["command"]
    assert tuple(verb) == IMPORT_POOLS
    assert (PROJECT_ROOT / file).is_file()


def test_compose_runs_no_airflow_command_that_the_local_runner_does_not(services: Any) -> None:
    airflow = {name for name, service in services.items() if "apache/airflow" in service["image"]}

    assert airflow == {*COMPONENTS, "airflow-migrate", "airflow-pools"}


def test_compose_declares_every_connection_of_the_fleet(services: Any) -> None:
    fleet = load_fleet(PROJECT_ROOT / "include" / "fleet.yaml")
    environment = services["scheduler"]["environment"]

    declared = {name.removeprefix("AIRFLOW_CONN_").lower() for name in environment}
    needed = {id_ for tenant in fleet.tenants.values() for id_ in connection_ids(fleet, tenant)}
    assert needed <= declared


def test_compose_holds_no_password(services: Any) -> None:
    secrets = [
        (name, key, value)
        for name, service in services.items()
        for key, value in service.get("environment", {}).items()
        if any(word in key for word in ("PASSWORD", "SECRET", "KEY", "CONN_", "SQL_ALCHEMY"))
    ]

    assert len(secrets) > 20
    assert [entry for entry in secrets if "${" not in entry[2]] == []
