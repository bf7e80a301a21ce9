from __future__ import annotations

import signal
import subprocess
import sys

import psutil  # type: ignore[import-untyped]  # comes without types
import pytest

from tenantferry.local.processes import end_sessions, kill_sessions

# A leader and its child, in a process group of its own as an Airflow task is.
_CHILD = "import signal, time; {ignore}; print('ready', flush=True); time.sleep(600)"
_LEADER = (
    "import subprocess, sys, time\n"
    "child = subprocess.Popen([sys.executable, '-c', {child!r}], process_group=0)\n"
    "print(child.pid, flush=True)\n"
    "time.sleep(600)\n"
)
_IGNORE = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"


def start_family(*, stubborn: bool) -> tuple[subprocess.Popen[bytes], int]:
    """Start a leader with one child, and wait until the child is set up."""
    child = _CHILD.format(ignore=_IGNORE if stubborn else "pass")
    leader = subprocess.Popen(
        [sys.executable, "-c", _LEADER.format(child=child)],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert leader.stdout is not None
    lines = {leader.stdout.readline().strip(), leader.stdout.readline().strip()}
    (pid,) = (int(line) for line in lines if line.isdigit())
    return leader, pid


@pytest.mark.parametrize("stubborn", [False, True], ids=["obedient", "stubborn"])
def test_gotcha_46_end_sessions_ends_what_a_leader_started_too(stubborn: bool) -> None:
    leader, child = start_family(stubborn=stubborn)

    end_sessions([leader], timeout_seconds=2)

    assert leader.poll() is not None
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == "zombie"


def test_kill_sessions_says_no_farewell() -> None:
    leader, child = start_family(stubborn=True)

    kill_sessions([leader])

    assert leader.poll() == -signal.SIGKILL
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == "zombie"


def test_gotcha_46_ending_a_leader_alone_leaves_its_children() -> None:
    leader, child = start_family(stubborn=False)

    leader.terminate()
    leader.wait(10)

    assert psutil.Process(child).is_running()
    end_sessions([leader], timeout_seconds=2)
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == "zombie"
