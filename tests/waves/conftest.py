"""A fleet of three small sources and one target on real servers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import yaml
from psycopg2.extensions import connection

from night_stage import NightStage, ScriptedRuns
from tenantferry.connections import ConnectionParams
from tenantferry.fleet import load_fleet
from tenantferry.local.postgres import PostgresServer
from tenantferry.waves.reading import Databases

KEYS = ("acme", "globex", "initech")


@pytest.fixture(scope="module")
def source_databases(source_server: PostgresServer) -> Iterator[dict[str, str]]:
    """Databases of different sizes: acme's is the smallest, initech's the largest."""
    names = {key: f"wave_{key}" for key in KEYS}
    for number, name in enumerate(names.values()):
        source_server.psql("-c", f"CREATE DATABASE {name}")
        rows = f"SELECT generate_series(1, {number * 10_000})"
        source_server.psql("-c", f"CREATE TABLE filler AS {rows}", database=name)
    # Its pg_monitor lets it ask for the size of any database.
    source_server.psql("-c", "GRANT pg_monitor TO tenantferry")
    yield names
    for name in names.values():
        source_server.psql("-c", f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def stage(
    tmp_path: Path,
    source_databases: dict[str, str],
    source_params: ConnectionParams,
    target_params: ConnectionParams,
    target: connection,
) -> NightStage:
    """Three tenants that nobody has begun to move; one stage for all, and no budget."""
    document = {
        "target": {"conn_id": "target", "regions": ["eu"]},
        "routers": {"main": {"instances": [{"admin_conn_id": "p", "aliases_file": "a.ini"}]}},
        "defaults": {"region": "eu"},
        "waves": {"stages": [100], "error_budget": 0, "most_in_flight_per_source": 2},
        "tenants": [
            {
                "key": key,
                "id": str(uuid4()),
                "source": {"conn_id": "source_1", "database": database},
            }
            for key, database in source_databases.items()
        ],
    }
    path = tmp_path / "fleet.yaml"
    path.write_text(yaml.safe_dump(document), "utf-8")
    sources: dict[str, ConnectionParams | str] = {
        key: source_params.with_database(database) for key, database in source_databases.items()
    }
    databases = Databases(fleet=load_fleet(path), target=target_params, sources=sources)
    return NightStage(databases, ScriptedRuns(), target)
