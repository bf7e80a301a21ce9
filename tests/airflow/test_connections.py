from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import psycopg2.extensions
import psycopg2.extras
import pytest
from airflow.providers.postgres.hooks.postgres import PostgresHook
from airflow.sdk import Connection

from tenantferry.connections import (
    ConnectionParams,
    open_connection,
    open_replication_connection,
)
from tenantferry.errors import PermanentError
from tenantferry.fleet import FleetError
from tenantferry_airflow.assembly import assemble_move, connection_ids, read_move
from tenantferry_airflow.connections import to_params
from tenantferry_airflow.fleet import load_declared_fleet, require_tenant

SECRET = "correct horse battery staple"


def connect(conn_id: str, **fields: object) -> Connection:
    defaults = {"conn_type": "postgres", "host": "db1", "login": "ferry", "password": SECRET}
    return Connection(**{"conn_id": conn_id, "schema": "shop", **defaults, **fields})  # type: ignore[arg-type]  # typed per field


def test_to_params_takes_extras_as_libpq_parameters() -> None:
    params = to_params(connect("target", port=6543, extra='{"sslmode": "verify-full"}'))

    assert (params.host, params.port, params.user, params.database) == (
        "db1",
        6543,
        "ferry",
        "shop",
    )
    assert params.password == SECRET
    assert params.options == {"sslmode": "verify-full"}


@pytest.mark.parametrize("name", ["sslmod", "iam", "password", "options"])
def test_to_params_refuses_an_extra_that_libpq_would_not_take(name: str) -> None:
    with pytest.raises(PermanentError, match=name):
        to_params(connect("target", extra=f'{{"{name}": "x"}}'))


@pytest.mark.parametrize("field", ["host", "login", "schema"])
def test_to_params_names_the_connection_and_what_it_lacks(field: str) -> None:
    with pytest.raises(PermanentError, match=f'"target" lacks {field}'):
        to_params(connect("target", **{field: None}))


def test_to_params_never_tells_a_password() -> None:
    params = to_params(connect("target"))

    assert SECRET not in repr(params) + params.describe()
    with pytest.raises(PermanentError) as refused:
        to_params(connect("target", host=None))
    assert SECRET not in str(refused.value)


def test_assemble_move_reaches_each_database_by_the_connection_declared_for_it(
    fleet_file: Path,
) -> None:
    fleet = load_declared_fleet()
    tenant = require_tenant(fleet, "acme")
    ids = connection_ids(fleet, tenant)
    connections = {conn_id: connect(conn_id, host=f"host-of-{conn_id}") for conn_id in ids}

    move = assemble_move(fleet, tenant, connections, run_id="run 1")

    assert ids == ["source_1", "target", "acme_app", "pgbouncer_1"]
    assert move.source.describe() == "ferry@host-of-source_1:5432/acme"
    assert move.target.describe() == "ferry@host-of-target:5432/shop"
    assert move.probe.describe() == "ferry@host-of-acme_app:5432/acme"
    (instance,) = move.router.instances
    assert instance.admin.describe() == "ferry@host-of-pgbouncer_1:5432/pgbouncer"
    assert instance.aliases_file == fleet_file.parent / "aliases.ini"
    assert move.target_address == ("host-of-target", 5432, "shop")
    assert move.run_id == "run 1"


def test_assemble_move_keeps_the_database_of_the_source_connection_where_none_is_declared(
    fleet_file: Path,
) -> None:
    fleet = load_declared_fleet()
    tenant = require_tenant(fleet, "globex")
    connections = {conn_id: connect(conn_id) for conn_id in connection_ids(fleet, tenant)}

    move = assemble_move(fleet, tenant, connections, run_id=None)

    assert move.source.database == "shop"


def test_require_tenant_says_why_a_declared_tenant_cannot_be_used(fleet_file: Path) -> None:
    with fleet_file.open("a", encoding="utf-8") as file:
        file.write("  - {key: initech, id: 17, source: {conn_id: source_2, database: initech}}\n")
    fleet = load_declared_fleet()

    with pytest.raises(FleetError, match="id:"):
        require_tenant(fleet, "initech")
    with pytest.raises(FleetError, match='tenant "hooli" is not declared'):
        require_tenant(fleet, "hooli")


def test_gotcha_40_the_engine_opens_psycopg2_sessions_from_airflows_connections(
    fleet_file: Path, source_params: ConnectionParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {
        "conn_type": "postgres",
        "host": source_params.host,
        "port": source_params.port,
        "login": source_params.user,
        "password": source_params.password,
        "schema": source_params.database,
    }
    for conn_id in ("source_1", "target", "acme_app", "pgbouncer_1"):
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(fields))
    move = read_move("acme", run_id=None)

    with (
        closing(open_connection(move.target, purpose="test")) as ours,
        closing(open_replication_connection(move.target, purpose="test")) as replication,
        closing(PostgresHook("target").get_conn()) as airflows,
    ):
        kinds = [type(opened) for opened in (ours, replication, airflows)]

    assert issubclass(kinds[0], psycopg2.extensions.connection)
    assert issubclass(kinds[1], psycopg2.extras.LogicalReplicationConnection)
    # The day this fails, the engine's own way to open sessions may be looked at again.
    assert not issubclass(kinds[2], psycopg2.extensions.connection)
