"""End a process with everything that it started."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence

import psutil  # type: ignore[import-untyped]  # comes without types; Airflow depends on it

from tenantferry.errors import TransientError

_KILL_TIMEOUT_SECONDS = 10.0


def end_sessions(leaders: Sequence[subprocess.Popen[bytes]], *, timeout_seconds: float) -> None:
    """
    End all processes of sessions that *leaders* were started in, and wait for the last one.

    Each leader was started with ``start_new_session=True``. Ending a leader alone leaves its
    children running. A process that made a session of its own is not ours to end.

    :param timeout_seconds: what is left after it is killed.
    :raises TransientError: if even that does not end it.
    """
    # Airflow's components take a second signal as: do not wait any longer.
    steps = (
        (signal.SIGTERM, timeout_seconds / 2),
        (signal.SIGTERM, timeout_seconds / 2),
        (signal.SIGKILL, timeout_seconds),
    )
    _end(leaders, steps)


def kill_sessions(leaders: Sequence[subprocess.Popen[bytes]]) -> None:
    """
    End all processes of sessions that *leaders* were started in, without any farewell.

    :raises TransientError: if even that does not end one.
    """
    _end(leaders, ((signal.SIGKILL, _KILL_TIMEOUT_SECONDS),))


def _end(
    leaders: Sequence[subprocess.Popen[bytes]], steps: Sequence[tuple[signal.Signals, float]]
) -> None:
    sessions = {leader.pid for leader in leaders}
    for leader in leaders:
        leader.poll()
    for number, patience_seconds in steps:
        _signal_all(sessions, number)
        if _wait_until_gone(leaders, sessions, patience_seconds):
            return
    raise TransientError(
        "could not end all processes", detail=f"Still there: {_members(sessions)}."
    )


def _wait_until_gone(
    leaders: Sequence[subprocess.Popen[bytes]], sessions: set[int], timeout_seconds: float
) -> bool:
    deadline = time.monotonic() + timeout_seconds
    while _members(sessions):
        for leader in leaders:
            leader.poll()  # a leader that nobody waits for stays as a zombie
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)  # the system tells the end of children only, not of their children
    return True


def _members(sessions: set[int]) -> list[int]:
    return [pid for pid in psutil.pids() if _session_of(pid) in sessions and _is_alive(pid)]


def _session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


def _is_alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _signal_all(sessions: set[int], number: signal.Signals) -> None:
    for pid in _members(sessions):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue  # it ended by itself meanwhile
