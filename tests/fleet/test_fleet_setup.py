"""What docker-compose.yaml does before Airflow starts, against real servers of this machine."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import yaml
from psycopg2.extensions import connection

from tenantferry.connections import (
    ConnectionParams,
    open_admin_console,
    open_client_connection,
    open_connection,
)
from tenantferry.errors import TenantferryError, TransientError
from tenantferry.fleet import load_fleet
from tenantferry.local.accounts import free_port, servers_directory, service_user
from tenantferry.local.pgbouncer import PgBouncer, find_pgbouncer
from tenantferry.local.postgres import PostgresServer, find_installations
from tenantferry.traffic.aliases import put_entry, read_entry

PROJECT_ROOT = Path(__file__).resolve().parents[2]
ENGINE = PROJECT_ROOT / "include" / "tenantferry"
# What a local PgBouncer says about places, or what only its own folder can have.
OF_THE_PLACE = {
    "listen_addr", "listen_port", "auth_file", "auth_hba_file", "admin_users", "logfile", "pidfile",
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Servers and folders as the containers see them."""

    target: PostgresServer
    source: PostgresServer
    folder: Path

    @property
    def aliases(self) -> Path:
        return self.folder / "pooler" / "aliases.ini"

    def set_up(self, *, engine: Path = ENGINE) -> subprocess.CompletedProcess[str]:
        addresses = {
            name: f"{server.superuser.host}:{server.superuser.port}"
            for name, server in (
                ("TARGET", self.target), ("SOURCE_1", self.source), ("SOURCE_2", self.source),
            )
        }  # fmt: skip
        environment = {
            **addresses,
            "PATH": f"{self.target.installation.bin_directory}{os.pathsep}{os.environ['PATH']}",
            "PGUSER": "postgres",
            "PGPASSFILE": str(self._write_passwords()),
            "FERRY_PASSWORD": "ferry",
            "APP_PASSWORD": "app",
            "POOLER_PASSWORD": "pooler",
            "ENGINE": str(engine),
            "POOLER": str(self.folder / "pooler"),
            "LOGS": str(self.folder / "logs"),
            "OWNER": self._owner(),
            "ROWS": "200",
        }
        return subprocess.run(
            ["sh", str(PROJECT_ROOT / "scripts" / "fleet_setup.sh")],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def as_migration_role(self, server: PostgresServer, database: str) -> connection:
        address = server.superuser
        params = ConnectionParams(address.host, address.port, "tenantferry", database, "ferry")
        return open_connection(params, purpose="test", autocommit=True)

    def _write_passwords(self) -> Path:
        # In compose all servers have one superuser password; here each has its own.
        path = self.folder / "pgpass"
        lines = [
            f"{p.host}:{p.port}:*:{p.user}:{p.password}"
            for p in (self.target.superuser, self.source.superuser)
        ]
        path.write_text("\n".join([*lines, ""]), "utf-8")
        path.chmod(0o600)
        return path

    @staticmethod
    def _owner() -> str:
        user = service_user()
        entry = pwd.getpwnam(user) if user else pwd.getpwuid(os.geteuid())
        return f"{entry.pw_uid}:{entry.pw_gid}"


@pytest.fixture
def place() -> Iterator[Place]:
    base = servers_directory(Path(tempfile.mkdtemp(prefix="tenantferry-test-")))
    installations = find_installations()
    place = Place(
        PostgresServer(base / "target", installations[0], settings={"fsync": "off"}),
        PostgresServer(base / "source", installations[-1], settings={"fsync": "off"}),
        base,
    )
    try:
        for name in ("pooler", "logs"):
            (base / name).mkdir()
        place.target.start()
        place.source.start()
        yield place
    finally:
        place.target.stop("immediate")
        place.source.stop("immediate")
        shutil.rmtree(base, ignore_errors=True)


@pytest.fixture(scope="module")
def compose() -> Any:
    return yaml.safe_load((PROJECT_ROOT / "docker-compose.yaml").read_text("utf-8"))


def rows(opened: connection, query: str, *values: Any) -> list[tuple[Any, ...]]:
    with opened.cursor() as cursor:
        cursor.execute(query, values or None)
        return cursor.fetchall()


def failing_copy(folder: Path) -> Path:
    """Return an engine whose script for the privileges of the second tenant's tables fails."""
    engine = folder / "engine"
    for part in ("local", "schema"):
        shutil.copytree(ENGINE / part, engine / part, ignore=shutil.ignore_patterns("*.py*"))
    adopt = engine / "local" / "adopt.sql"
    fails = "SELECT 1 / (current_database() <> 'globex')::integer;\n"
    adopt.write_text(fails + adopt.read_text("utf-8"), "utf-8")
    return engine


def test_fleet_setup_makes_roles_databases_and_privileges_and_may_run_again(place: Place) -> None:
    first, second = place.set_up(), place.set_up()

    assert first.returncode == 0, first.stderr
    assert (second.returncode, second.stderr) == (0, "")
    with closing(place.as_migration_role(place.target, "shared")) as target:
        assert rows(
            target,
            "SELECT rolcreaterole, rolbypassrls, rolreplication, rolsuper FROM pg_roles"
            " WHERE rolname = 'tenantferry'",
        ) == [(True, True, True, False)]
        rows(
            target,
            "CREATE SCHEMA tried; SELECT set_config('session_replication_role', 'replica', true)",
        )
    for key, database in (("acme", "acme"), ("globex", "globex"), ("initech", "initech_prod")):
        with closing(place.as_migration_role(place.source, database)) as source:
            assert rows(
                source,
                "SELECT rolreplication, rolsuper, pg_has_role(rolname, datdba, 'USAGE'),"
                " has_database_privilege(%s, datname, 'CONNECT'),"
                " has_table_privilege(%s, 'public.invoices', 'UPDATE'),"
                " (SELECT count(*) FROM public.invoices) FROM pg_roles, pg_database"
                " WHERE rolname = 'tenantferry' AND datname = current_database()",
                f"{key}_app",
                f"{key}_app",
            ) == [(True, False, True, True, True, 50)]


def test_fleet_setup_goes_on_where_it_was_interrupted(place: Place) -> None:
    interrupted = place.set_up(engine=failing_copy(place.folder))
    finished = place.set_up()

    assert interrupted.returncode != 0
    assert finished.returncode == 0, finished.stderr
    with closing(place.as_migration_role(place.source, "globex")) as source:
        assert rows(
            source,
            "SELECT count(*), has_table_privilege('globex_app', 'public.invoices', 'INSERT')"
            " FROM public.invoices",
        ) == [(50, True)]
    lines = place.aliases.read_text("utf-8").splitlines()
    assert [line.partition(" ")[0] for line in lines] == [
        "[databases]", "acme", "globex", "initech_prod",
    ]  # fmt: skip


def test_fleet_setup_leaves_a_moved_tenant_at_the_target(place: Place) -> None:
    place.set_up()
    moved = {"host": "target", "port": "5432", "dbname": "shared", "user": "tenant_acme"}
    put_entry(place.aliases, "acme", moved)
    place.source.psql("-c", "ALTER DATABASE acme SET default_transaction_read_only = on")

    again = place.set_up()

    assert (again.returncode, again.stderr) == (0, "")
    assert read_entry(place.aliases, "acme") == moved


def test_fleet_setup_makes_every_source_and_alias_of_the_shipped_fleet(
    place: Place, compose: Any
) -> None:
    place.set_up()
    fleet = load_fleet(PROJECT_ROOT / "include" / "fleet.yaml")

    for tenant in fleet.tenants.values():
        assert read_entry(place.aliases, tenant.alias)["dbname"] == tenant.source.database


def test_compose_gives_fleet_setup_all_that_it_reads(compose: Any) -> None:
    script = (PROJECT_ROOT / "scripts" / "fleet_setup.sh").read_text("utf-8")
    service = compose["services"]["fleet-setup"]

    assert service["entrypoint"] == ["sh", "/fleet_setup.sh"]
    assert "./scripts/fleet_setup.sh:/fleet_setup.sh:ro" in service["volumes"]
    for name, value in service["environment"].items():
        assert f"${name}" in script or name == "PGPASSWORD"
        if name in ("TARGET", "SOURCE_1", "SOURCE_2"):
            assert value.partition(":")[0] in compose["services"]


def test_pgbouncer_of_compose_is_configured_as_the_local_one(
    pooler: PgBouncer, compose: Any
) -> None:
    local = settings_of((pooler.directory / "pgbouncer.ini").read_text("utf-8"))
    contained = settings_of(compose["configs"]["pgbouncer"]["content"])

    assert {name: contained.get(name) for name in local.keys() - OF_THE_PLACE} == {
        name: value for name, value in local.items() if name not in OF_THE_PLACE
    }
    assert contained.keys() - local.keys() == set()


def test_pgbouncer_serves_clients_with_the_configuration_of_compose(
    place: Place, compose: Any, start_pgbouncer: Callable[[Path], subprocess.Popen[bytes]]
) -> None:
    place.set_up()
    port = free_port()
    content = compose["configs"]["pgbouncer"]["content"].replace(
        "/pooler/", f"{place.folder}/pooler/"
    )
    content = content.replace("listen_port = 6432", f"listen_port = {port}")
    configuration = place.folder / "pgbouncer.ini"
    configuration.write_text(content.replace("0.0.0.0", "127.0.0.1"), "utf-8")
    admin = ConnectionParams("127.0.0.1", port, "pooler_admin", "pgbouncer", "pooler")

    wait_for(admin, start_pgbouncer(configuration))

    with closing(
        open_client_connection(
            ConnectionParams("127.0.0.1", port, "globex_app", "globex", "app-globex"),
            purpose="test",
        )
    ) as client:
        assert rows(client, "SELECT current_database(), current_user") == [("globex", "globex_app")]
    stranger = ConnectionParams("127.0.0.1", port, "acme_app", "globex", "app-acme")
    with pytest.raises(TenantferryError):
        open_client_connection(stranger, purpose="test")


@pytest.fixture
def pooler() -> Iterator[PgBouncer]:
    base = servers_directory(Path(tempfile.mkdtemp(prefix="tenantferry-test-")))
    pooler = PgBouncer(base / "pgbouncer")
    pooler.start()
    yield pooler
    pooler.kill()
    shutil.rmtree(base)


@pytest.fixture
def start_pgbouncer() -> Iterator[Callable[[Path], subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def start(configuration: Path) -> subprocess.Popen[bytes]:
        started.append(
            subprocess.Popen(
                [find_pgbouncer(), "--quiet", str(configuration)],
                user=service_user(),
                group=service_user(),
                extra_groups=[] if service_user() else None,
                cwd="/",
                stderr=subprocess.DEVNULL,
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait(20)


def settings_of(text: str) -> Mapping[str, str]:
    """Read the settings of a pgbouncer.ini, but for its ``%include``."""
    pairs = (
        line.partition("=") for line in text.splitlines() if "=" in line and line[0] not in "#;"
    )
    return {name.strip(): value.strip() for name, _, value in pairs}


def wait_for(admin: ConnectionParams, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            open_admin_console(admin, purpose="test").close()
        except (TransientError, psycopg2.OperationalError):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)  # a start can only be asked for
        else:
            return
