"""A whole fleet on one machine: sources, target, pooler, Airflow, and the file that declares it."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from importlib import metadata, resources
from pathlib import Path
from uuid import UUID, uuid5

import yaml
from psycopg2 import sql

from tenantferry.connections import ConnectionParams, open_connection
from tenantferry.errors import PermanentError
from tenantferry.local.accounts import servers_directory
from tenantferry.local.airflow import LocalAirflow
from tenantferry.local.ledger import Ledger, Role
from tenantferry.local.loading import adopt_objects, load_dump, load_sample
from tenantferry.local.pgbouncer import PgBouncer, find_pgbouncer
from tenantferry.local.postgres import PostgresServer, choose_installation

# The same key has the same id in every run, so that two reports can be compared.
_NAMESPACE = UUID("6f1d2a44-6f0e-4f0c-9c1e-0b6d3f0c7a10")
_FIRST_KEYS = ("acme", "globex", "initech")
_MIGRATION_ROLE = "tenantferry"
_TARGET_DATABASE = "shared"
# A stream keeps a worker for hours, and so do the reverse streams, which are one task; the other
# steps of all tenants share a few more.
_MOST_STREAMS = 16
_OTHER_WORKERS = 6
# Two disks and two processors at most are kept busy by loading.
_LOADERS = 2


@dataclass(frozen=True, slots=True)
class LocalTenant:
    """
    One customer with its own database.

    :ivar rows: size of the sample, over all tables.
    :ivar approval: ask a person before the cutover.
    :ivar settings: further fields of the tenant in the fleet file.
    :ivar password: of the application's login.
    """

    key: str
    rows: int
    approval: bool = False
    settings: Mapping[str, float | str] = field(default_factory=dict)
    password: str = field(default_factory=lambda: secrets.token_urlsafe(18), repr=False)

    @property
    def id(self) -> UUID:
        """Value of ``tenant_id`` in the target."""
        return uuid5(_NAMESPACE, self.key)

    @property
    def owner(self) -> str:
        """Role that owns the tables on the source; nobody logs in as it."""
        return f"{self.key}_owner"

    @property
    def app(self) -> str:
        """Login of the application on the source; it owns nothing."""
        return f"{self.key}_app"


def name_tenants(count: int, *, rows: int) -> list[LocalTenant]:
    """
    Return *count* tenants of different sizes.

    :param rows: of the first and largest; the second has half of it, the others a sixth.
    """
    keys = [*_FIRST_KEYS, *(f"tenant_{number}" for number in range(4, count + 1))][:count]
    divisors = [1, 2, *[6] * count]
    return [LocalTenant(key, rows // divisor) for key, divisor in zip(keys, divisors, strict=False)]


class LocalFleet:
    """
    Everything that a demo needs, below one folder.

    Start it step by step in the order of its methods; `stop` is right after any of them.

    :param root: holds all files; `clean_up` removes what an earlier fleet left in it.
    :param project_root: the folder that holds ``dags``, ``plugins`` and ``include``.
    :param source_major: PostgreSQL version of the sources, by default the machine's own.
    """

    def __init__(
        self,
        root: Path,
        *,
        project_root: Path,
        tenants: Sequence[LocalTenant],
        source_major: int | None = None,
        target_major: int | None = None,
    ) -> None:
        self.root = root
        self.project_root = project_root
        self.tenants = tenants
        self.ledger = Ledger(root / "fleet.json")
        self.fleet_file = root / "fleet.yaml"
        self._passwords = {name: secrets.token_urlsafe(18) for name in ("migration", "airflow")}
        servers = servers_directory(root / "servers")
        self.source = PostgresServer(
            servers / "source", choose_installation(source_major), settings=self._capacity()
        )
        self.target = PostgresServer(
            servers / "target", choose_installation(target_major), settings=self._capacity()
        )
        self.metadata_server = PostgresServer(
            servers / "airflow", choose_installation(), settings={"shared_buffers": "32MB"}
        )
        self.pooler = PgBouncer(servers / "pgbouncer")
        self.airflow: LocalAirflow | None = None
        self._granting = threading.Lock()

    def start_servers(self) -> None:
        """Start the sources' server, the target and Airflow's, with their roles and databases."""
        for name, server in self._servers().items():
            server.start()
            self._record_server(name, server)
        self._create_login(self.source, _MIGRATION_ROLE, self._passwords["migration"])
        self.source.psql("-c", f"ALTER ROLE {_MIGRATION_ROLE} REPLICATION")
        self._create_login(self.target, _MIGRATION_ROLE, self._passwords["migration"])
        self.target.psql("-c", f"CREATE DATABASE {_TARGET_DATABASE}")
        _grant(self.target, "target_privileges.sql", _TARGET_DATABASE)
        self._create_login(self.metadata_server, "airflow", self._passwords["airflow"])
        self.metadata_server.psql("-c", "CREATE DATABASE airflow OWNER airflow")

    def load_tenant(self, tenant: LocalTenant, *, dump: Path | None = None) -> None:
        """
        Make a tenant's own database.

        :param dump: plain SQL to load in place of the sample.
        :raises PermanentError: if the dump does not load.
        """
        self.source.psql("-c", f"CREATE ROLE {tenant.owner} NOLOGIN")
        self._create_login(self.source, tenant.app, tenant.password)
        self.source.psql("-c", f"CREATE DATABASE {tenant.key} OWNER {tenant.owner}")
        if dump is None:
            load_sample(self.source, tenant.key, owner=tenant.owner, rows=tenant.rows)
        else:
            load_dump(self.source, tenant.key, dump)
        adopt_objects(self.source, tenant.key, owner=tenant.owner, app=tenant.app)
        self.source.psql("-c", "ANALYZE", database=tenant.key)
        # Some of it concerns the whole server: of two at the same time one would fail.
        with self._granting:
            _grant(self.source, "source_privileges.sql", tenant.key, f"--set=owner={tenant.owner}")

    def load_tenants(self, *, dump: Path | None = None) -> None:
        """Make every tenant's own database, some at the same time; see `load_tenant`."""
        with ThreadPoolExecutor(_LOADERS) as pool:
            list(pool.map(lambda tenant: self.load_tenant(tenant, dump=dump), self.tenants))

    def start_pooler(self) -> None:
        """Start PgBouncer with every tenant's alias pointing at its source."""
        address = self.source.superuser
        for tenant in self.tenants:
            self.pooler.set_user(tenant.app, tenant.password)
            self.pooler.set_alias(
                tenant.key,
                host=address.host,
                port=address.port,
                database=tenant.key,
                user=tenant.app,
                password=tenant.password,
            )
        self._start_pooler()

    def write_fleet_file(self) -> None:
        """Declare the fleet as a user of Airflow does."""
        document = {
            "target": {"conn_id": "target"},
            "routers": {
                "main": {
                    "instances": [
                        {
                            "admin_conn_id": "pgbouncer_1",
                            "aliases_file": str(self.pooler.aliases_file),
                        }
                    ]
                }
            },
            "tenants": [
                {
                    "key": tenant.key,
                    "id": str(tenant.id),
                    "source": {"conn_id": "source_1", "database": tenant.key},
                    "app_roles": [tenant.app],
                    "approval": tenant.approval,
                    **tenant.settings,
                }
                for tenant in self.tenants
            ],
        }
        self.fleet_file.write_text(yaml.safe_dump(document, sort_keys=False), "utf-8")

    def start_airflow(self) -> LocalAirflow:
        """Start Airflow with the connections that the fleet file names."""
        address = self.metadata_server.superuser
        self.airflow = LocalAirflow(
            self.root / "airflow",
            project_root=self.project_root,
            metadata=ConnectionParams(
                address.host, address.port, "airflow", "airflow", self._passwords["airflow"]
            ),
            fleet_file=self.fleet_file,
            connections=self.connections(),
            parallelism=min(len(self.tenants), _MOST_STREAMS) + _OTHER_WORKERS,
            on_spawn=self._record_airflow,
        )
        self.airflow.start()
        return self.airflow

    def require_airflow(self) -> LocalAirflow:
        """
        Return the Airflow that was started.

        :raises PermanentError: if none was.
        """
        if self.airflow is None:
            raise PermanentError("Airflow of the local fleet was not started")
        return self.airflow

    def connections(self) -> Mapping[str, ConnectionParams]:
        """Return the Airflow connections by id."""
        return {
            "target": self.target_params,
            "source_1": self._migration_params(self.source, "postgres"),
            "pgbouncer_1": self.pooler.admin,
            **{tenant.app: self.client_params(tenant) for tenant in self.tenants},
        }

    @property
    def target_params(self) -> ConnectionParams:
        """The target as the migration role sees it."""
        return self._migration_params(self.target, _TARGET_DATABASE)

    def client_params(self, tenant: LocalTenant) -> ConnectionParams:
        """Return how a tenant's application connects, before the move and after it."""
        return self.pooler.client(tenant.key, tenant.app, tenant.password)

    def versions(self) -> dict[str, str]:
        """Return program to version."""
        return {
            "airflow": metadata.version("apache-airflow"),
            "pgbouncer": _pgbouncer_version(),
            "postgres_source": _server_version(self.source),
            "postgres_target": _server_version(self.target),
        }

    def restart_server(self, name: str, *, mode: str = "fast") -> None:
        """
        Stop one PostgreSQL server and start it again.

        :param name: ``source``, ``target`` or ``airflow``.
        :param mode: ``smart``, ``fast`` or ``immediate``, as ``pg_ctl`` means them.
        """
        server = self._servers()[name]
        server.restart(mode)
        self._record_server(name, server)

    def restart_pooler(self) -> None:
        """Kill PgBouncer and start it again, with what its files say now."""
        self.pooler.kill()
        self._start_pooler()

    def stop(self) -> None:
        """Stop everything; keep the logs, remove the data."""
        logs = self.root / "demo" / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        stop_recorded(self.root, keep_logs_in=logs)

    def _servers(self) -> Mapping[str, PostgresServer]:
        return {"source": self.source, "target": self.target, "airflow": self.metadata_server}

    def _capacity(self) -> Mapping[str, str]:
        # Per tenant a durable slot, a temporary one, and the sessions of client and workers.
        count = len(self.tenants)
        slots = str(20 + 3 * count)
        return {
            "max_replication_slots": slots,
            "max_wal_senders": slots,
            "max_connections": str(150 + 30 * count),
        }

    def _start_pooler(self) -> None:
        self.pooler.start()
        if self.pooler.pid is not None:
            self.ledger.record("PgBouncer", Role.POOLER, self.pooler.pid)

    def _record_server(self, name: str, server: PostgresServer) -> None:
        if server.pid is not None:
            self.ledger.record(f"PostgreSQL {name}", Role.SERVER, server.pid)

    def _record_airflow(self, process: subprocess.Popen[bytes]) -> None:
        self.ledger.record("Airflow", Role.SESSION, process.pid)

    def _migration_params(self, server: PostgresServer, database: str) -> ConnectionParams:
        address = server.superuser
        return ConnectionParams(
            address.host, address.port, _MIGRATION_ROLE, database, self._passwords["migration"]
        )

    @staticmethod
    def _create_login(server: PostgresServer, role: str, password: str) -> None:
        # Not through psql: its arguments are for everybody on the machine to read.
        opened = open_connection(server.superuser, purpose="local fleet", autocommit=True)
        with closing(opened), opened.cursor() as cursor:
            cursor.execute(
                sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(
                    sql.Identifier(role), sql.Literal(password)
                )
            )


