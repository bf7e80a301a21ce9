"""A physical standby of a server that is running, to be promoted."""

from __future__ import annotations

import os
import subprocess
import time
from itertools import count

from tenantferry.local.accounts import free_port, give_to_service_user, service_user
from tenantferry.local.postgres import PostgresServer

_numbers = count(1)


def create_standby(primary: PostgresServer, **settings: str) -> PostgresServer:
    """
    Copy a server and start the copy as its standby.

    :param settings: of the standby, on top of its connection to the primary.
    """
    number = next(_numbers)
    standby = PostgresServer(primary.directory.parent / f"standby_{number}", primary.installation)
    standby.directory.mkdir()
    give_to_service_user(standby.directory)
    login = primary.superuser
    password_file = standby.directory / "superuser.password"
    password_file.write_text(login.password, "utf-8")
    port = str(free_port())
    (standby.directory / "port").write_text(port, "utf-8")
    subprocess.run(
        [primary.installation.program("pg_basebackup"), "--pgdata", str(standby.data),
         "--checkpoint=fast", "--no-sync", "--host", login.host, "--port", str(login.port),
         "--username", login.user],
        env={**os.environ, "PGPASSWORD": login.password, "LC_ALL": "C.UTF-8", "HOME": "/"},
        user=service_user(),
        group=service_user(),
        extra_groups=[] if service_user() else None,
        cwd="/",
        check=True,
    )  # fmt: skip
    connection = (
        f"host={login.host} port={login.port} user={login.user} password={login.password}"
        f" dbname={login.database}"
    )
    lines = {"port": port, "primary_conninfo": connection, **settings}
    with (standby.data / "postgresql.conf").open("a", encoding="utf-8") as file:
        file.writelines(f"{name} = '{value}'\n" for name, value in lines.items())
    signal_file = standby.data / "standby.signal"
    signal_file.touch()
    give_to_service_user(signal_file)
    standby.start()
    return standby


def cut_off(standby: PostgresServer) -> None:
    """Let a standby get nothing from its primary any more."""
    standby.psql("-c", "ALTER SYSTEM SET primary_conninfo = ''", "-c", "SELECT pg_reload_conf()")
    wait_until_true(standby, "SELECT count(*) = 0 FROM pg_stat_wal_receiver")


def wait_until_replayed(primary: PostgresServer, standby: PostgresServer) -> None:
    """Wait until the standby shows all that the primary has committed."""
    lsn = primary.psql("-c", "SELECT pg_current_wal_flush_lsn()")
    wait_until_true(standby, f"SELECT pg_last_wal_replay_lsn() >= '{lsn}'")


def wait_until_true(server: PostgresServer, query: str, *, timeout: float = 60) -> None:
    """Ask a server again and again, until it says yes."""
    deadline = time.monotonic() + timeout
    while server.psql("-c", query) != "t":
        assert time.monotonic() < deadline, query
        time.sleep(0.05)
