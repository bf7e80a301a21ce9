"""Run the reverse streams in a process of their own, to be killed: parameters on stdin."""

from __future__ import annotations

import json
import signal
import sys
import threading
from pathlib import Path
from uuid import UUID

from tenantferry.connections import ConnectionParams
from tenantferry.fleet import Source, Tenant
from tenantferry.reverse.running import LaneSource, run_reverse

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
