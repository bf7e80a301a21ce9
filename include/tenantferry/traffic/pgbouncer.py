"""The admin console of one PgBouncer instance. No command waits without a deadline."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

import psycopg2
from psycopg2.extensions import connection

from tenantferry.connections import ConnectionParams, open_admin_console
from tenantferry.errors import TransientError

# A command other than PAUSE is answered at once by a PgBouncer that works.
COMMAND_TIMEOUT_SECONDS = 3.0
_CONNECT_TIMEOUT_SECONDS = 3

Row = dict[str, object]


@dataclass(frozen=True, slots=True)
class AliasState:
    """
    What an instance knows of one alias.

    :ivar force_user: role of the alias, or ``None`` where the client's own is used.
    :ivar pool_mode: ``session``, ``transaction`` or ``statement``.
    :ivar min_pool_size: connections that it opens unasked, also while the alias is paused.
    :ivar connections: to the server, of any state.
    """

    host: str | None
    port: int
    database: str
    force_user: str | None
    pool_mode: str
    min_pool_size: int
    connections: int
    paused: bool
    disabled: bool


class Console:
    """
    One session with the admin console.

    Its commands run in a thread of its own, so that all instances can be told at the same time,
    and that one that hangs can be given up.
    """

    def __init__(self, name: str, opened: connection) -> None:
        self.name = name
        self._connection = opened
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=f"console {name}")

    def start(self, command: str) -> Future[list[Row]]:
        """Send a command; its rows, or its failure as a `TransientError`, come later."""
        return self._executor.submit(self._execute, command)

    def run(self, command: str) -> list[Row]:
        """
        Run a command that is answered at once.

        :raises TransientError: if it fails or is not answered in time.
        """
        return self.finish(self.start(command))

    def finish(self, started: Future[list[Row]]) -> list[Row]:
        """
        Wait for a command that is answered at once.

        :raises TransientError: if it fails or is not answered in time.
        """
        try:
            return started.result(COMMAND_TIMEOUT_SECONDS)
        except TimeoutError:
            self.abandon()
            raise TransientError(
                f'PgBouncer instance "{self.name}" did not answer within'
                f" {COMMAND_TIMEOUT_SECONDS:g} s"
            ) from None

    def read_setting(self, name: str) -> str:
        """Return one setting; empty where it is not set or not known."""
        rows = self.run("SHOW CONFIG")
        return next((str(row["value"] or "") for row in rows if row["key"] == name), "")

    def read_alias(self, alias: str) -> AliasState | None:
        """Return what the instance knows of *alias*, or ``None`` where it does not know it."""
        for row in self.run("SHOW DATABASES"):
            if row["name"] == alias:
                return AliasState(
                    host=_text(row["host"]),
                    port=int(str(row["port"])),
                    database=str(row["database"]),
                    force_user=_text(row["force_user"]),
                    pool_mode=_text(row["pool_mode"]) or self.read_setting("pool_mode"),
                    min_pool_size=int(str(row.get("min_pool_size") or 0)),
                    connections=int(str(row["current_connections"])),
                    paused=bool(int(str(row["paused"]))),
                    disabled=bool(int(str(row["disabled"]))),
                )
        return None

    def is_quiet(self, alias: str) -> bool:
        """
        Tell whether *alias* is paused and has no connection to its server.

        PAUSE answers only when all paused databases of the instance are quiet, so the answer
        for one tenant may wait for a client of another.
        """
        state = self.read_alias(alias)
        return state is not None and state.paused and state.connections == 0

    def read_users(self, alias: str) -> set[str]:
        """
        Return the roles that connected clients of *alias* work as on the server.

        A client keeps that role for as long as it is connected, with one exception: where the
        alias has a user of its own, a new user takes its place for all.
        """
        return {
            str(row["user"])
            for row in self.run("SHOW POOLS")
            if row["database"] == alias and (row["cl_active"] or row["cl_waiting"])
        }

    def describe_clients(self, alias: str) -> list[str]:
        """Describe the clients of *alias* that are in a transaction."""
        return [
            f'client {row["addr"]}:{row["port"]} of user "{row["user"]}"'
            f' ("{row.get("application_name", "")}")'
            for row in self.run("SHOW CLIENTS")
            if row["database"] == alias and row["link"]
        ]

    def resume(self, alias: str) -> None:
        """
        Let the clients of *alias* go on; an alias that is not paused stays so.

        :raises TransientError: if it is still paused after that.
        """
        try:
            self.run(f"RESUME {quote_alias(alias)}")
        except TransientError:
            # It is an error to resume what is not paused; the text is not a contract.
            state = self.read_alias(alias)
            if state is None or state.paused:
                raise

    def abandon(self) -> None:
        """End the session, also in the middle of a command. A pause in force stays in force."""
        # close() of a connection that another thread waits on would wait for it.
        with (
            suppress(OSError, psycopg2.Error),
            socket.socket(fileno=os.dup(self._connection.fileno())) as twin,
        ):
            twin.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End the session and its thread."""
        self.abandon()
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._connection.close()

    def _execute(self, command: str) -> list[Row]:
        try:
            with self._connection.cursor() as cursor:
                cursor.execute(command)
                if cursor.description is None:
                    return []
                names = [column.name for column in cursor.description]
                return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
        except psycopg2.Error as error:
            raise TransientError(
                f'PgBouncer instance "{self.name}" could not run "{command}"',
                detail=" ".join(str(error).split()),
            ) from None


@contextmanager
def open_console(name: str, admin: ConnectionParams, *, purpose: str) -> Iterator[Console]:
    """
    Open a session with the admin console of one instance.

    :param name: of the instance, for messages.
    :raises TransientError: if it could not be reached.
    :raises PermanentError: if it refuses the login.
    """
    options = {"connect_timeout": str(_CONNECT_TIMEOUT_SECONDS), **admin.options}
    try:
        opened = open_admin_console(replace(admin, options=options), purpose=purpose)
    except TransientError as error:
        raise TransientError(
            f'PgBouncer instance "{name}" could not be reached',
            detail=error.detail,
            hint="Start it, or take it out of the router's instances if it is gone for good.",
        ) from None
    console = Console(name, opened)
    try:
        yield console
    finally:
        console.close()


def quote_alias(alias: str) -> str:
    """Quote a database's name as the console reads it."""
    return '"{}"'.format(alias.replace('"', '""'))


def _text(value: object) -> str | None:
    return None if value is None or value == "" else str(value)
