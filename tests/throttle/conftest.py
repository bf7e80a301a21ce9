"""A physical standby of the sources' server, and the gauge that looks at it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from move_fixtures import move, pooler, stage
from tenantferry.connections import ConnectionParams
from tenantferry.local.accounts import (
    free_port,
    give_to_service_user,
    servers_directory,
    service_user,
)
from tenantferry.local.postgres import PostgresServer
from tenantferry.throttle.standbys import ReplicaLag

__all__ = ["move", "pooler", "stage"]

STANDBY = "standby_1"
REPORT_EVERY = "ALTER SYSTEM SET wal_receiver_status_interval"

WaitFor = Callable[[Callable[[], object]], None]


@pytest.fixture
def wait_for() -> WaitFor:
    """Wait until a condition holds; fail after half a minute."""

    def wait(condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    return wait


@pytest.fixture(scope="session")
def standby(source_server: PostgresServer) -> Iterator[PostgresServer]:
    """A physical standby of the sources' server."""
    base = servers_directory(Path(tempfile.mkdtemp(prefix="tenantferry-test-")))
    server = PostgresServer(base / "standby", source_server.installation)
    _copy(source_server, server)
    try:
        server.start()
        yield server
    finally:
        server.stop("immediate")
        shutil.rmtree(base, ignore_errors=True)


@pytest.fixture
def lagging(standby: PostgresServer, source_server: PostgresServer) -> Iterator[PostgresServer]:
    """The standby while it replays nothing."""
    standby.psql("-c", "SELECT pg_wal_replay_pause()")
    source_server.psql("-c", "SELECT pg_logical_emit_message(true, 'test', 'written')")
    yield standby
    standby.psql("-c", "SELECT pg_wal_replay_resume()", "-c", f"{REPORT_EVERY} = '1s'")
    standby.psql("-c", "SELECT pg_reload_conf()")


@pytest.fixture
def gauge(source_params: ConnectionParams) -> Iterator[ReplicaLag]:
    """The source's, with a limit of a second."""
    gauge = ReplicaLag(source_params, side="source", tenant="acme", limit_seconds=1.0)
    yield gauge
    gauge.close()


def _copy(primary: PostgresServer, standby: PostgresServer) -> None:
    superuser = primary.superuser
    standby.directory.mkdir()
    give_to_service_user(standby.directory)
    subprocess.run(
        [primary.installation.program("pg_basebackup"), "--pgdata", str(standby.data),
         "--write-recovery-conf", "--checkpoint=fast", "--no-sync", "--dbname",
         f"host={superuser.host} port={superuser.port} user={superuser.user}"
         f" application_name={STANDBY}"],
        user=service_user(),
        group=service_user(),
        extra_groups=[] if service_user() else None,
        cwd="/",
        env={**os.environ, "PGPASSWORD": superuser.password},
        check=True,
    )  # fmt: skip
    port = free_port()
    for name, text in {"port": str(port), "superuser.password": superuser.password}.items():
        (standby.directory / name).write_text(text, "utf-8")
    with (standby.data / "postgresql.auto.conf").open("a", encoding="utf-8") as file:
        file.write(f"port = {port}\nhot_standby = on\nwal_receiver_status_interval = 1s\n")
