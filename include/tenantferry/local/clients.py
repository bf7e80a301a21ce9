"""Start and stop the applications of a demo."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tenantferry.connections import ConnectionParams
from tenantferry.errors import PermanentError, TransientError
from tenantferry.local.client import JOURNAL_NAME, SUMMARY_NAME
from tenantferry.local.measurements import Summary, read_summary

_RECHECK_SECONDS = 0.1
# It finishes the requests in hand, one of which may wait in a paused pooler.
_STOP_TIMEOUT_SECONDS = 90.0


class ClientProcess:
    """
    One application in a process of its own.

    :param params: how it connects; it is told nothing else.
    :param directory: takes journal, summary and log.
    :param rate: transactions a second.
    :param generic: the schema is not the sample's.
    """

    def __init__(
        self,
        name: str,
        params: ConnectionParams,
        directory: Path,
        *,
        rate: float,
        generic: bool = False,
    ) -> None:
        self.name = name
        self.journal = directory / JOURNAL_NAME
        self._summary = directory / SUMMARY_NAME
        self._log = directory / "client.log"
        self._params = params
        self._arguments = ["--directory", str(directory), "--rate", str(rate)]
        if generic:
            self._arguments.append("--generic")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> int:
        """Start it and return its process id, the leader of a session."""
        self.journal.parent.mkdir(parents=True, exist_ok=True)
        self.journal.touch()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tenantferry.local.client", *self._arguments],
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self._process.pid

    def summary(self) -> Summary | None:
        """Return its last account of itself, at most about a second old."""
        return read_summary(self._summary)

    @property
    def requests(self) -> int:
        """How many requests it has sent."""
        summary = self.summary()
        return summary.requests if summary is not None else 0

    def check(self) -> None:
        """
        See that it still runs.

        :raises PermanentError: if it ended by itself.
        """
        if self._process is None or self._process.poll() is not None:
            raise PermanentError(
                f'the client "{self.name}" ended by itself', detail=self._tail(), hint=self._hint()
            )

    def wait_for_requests(self, wanted: int, *, timeout_seconds: float) -> None:
        """
        Wait until it has sent *wanted* requests in all.

        :raises TransientError: if it has not in time.
        :raises PermanentError: if it ended by itself.
        """
        deadline = time.monotonic() + timeout_seconds
        while self.requests < wanted:
            self.check()
            if time.monotonic() > deadline:
                raise TransientError(
                    f'the client "{self.name}" makes no progress',
                    detail=f"It sent {self.requests} requests; {wanted} were expected.",
                    hint=self._hint(),
                )
            time.sleep(_RECHECK_SECONDS)  # its summary can only be read, it does not tell

    def ask_to_stop(self) -> None:
        """Ask it to finish; `wait` gets its last words."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)

    def wait(self) -> Summary:
        """
        Wait for its end and return its last account.

        :raises PermanentError: if it did not end well.
        """
        status = None
        if self._process is not None:
            status = self._process.wait(_STOP_TIMEOUT_SECONDS)
        summary = self.summary()
        if status != 0 or summary is None or not summary.finished:
            raise PermanentError(
                f'the client "{self.name}" did not end well', detail=self._tail(), hint=self._hint()
            )
        return summary

    def _environment(self) -> dict[str, str]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("PG")}
        return {
            **inherited,
            "PGHOST": self._params.host,
            "PGPORT": str(self._params.port),
            "PGUSER": self._params.user,
            "PGPASSWORD": self._params.password,
            "PGDATABASE": self._params.database,
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }

    def _tail(self) -> str:
        lines = self._log.read_text("utf-8", "replace").splitlines() if self._log.exists() else []
        return "\n".join(lines[-10:])

    def _hint(self) -> str:
        return f'See "{self._log}".'


def stop_clients(clients: Sequence[ClientProcess]) -> list[Summary]:
    """Stop all at once, and return their last accounts in the same order."""
    for client in clients:
        client.ask_to_stop()
    return [client.wait() for client in clients]
