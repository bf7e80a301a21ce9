from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

from psycopg2.extensions import connection

from tenantferry.connections import ConnectionParams

COPY_AND_MEASURE = """
import json, resource, sys, threading
from psycopg2 import sql
from tenantferry.backfill.pipe import copy_between
from tenantferry.connections import ConnectionParams, open_connection

source, target = (
    open_connection(ConnectionParams(**params), purpose="test") for params in json.load(sys.stdin)
)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before, sizes = peak(), [0]

def count(size):
    sizes[0] += size

copy_between(
    source,
    target,
    copy_out=sql.SQL("COPY public.items TO STDOUT (FORMAT binary)").format(),
    copy_in=sql.SQL("COPY public.items (id, pad) FROM STDIN (FORMAT binary)").format(),
    stop=threading.Event(),
    is_refused=lambda: False,
    count_bytes=count,
)
target.rollback()
print(json.dumps({"bytes": sizes[0], "grown_kilobytes": peak() - before}))
"""


def test_copy_between_needs_no_more_memory_for_more_rows(
    *,
    source_params: ConnectionParams,
    target_params: ConnectionParams,
    source_owner: connection,
    target: connection,
) -> None:
    with source_owner.cursor() as cursor:
        cursor.execute("CREATE TABLE items (id bigint, pad text)")
        cursor.execute(
            "INSERT INTO items SELECT n, repeat('x', 1000000) FROM generate_series(1, 100) n"
        )
        cursor.execute("INSERT INTO items SELECT n, 'x' FROM generate_series(1, 100000) n")
    with target.cursor() as cursor:
        cursor.execute("CREATE TABLE public.items (id bigint, pad text)")

    process = subprocess.run(
        [sys.executable, "-c", COPY_AND_MEASURE],
        input=json.dumps([dataclasses.asdict(params) for params in (source_params, target_params)]),
        env={"PYTHONPATH": str(Path(__file__).parents[2] / "include")},
        capture_output=True,
        text=True,
        check=False,
    )

    assert process.returncode == 0, process.stderr
    measured = json.loads(process.stdout)
    assert measured["bytes"] > 100_000_000
    assert measured["grown_kilobytes"] < 24_000
