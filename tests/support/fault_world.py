"""Servers, a pooler and proxies that all cells of a fault table share, and a tenant for each."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from importlib import resources
from itertools import count
from pathlib import Path
from uuid import UUID

from psycopg2.extensions import connection

from fault_proxy import Proxy
from server_files import make_servers_directory
from slots import drop_slots
from tenantferry.connections import ConnectionParams, open_connection
from tenantferry.control.registry import ensure_control_schema
from tenantferry.fleet import Source, Tenant
from tenantferry.local.accounts import give_to_service_user
from tenantferry.local.loading import load_sample
from tenantferry.local.pgbouncer import PgBouncer
from tenantferry.local.postgres import PostgresServer, find_installations
from tenantferry.moves.move import Move
from tenantferry.schema.catalog import read_catalog
from tenantferry.schema.retrofit import apply_retrofit, plan_retrofit
from tenantferry.traffic.router import Instance, Router

_APP, _ROWS = "app_owner", 800
# A crash of a process loses nothing that it wrote. Little log, so that the disk may be small.
_SETTINGS = {
    "fsync": "off", "full_page_writes": "off", "max_wal_size": "64MB", "min_wal_size": "32MB",
    "max_replication_slots": "10",
}  # fmt: skip
_DISK_SIZE = "400m"


@dataclass(frozen=True, slots=True)
class Stay:
    """
    A tenant that is nowhere but on its source.

    :ivar move: reaches both servers through the proxies.
    :ivar source: and *target*: without them.
    :ivar client: the application, through the pooler.
    :ivar past_the_pooler: the same, straight at its source.
    """

    move: Move
    source: ConnectionParams
    target: ConnectionParams
    client: ConnectionParams
    past_the_pooler: ConnectionParams


class World:
    """
    Everything that can break.

    :ivar disk: where the target lies, if it has a disk of its own.
    """

    def __init__(self, base: Path) -> None:
        self.base = base
        self.disk = _mount(base / "disk")
        installations = find_installations()
        self.source = PostgresServer(base / "source", installations[-1], settings=_SETTINGS)
        self.target = PostgresServer(base / "disk" / "target", installations[0], settings=_SETTINGS)
        self.pooler = PgBouncer(base / "pgbouncer", settings={"server_login_retry": "0.1"})
        self._password = secrets.token_urlsafe(12)
        self._numbers = count(1)

    def start(self) -> None:
        """Start all, with a source and a target to make others from."""
        for server in (self.source, self.target):
            server.start()
            server.psql("-c", f"CREATE ROLE tenantferry LOGIN PASSWORD '{self._password}'")
        self.source.psql(
            "-c", "ALTER ROLE tenantferry REPLICATION",
            "-c", f"CREATE ROLE {_APP} LOGIN PASSWORD '{self._password}'",
            "-c", f"CREATE DATABASE sample OWNER {_APP}",
        )  # fmt: skip
        load_sample(self.source, "sample", owner=_APP, rows=_ROWS)
        self.target.psql("-c", "CREATE DATABASE shared")
        self._grant("sample", "shared")
        self._retrofit()
        self.pooler.set_user(_APP, self._password)
        self.pooler.start()
        self.source_proxy = Proxy("127.0.0.1", self.source.superuser.port)
        self.target_proxy = Proxy("127.0.0.1", self.target.superuser.port)

    def stop(self) -> None:
        """Stop all, and leave nothing behind."""
        self.pooler.kill()
        for server in (self.source, self.target):
            server.stop("immediate")
        self.source_proxy.close()
        self.target_proxy.close()
        if self.disk is not None:
            subprocess.run(["umount", "--lazy", str(self.disk)], check=True)
        shutil.rmtree(self.base)

    def mend(self) -> None:
        """Let everything run that a fault may have ended."""
        for proxy in (self.source_proxy, self.target_proxy):
            proxy.drop_links()
        self.source.start()
        self.target.start()
        self.pooler.start()

    @contextmanager
    def tenant(self) -> Iterator[Stay]:
        """Bring in a tenant; nothing of it is left at the end."""
        name = f"cell_{next(self._numbers)}"
        self.source.psql("-c", f"CREATE DATABASE {name} TEMPLATE sample OWNER {_APP}")
        self.target.psql("-c", f"CREATE DATABASE {name} TEMPLATE shared")
        self._grant(name, name)
        self.pooler.set_alias(
            name, host="127.0.0.1", port=self.source.superuser.port, database=name, user=_APP,
            password=self._password,
        )  # fmt: skip
        try:
            yield self._make_stay(name)
        finally:
            self.mend()
            for server in (self.source, self.target):
                drop_slots(server, f"database = '{name}'")
                server.psql("-c", f"DROP DATABASE {name} WITH (FORCE)")

    def _make_stay(self, name: str) -> Stay:
        source = self._params(self.source, name)
        target = self._params(self.target, name)
        tenant = Tenant(
            key=name, id=UUID(int=1), source=Source(conn_id=name), app_roles=(_APP,),
            chunk_rows=250, backfill_workers=4, round_budget_seconds=0.01, slot_timeout_seconds=20,
            max_write_pause_seconds=5, lag_threshold_seconds=5, lag_samples=1,
        )  # fmt: skip
        client = self.pooler.client(name, _APP, self._password)
        move = Move(
            tenant=tenant,
            target_regions=frozenset(),
            source=replace(source, port=self.source_proxy.port),
            target=replace(target, port=self.target_proxy.port),
            router=Router([Instance("one", self.pooler.admin, self.pooler.aliases_file)]),
            target_address=(target.host, target.port, target.database),
            probe=client,
            run_id="test",
        )
        return Stay(move, source, target, client, replace(source, user=_APP))

    def _params(self, server: PostgresServer, database: str) -> ConnectionParams:
        port = server.superuser.port
        return ConnectionParams("127.0.0.1", port, "tenantferry", database, self._password)

    def _grant(self, source: str, target: str) -> None:
        for server, database, file, arguments in (
            (self.source, source, "source_privileges.sql", [f"--set=owner={_APP}"]),
            (self.target, target, "target_privileges.sql", []),
        ):
            script = resources.files("tenantferry.schema").joinpath(file)
            with resources.as_file(script) as path:
                server.psql(*arguments, f"--file={path}", database=database)

    def _retrofit(self) -> None:
        """Make the tables once: cells have other things to show."""
        with ExitStack() as stack:

            def enter(server: PostgresServer, database: str) -> connection:
                params = self._params(server, database)
                return stack.enter_context(closing(open_connection(params, purpose="setup")))

            source, target = enter(self.source, "sample"), enter(self.target, "shared")
            with target:
                ensure_control_schema(target)
            tenant = Tenant(key="setup", id=UUID(int=2), source=Source(conn_id="setup"))
            with source, target:
                plan = plan_retrofit(read_catalog(source), read_catalog(target), tenant)
                apply_retrofit(target, plan)


@contextmanager
def running_world() -> Iterator[World]:
    """Start a world, and stop it."""
    world = World(make_servers_directory())
    try:
        world.start()
        yield world
    finally:
        world.stop()


def _mount(path: Path) -> Path | None:
    """Give a folder a small disk of its own, where this account may."""
    path.mkdir()
    options = f"size={_DISK_SIZE},mode=755"
    mounted = os.geteuid() == 0 and not subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)],
        capture_output=True, check=False,
    ).returncode  # fmt: skip
    give_to_service_user(path)
    return path if mounted else None
