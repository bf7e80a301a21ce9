"""Real servers for every test: sources on the oldest version at hand, the target on the newest."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from importlib import resources
from itertools import count
from typing import Any

import pytest
from psycopg2.extensions import connection

from server_files import make_servers_directory
from slots import drop_slots
from tenantferry.connections import ConnectionParams, open_connection
from tenantferry.control.registry import ensure_control_schema
from tenantferry.local.postgres import PostgresServer, find_installations

pytest_plugins = ["result_tables"]
# Where an assertion of theirs fails, pytest shows what it compared, as it does for a test.
pytest.register_assert_rewrite("abort_stage", "cutover_stage", "retire_stage", "rollback_stage")
# A crash of a process loses nothing that it wrote; only a crash of the machine would.
_TEST_SETTINGS = {"fsync": "off", "full_page_writes": "off", "max_wal_size": "256MB"}
# A test opens some eighty sessions; by default each login takes them several milliseconds.
_QUICK_LOGINS = {"scram_iterations": "16"}
MIGRATION_PASSWORD = secrets.token_urlsafe(12)
_numbers = count(1)
_DROP_TENANT_ROLES = r"""
DO $$
DECLARE role name;
BEGIN
    FOR role IN SELECT rolname FROM pg_catalog.pg_roles WHERE rolname LIKE 'tenant\_%' LOOP
        BEGIN
            EXECUTE format('DROP ROLE %I', role);
        EXCEPTION WHEN dependent_objects_still_exist THEN
            NULL;  -- of another database that a test still uses
        END;
    END LOOP;
END $$
"""


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """Let the tests run where a plugin is missing: without its limit, or in one process."""
    if not pluginmanager.hasplugin("timeout"):
        parser.addini("timeout", "seconds that a test may take; for pytest-timeout")
    if not pluginmanager.hasplugin("xdist"):
        parser.addoption("--numprocesses", help="for pytest-xdist")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each process whole files in their order, and all drills to one: they share a fleet."""
    # Only where it is installed; it comes without types.
    from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped] # noqa: PLC0415

    class ByFile(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            drills = "tests/drills/"
            file: str = super()._split_scope(nodeid)
            return drills if file.startswith(drills) else file

    config.option.loadscopereorder = False
    return ByFile(config, log)


def pytest_configure(config: pytest.Config) -> None:
    """Know its marker in any case, and ours."""
    config.addinivalue_line("markers", "timeout(seconds): how long a test may take")
    config.addinivalue_line("markers", "soak: goes on for as long as make soak says")


def _run_server(name: str, *, newest: bool) -> Iterator[PostgresServer]:
    installations = find_installations()
    base = make_servers_directory()
    installation = installations[0 if newest else -1]
    settings = {**_TEST_SETTINGS, **(_QUICK_LOGINS if installation.major >= 16 else {})}
    server = PostgresServer(base / name, installation, settings=settings)
    try:
        server.start()
        server.psql("-c", f"CREATE ROLE tenantferry LOGIN PASSWORD '{MIGRATION_PASSWORD}'")
        yield server
    finally:
        server.stop("immediate")
        shutil.rmtree(base, ignore_errors=True)


def _run_source_server(name: str, *, newest: bool) -> Iterator[PostgresServer]:
    for server in _run_server(name, newest=newest):
        server.psql(
            "-c",
            "ALTER ROLE tenantferry REPLICATION",
            "-c",
            "CREATE ROLE app_owner LOGIN PASSWORD 'owner'",
        )
        yield server


@pytest.fixture(scope="session")
def source_server() -> Iterator[PostgresServer]:
    """A cluster for sources."""
    yield from _run_source_server("source", newest=False)


@pytest.fixture
def own_source_server() -> Iterator[PostgresServer]:
    """A cluster that a test may stop, and whose files it may change."""
    yield from _run_source_server("own", newest=False)


@pytest.fixture(scope="session")
def newest_source_server() -> Iterator[PostgresServer]:
    """A cluster for sources that have what only the newest version has."""
    yield from _run_source_server("newest", newest=True)


@pytest.fixture(scope="session")
def target_server() -> Iterator[PostgresServer]:
    """A cluster for targets."""
    yield from _run_server("target", newest=True)


@pytest.fixture(scope="session")
def oldest_target_server() -> Iterator[PostgresServer]:
    """A cluster for targets of the version of the sources: what these have, it has too."""
    yield from _run_server("oldest_target", newest=False)


@pytest.fixture
def source_params(source_server: PostgresServer) -> Iterator[ConnectionParams]:
    """An empty source database owned by ``app_owner``, as the migration role sees it."""
    name = f"source_{next(_numbers)}"
    _create_database(
        source_server, f"{name} OWNER app_owner", "source_privileges.sql", "--set=owner=app_owner"
    )
    yield _migration_params(source_server, name)
    drop_slots(source_server, f"database = '{name}'")
    source_server.psql("-c", f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def source(source_params: ConnectionParams) -> Iterator[connection]:
    """The migration role's session on an empty source, in autocommit."""
    opened = open_connection(source_params, purpose="test", autocommit=True)
    yield opened
    opened.close()


@pytest.fixture
def source_owner(source_params: ConnectionParams) -> Iterator[connection]:
    """The application owner's session on the same source, in autocommit: a client."""
    params = ConnectionParams(
        source_params.host, source_params.port, "app_owner", source_params.database, "owner"
    )
    opened = open_connection(
        params, purpose="test client", autocommit=True, settings={"search_path": "public"}
    )
    yield opened
    opened.close()


@pytest.fixture
def target_params(target_server: PostgresServer) -> Iterator[ConnectionParams]:
    """A target database with its control schema, as the migration role sees it."""
    name = f"target_{next(_numbers)}"
    _create_database(target_server, name, "target_privileges.sql")
    params = _migration_params(target_server, name)
    opened = open_connection(params, purpose="test setup")
    with opened:
        ensure_control_schema(opened)
    opened.close()
    yield params
    # Roles outlive their database, and the next test makes its own.
    target_server.psql("-c", f"DROP DATABASE {name} WITH (FORCE)", "-c", _DROP_TENANT_ROLES)


@pytest.fixture
def target(target_params: ConnectionParams) -> Iterator[connection]:
    """The migration role's session in a target, in autocommit."""
    opened = open_connection(target_params, purpose="test", autocommit=True)
    yield opened
    opened.close()


@pytest.fixture
def soak_seconds() -> float:
    """How long a test marked ``soak`` goes on; ``make soak MINUTES=60`` says it."""
    minutes = os.environ.get("SOAK_MINUTES")
    if minutes is None:
        pytest.skip("only: make soak MINUTES=60")
    return float(minutes) * 60


def _migration_params(server: PostgresServer, database: str) -> ConnectionParams:
    superuser = server.superuser
    return ConnectionParams(
        superuser.host, superuser.port, "tenantferry", database, MIGRATION_PASSWORD
    )


def _create_database(
    server: PostgresServer, description: str, privileges: str, *arguments: str
) -> None:
    name, *_ = description.split()
    script = resources.files("tenantferry.schema").joinpath(privileges)
    with resources.as_file(script) as path:
        server.psql(
            *arguments,
            "-c", f"CREATE DATABASE {description}",
            "-c", rf"\connect {name}",
            f"--file={path}",
        )  # fmt: skip
