from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from tenantferry.local.ledger import Ledger, Role


def _spawn(code: str = "import time; time.sleep(600)") -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", code], start_new_session=True, stdout=subprocess.PIPE
    )


def test_stop_all_ends_a_session_with_all_that_it_started(tmp_path: Path) -> None:
    # The child has a process group of its own, as Airflow's tasks have.
    leader = _spawn(
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'],"
        " process_group=0)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)"
    )
    assert leader.stdout is not None
    child = int(leader.stdout.readline())
    ledger = Ledger(tmp_path / "fleet.json")
    ledger.record("leader", Role.SESSION, leader.pid)

    stopped = Ledger(tmp_path / "fleet.json").stop_all()

    assert stopped == ["leader"]
    assert not psutil.pid_exists(child)
    assert not psutil.pid_exists(leader.pid)
    assert ledger.read() == []


def test_stop_all_ends_the_children_of_a_leader_that_died(tmp_path: Path) -> None:
    leader = _spawn(
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)"
    )
    assert leader.stdout is not None
    child = psutil.Process(int(leader.stdout.readline()))
    ledger = Ledger(tmp_path / "fleet.json")
    ledger.record("leader", Role.SESSION, leader.pid)
    leader.kill()
    leader.wait(5)

    ledger.stop_all()

    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_stop_all_spares_a_process_that_got_the_same_id_later(tmp_path: Path) -> None:
    path = tmp_path / "fleet.json"
    stranger = _spawn()
    try:
        ledger = Ledger(path)
        ledger.record("PostgreSQL", Role.SERVER, stranger.pid)
        entries = json.loads(path.read_text("utf-8"))
        entries[0]["created"] -= 3600
        path.write_text(json.dumps(entries), "utf-8")

        stopped = ledger.stop_all()

        assert stopped == []
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait(5)


def test_stop_all_stops_servers_after_those_who_need_them(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "fleet.json")
    processes = {name: _spawn() for name in ("pooler", "client")}
    # A server ends by SIGINT, which whoever runs the tests may have told processes to ignore.
    processes["server"] = _spawn(
        "import signal, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "print('ready', flush=True)\n"
        "time.sleep(600)"
    )
    assert processes["server"].stdout is not None
    processes["server"].stdout.readline()
    roles = {"server": Role.SERVER, "pooler": Role.POOLER, "client": Role.SESSION}
    for name, process in processes.items():
        ledger.record(name, roles[name], process.pid)

    stopped = ledger.stop_all()

    assert stopped == ["client", "pooler", "server"]
    for process in processes.values():
        process.wait(5)


def test_stop_all_may_run_when_nothing_was_started(tmp_path: Path) -> None:
    began = time.monotonic()

    assert Ledger(tmp_path / "fleet.json").stop_all() == []
    assert time.monotonic() - began < 5


def test_what_is_recorded_at_the_same_time_is_all_kept(tmp_path: Path) -> None:
    # A fleet starts its clients and its Airflow side by side.
    path = tmp_path / "fleet.json"
    names = [f"{thread} {number}" for thread in range(4) for number in range(25)]
    here = os.getpid()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda name: Ledger(path).record(name, Role.SESSION, here), names))

    assert sorted(entry.name for entry in Ledger(path).read()) == sorted(names)
