from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tenantferry.fleet import load_fleet
from tenantferry.local.airflow import COMPONENTS, IMPORT_POOLS, MIGRATE
from tenantferry_airflow.assembly import connection_ids

PROJECT_ROOT = Path(__file__).resolve().parents[2]


# Where an image of Postgres keeps its data: the 18 moved it up one folder.
DATA_FOLDERS = {"postgres:18": "/var/lib/postgresql", "postgres:15": "/var/lib/postgresql/data"}


@pytest.fixture(scope="module")
def compose() -> Any:
    return yaml.safe_load((PROJECT_ROOT / "docker-compose.yaml").read_text("utf-8"))


@pytest.fixture(scope="module")
def services(compose: Any) -> Any:
    return compose["services"]


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


def test_compose_keeps_what_every_server_knows_in_a_volume_of_its_own(
    compose: Any, services: Any
) -> None:
    servers = {
        name: service
        for name, service in services.items()
        if service["image"] in DATA_FOLDERS and name != "fleet-setup"
    }

    assert sorted(servers) == ["metadata", "source-1", "source-2", "target"]
    for name, service in servers.items():
        assert service["volumes"] == [f"{name}:{DATA_FOLDERS[service['image']]}"]
        assert name in compose["volumes"]


def test_compose_asks_every_server_for_its_health_where_it_listens(services: Any) -> None:
    for name in ("metadata", "target", "source-1", "source-2", "pgbouncer", "api-server"):
        command = " ".join(services[name]["healthcheck"]["test"])
        assert "127.0.0.1" in command or "localhost" in command
    assert "--port=6432" in services["pgbouncer"]["healthcheck"]["test"]


def test_compose_starts_a_server_before_what_needs_it(services: Any) -> None:
    for name in ("target", "source-1", "source-2"):
        assert services["fleet-setup"]["depends_on"][name] == {"condition": "service_healthy"}
    finished = {"condition": "service_completed_successfully"}
    assert services["pgbouncer"]["depends_on"]["fleet-setup"] == finished
