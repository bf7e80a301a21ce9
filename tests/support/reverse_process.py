"""Run the reverse streams in a process of their own, to be killed: parameters on stdin."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any
from uuid import UUID

from tenantferry.connections import ConnectionParams
from tenantferry.fleet import Source, Tenant
from tenantferry.reverse.board import Board
from tenantferry.reverse.lane import Lane
from tenantferry.reverse.positions import SourceProgress
from tenantferry.reverse.running import LaneSource, run_reverse
from tenantferry.stream.walsender import Walsender

STEPS = {kind.__name__: kind for kind in (Board, Lane, SourceProgress, Walsender)}

given = json.load(sys.stdin)
sources = {
    key: LaneSource(
        Tenant(key=key, id=UUID(source["id"]), source=Source(conn_id=key)),
        ConnectionParams(**source["params"]),
    )
    for key, source in given["sources"].items()
}


def peak_kilobytes() -> int:
    """Most memory this process ever had; unlike ru_maxrss not that of its parent."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def die_after(owner: type, name: str, calls: int) -> None:
    """Let so many calls of a method be the last that this process does."""
    real, left = getattr(owner, name), itertools.count(calls - 1, -1)

    def call(*arguments: Any, **named: Any) -> Any:
        found = real(*arguments, **named)
        if next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    setattr(owner, name, call)


if given["fatal"]:
    owner, name, calls = given["fatal"]
    die_after(STEPS[owner], name, calls)
before = peak_kilobytes()
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
result = run_reverse(
    ConnectionParams(**given["target"]),
    sources.__getitem__,
    stop=stop,
    wal_budget_bytes=1 << 40,
    memory_bytes=given["memory_bytes"],
)
sys.stdout.write(json.dumps({"added_kilobytes": peak_kilobytes() - before}))