def clean_up(root: Path) -> list[str]:
    """
    Stop and remove what an earlier fleet left below *root*; before the next one is made.

    :return: the names of what was running.
    """
    stopped = stop_recorded(root)
    for name in ("airflow", "demo"):
        shutil.rmtree(root / name, ignore_errors=True)
    return stopped


def stop_recorded(root: Path, *, keep_logs_in: Path | None = None) -> list[str]:
    """
    Stop every process of the fleet below *root*, and remove the servers' files.

    :param keep_logs_in: where the servers' logs go.
    :return: the names of what was running.
    """
    stopped = Ledger(root / "fleet.json").stop_all()
    servers = servers_directory(root / "servers")
    if keep_logs_in is not None:
        for log in servers.glob("*/*.log"):
            shutil.copy(log, keep_logs_in / f"{log.parent.name}-{log.name}")
    shutil.rmtree(servers)
    return stopped


def _grant(server: PostgresServer, file: str, database: str, *arguments: str) -> None:
    script = resources.files("tenantferry.schema").joinpath(file)
    with resources.as_file(script) as path:
        server.psql(*arguments, f"--file={path}", database=database)


def _server_version(server: PostgresServer) -> str:
    # "15.18 (Debian 15.18-0+deb12u1)"
    return server.psql("-c", "SHOW server_version").partition(" ")[0]


def _pgbouncer_version() -> str:
    told = subprocess.run(
        [find_pgbouncer(), "--version"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "LC_ALL": "C"},
    ).stdout
    first = told.partition("\n")[0]
    return first.removeprefix("PgBouncer ").strip()
