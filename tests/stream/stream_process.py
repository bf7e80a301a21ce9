"""Run one stream in a process of its own, to be killed or measured: parameters on stdin."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from uuid import UUID

from tenantferry.connections import ConnectionParams, open_connection
from tenantferry.fleet import Source, Tenant
from tenantferry.schema.catalog import read_tables
from tenantferry.stream.running import run_stream

given = json.load(sys.stdin)
source_params = ConnectionParams(**given["source"])
target_params = ConnectionParams(**given["target"])
tenant = Tenant(key=given["key"], id=UUID(given["id"]), source=Source(conn_id="x"))
with open_connection(source_params, purpose="tables") as source:
    tables = read_tables(source, tenant)
source.close()


def peak_kilobytes() -> int:
    """Most memory this process ever had; unlike ru_maxrss not that of its parent."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


before = peak_kilobytes()
result = run_stream(
    source_params,
    target_params,
    tenant,
    tables,
    stop=threading.Event(),
    batch_bytes=given["batch_bytes"],
)
sys.stdout.write(
    json.dumps({"changes": result.changes, "added_kilobytes": peak_kilobytes() - before})
)
