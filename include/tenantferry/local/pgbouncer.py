"""Start and stop a real PgBouncer on loopback: transaction pooling, each login at its alias."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from tenantferry.connections import ConnectionParams, open_admin_console
from tenantferry.errors import PermanentError, TransientError
from tenantferry.local.accounts import free_port, give_to_service_user, service_user
from tenantferry.traffic.aliases import put_entry

ADMIN_USER = "tenantferry_admin"
# How long a start or a stop may take on a loaded machine.
_TIMEOUT_SECONDS = 20.0
_RECHECK_SECONDS = 0.02
_BARE_NAME = re.compile(r"[0-9A-Za-z_]+")

_SETTINGS: Mapping[str, str] = {
    "listen_addr": "127.0.0.1",
    "unix_socket_dir": "",
    # An alias logs in as a user of its own, whoever asks for it: only these rules keep the login of
    # one tenant away from the rows of another.
    "auth_type": "hba",
    "pool_mode": "transaction",
    "max_client_conn": "1000",
    "default_pool_size": "20",
    # Clients wait during a pause; PgBouncer must not end them before the pause ends.
    "query_wait_timeout": "60",
    # What drivers send at every login and a transaction pool cannot keep.
    "ignore_startup_parameters": "extra_float_digits,options",
    "log_connections": "0",
    "log_disconnections": "0",
}


class PgBouncer:
    """
    One PgBouncer with an admin console and a file of aliases of its own.

    :param directory: holds configuration, aliases, log and pid; kept by `stop`. The service
        account must be able to reach it.
    :param settings: configuration on top of ours.
    """

    def __init__(self, directory: Path, *, settings: Mapping[str, str] | None = None) -> None:
        self.directory = directory
        self.settings = {**_SETTINGS, **(settings or {})}
        self.aliases_file = directory / "aliases.ini"
        self.log = directory / "pgbouncer.log"
        self._users_file = directory / "users.txt"
        self._rules_file = directory / "hba.conf"
        self._pid_file = directory / "pgbouncer.pid"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def port(self) -> int:
        """Where clients connect."""
        return int((self.directory / "port").read_text("utf-8"))

    @property
    def admin(self) -> ConnectionParams:
        """How to reach the admin console."""
        password = (self.directory / "admin.password").read_text("utf-8")
        return ConnectionParams("127.0.0.1", self.port, ADMIN_USER, "pgbouncer", password)

    @property
    def pid(self) -> int | None:
        """Process id, if it runs."""
        if self._process is not None:
            return self._process.pid if self._process.poll() is None else None
        try:
            pid = int(self._pid_file.read_text("utf-8"))
            os.kill(pid, 0)
        except (FileNotFoundError, ProcessLookupError, ValueError):
            return None
        return pid

    def client(self, alias: str, user: str, password: str) -> ConnectionParams:
        """Return how an application reaches the database behind *alias*."""
        return ConnectionParams("127.0.0.1", self.port, user, alias, password)

    def set_alias(
        self, alias: str, *, host: str, port: int, database: str, user: str, password: str
    ) -> None:
        """
        Point an alias at a database, as an administrator does before any move; then reload.

        :param user: role that PgBouncer logs in as, and the one login that may use the alias. An
            alias without one keeps every connected client at its own role, whatever the alias is
            pointed at later.
        """
        self._initialize()
        entry = {
            "host": host,
            "port": str(port),
            "dbname": database,
            "user": user,
            "password": password,
        }
        put_entry(self.aliases_file, alias, entry)
        self.allow(user, alias)

    def allow(self, user: str, alias: str) -> None:
        """Let a login use an alias, and the one that a cutover makes to rehearse; then reload."""
        self._initialize()
        rule = _rule(user, alias, f"tenantferry_{alias}")
        rules = self._rules_file.read_text("utf-8").splitlines()
        if rule not in rules:
            self._rules_file.write_text("\n".join([*rules, rule, ""]), "utf-8")
        self._reload()

    def set_user(self, user: str, password: str) -> None:
        """
        Let a role log in; then reload.

        The password stands in clear in a file that only PgBouncer's account can read. Given a
        SCRAM secret instead, PgBouncer (until the fix of its issue 1461) overwrites the password
        of an alias with what it learnt at a client's login, and no client can log in any more
        once its alias points at the target.
        """
        self._initialize()
        kept = [
            line
            for line in self._users_file.read_text("utf-8").splitlines()
            if not line.startswith(f'"{user}" ')
        ]
        quoted = password.replace('"', '""')
        self._users_file.write_text("\n".join([*kept, f'"{user}" "{quoted}"', ""]), "utf-8")
        self._reload()

    def start(self) -> None:
        """
        Start it and wait until its console answers; one that runs is left alone.

        :raises TransientError: if it does not come up.
        """
        self._initialize()
        if self.pid is not None:
            return
        self._write_configuration()
        self._process = subprocess.Popen(
            [find_pgbouncer(), "--quiet", str(self.directory / "pgbouncer.ini")],
            user=service_user(),
            group=service_user(),
            extra_groups=[] if service_user() else None,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._wait_until_it_answers()

    def stop(self) -> None:
        """End it at once, as a shutdown of its machine would; a stopped one stays so."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it without any farewell."""
        self._signal(signal.SIGKILL)

    def restart(self) -> None:
        """Stop it, and start it on the same port with what its files say now."""
        self.stop()
        self.start()

    def _initialize(self) -> None:
        if (self.directory / "port").exists():
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        give_to_service_user(self.directory)
        password = secrets.token_urlsafe(24)
        for name, text in (
            ("admin.password", password),
            ("users.txt", f'"{ADMIN_USER}" "{password}"\n'),
            ("hba.conf", _rule(ADMIN_USER, "pgbouncer") + "\n"),
            ("aliases.ini", "[databases]\n"),
            ("port", str(free_port())),
        ):
            path = self.directory / name
            path.touch(mode=0o600)
            path.write_text(text, "utf-8")
            give_to_service_user(path)

    def _write_configuration(self) -> None:
        settings = {
            **self.settings,
            "listen_port": str(self.port),
            "auth_file": str(self._users_file),
            "auth_hba_file": str(self._rules_file),
            "admin_users": ADMIN_USER,
            "logfile": str(self.log),
            "pidfile": str(self._pid_file),
        }
        lines = [
            "[pgbouncer]",
            *(f"{name} = {value}" for name, value in settings.items()),
            f"%include {self.aliases_file}",
            "",
        ]
        configuration = self.directory / "pgbouncer.ini"
        configuration.write_text("\n".join(lines), "utf-8")
        give_to_service_user(configuration)

    def _reload(self) -> None:
        if self.pid is None:
            return
        console = open_admin_console(self.admin, purpose="local fleet")
        try:
            with console.cursor() as cursor:
                cursor.execute("RELOAD")
        finally:
            console.close()

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + _TIMEOUT_SECONDS
        while True:
            try:
                open_admin_console(self.admin, purpose="local fleet").close()
            except TransientError as error:
                if self.pid is None or time.monotonic() > deadline:
                    tail = self.log.read_text("utf-8", "replace") if self.log.exists() else ""
                    raise TransientError(
                        f'could not start PgBouncer in "{self.directory}"',
                        detail=" ".join(tail.splitlines()[-5:]) or str(error),
                    ) from None
                time.sleep(_RECHECK_SECONDS)  # a start can only be asked for
            else:
                return

    def _signal(self, number: signal.Signals) -> None:
        pid = self.pid
        if pid is None:
            return
        os.kill(pid, number)
        deadline = time.monotonic() + _TIMEOUT_SECONDS
        while self.pid is not None:
            if time.monotonic() > deadline:
                raise TransientError(f"could not stop PgBouncer with process id {pid}")
            time.sleep(_RECHECK_SECONDS)  # it is no child of ours to wait for
        # After a crash the file is left behind, and PgBouncer refuses to start beside it.
        self._pid_file.unlink(missing_ok=True)
        self._process = None


def _rule(user: str, *aliases: str) -> str:
    """
    Write who may use which aliases, as PgBouncer's ``auth_hba_file`` has it.

    >>> _rule("acme_app", "acme", "tenantferry_acme")
    'host acme,tenantferry_acme acme_app 127.0.0.1/32 scram-sha-256'
    """
    databases = ",".join(map(_quote, aliases))
    return f"host {databases} {_quote(user)} 127.0.0.1/32 scram-sha-256"


def _quote(name: str) -> str:
    return name if _BARE_NAME.fullmatch(name) else '"{}"'.format(name.replace('"', '""'))


def find_pgbouncer() -> str:
    """
    Return the path of the program.

    :raises PermanentError: if this machine does not have it.
    """
    # Debian installs it where only root's search path looks.
    path = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin")
    if path is None:
        raise PermanentError(
            "no PgBouncer on this machine", hint="Install the package pgbouncer, 1.18 or newer."
        )
    return path
