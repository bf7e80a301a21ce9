"""
The processes that a local fleet started, on disk, so that another command can stop them.

A process is known by its id *and* the moment it began: an id that meanwhile belongs to somebody
else's process is left alone. Nothing is ever searched by name.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import IntEnum
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # comes without types; Airflow depends on it

from tenantferry.errors import TransientError

# A server writes a checkpoint. What else runs has nothing to lose: its servers are stopped, too.
_PATIENCE_SECONDS = 5.0
_SERVER_PATIENCE_SECONDS = 60.0


class Role(IntEnum):
    """What a process is; also the order of stopping: who needs another stops before it."""

    SESSION = 0  # a leader and everything that it started: Airflow, a client
    POOLER = 1
    SERVER = 2


# A "fast" shutdown of PostgreSQL; an immediate one of PgBouncer.
_SIGNALS = {
    Role.SESSION: signal.SIGTERM,
    Role.POOLER: signal.SIGTERM,
    Role.SERVER: signal.SIGINT,
}


@dataclass(frozen=True, slots=True)
class Recorded:
    """
    One process.

    :ivar created: seconds since 1970, as the kernel has it.
    """

    name: str
    role: Role
    pid: int
    created: float


class Ledger:
    """
    The file of one local fleet. Threads and processes may use it at the same time.

    :param path: made by the first record.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def record(self, name: str, role: Role, pid: int) -> None:
        """Remember a process that was just started; one that ended already is not worth it."""
        try:
            created = psutil.Process(pid).create_time()
        except psutil.NoSuchProcess:
            return
        with self._changing():
            self._write([*self.read(), Recorded(name, role, pid, created)])

    def read(self) -> list[Recorded]:
        """Return what was recorded and not yet stopped."""
        try:
            entries = json.loads(self._path.read_text("utf-8"))
        except FileNotFoundError:
            return []
        return [
            Recorded(entry["name"], Role(entry["role"]), entry["pid"], entry["created"])
            for entry in entries
        ]

    def stop_all(self) -> list[str]:
        """
        Stop what still runs, and forget it.

        :return: the names of what was running.
        :raises TransientError: if a process does not even end when it is killed.
        """
        stopped = []
        for role in Role:
            recorded = [entry for entry in self.read() if entry.role is role]
            running = [entry for entry in recorded if find_processes(entry)]
            patience = _SERVER_PATIENCE_SECONDS if role is Role.SERVER else _PATIENCE_SECONDS
            _stop(running, _SIGNALS[role], patience_seconds=patience)
            stopped += [entry.name for entry in running]
            self._forget(recorded)
        return stopped

    def _forget(self, stopped: Sequence[Recorded]) -> None:
        with self._changing():
            if left := [entry for entry in self.read() if entry not in stopped]:
                self._write(left)
            else:
                self._path.unlink(missing_ok=True)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Let nobody else change it meanwhile."""
        directory = self._path.parent
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _write(self, entries: Iterable[Recorded]) -> None:
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps([asdict(entry) for entry in entries], indent=1), "utf-8")
        partial.replace(self._path)


def find_processes(entry: Recorded) -> list[psutil.Process]:
    """Return what is left of a recorded process; for a session, of all that is in it."""
    try:
        leader = psutil.Process(entry.pid)
        if leader.create_time() != entry.created:
            return []
    except psutil.NoSuchProcess:
        leader = None
    if entry.role is not Role.SESSION:
        return [leader] if leader is not None and _is_alive(leader) else []
    # While one member is left, the kernel gives the session's id to nobody else.
    return [p for p in psutil.process_iter() if _session_of(p) == entry.pid and _is_alive(p)]


def _stop(entries: Sequence[Recorded], number: signal.Signals, *, patience_seconds: float) -> None:
    for last_resort in (number, signal.SIGKILL):
        processes = [process for entry in entries for process in find_processes(entry)]
        for process in processes:
            try:
                process.send_signal(last_resort)
            except psutil.NoSuchProcess:
                continue  # it ended by itself meanwhile
        psutil.wait_procs(processes, timeout=patience_seconds)
    if left := [entry.name for entry in entries if find_processes(entry)]:
        raise TransientError("could not stop every process", detail=f"Still there: {left}.")


def _session_of(process: psutil.Process) -> int | None:
    try:
        return os.getsid(process.pid)
    except (ProcessLookupError, PermissionError):
        return None


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
