"""
What a tenant more in grace costs: the time to read the same log for 1 and for 50 of them.

``PYTHONPATH=include python benchmarks/reverse_decoding.py`` starts a server of its own, lets 50
tenants write, and reads what they wrote three times: for one of them, for all of them, and as
often as one slot for each would have the server do it. No source takes part: every lane holds, so
that only reading, decoding and routing are measured.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import tempfile
import threading
import time
from contextlib import closing
from importlib import resources
from pathlib import Path
from uuid import UUID

from psycopg2.extensions import connection

from tenantferry.connections import ConnectionParams, open_connection
from tenantferry.control.direction import Direction
from tenantferry.control.graces import REVERSE_SLOT, begin_grace
from tenantferry.control.registry import ensure_control_schema, ensure_registered
from tenantferry.control.streams import StreamCommand, command
from tenantferry.errors import PermanentError
from tenantferry.local.accounts import servers_directory
from tenantferry.local.postgres import PostgresServer, choose_installation
from tenantferry.reverse.marker import emit_grace
from tenantferry.reverse.running import LaneSource, run_reverse
from tenantferry.reverse.slot import ensure_reverse
from tenantferry.schema.isolation import ensure_isolation
from tenantferry.stream.handshake import wait_for_position
from tenantferry.stream.marker import write_marker

TENANTS = 50
IDLE_TENANT = "watcher"
_IS_IDLE = "SELECT active_pid IS NULL FROM pg_replication_slots WHERE slot_name = %s"
_TABLE = """
CREATE TABLE public.orders (
    id integer, customer text, amount numeric, placed_at timestamptz DEFAULT now(), note text,
    tenant_id uuid NOT NULL, PRIMARY KEY (tenant_id, id));
ALTER TABLE public.orders ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant_isolation ON public.orders
    USING (tenant_id = (SELECT app.current_tenant()))
"""
_WRITE = """
INSERT INTO public.orders (id, customer, amount, note, tenant_id)
SELECT number, 'customer ' || number, number * 1.25, repeat('note ', 8), %s
FROM generate_series(%s, %s) AS number
"""
_DECODE = """
SELECT count(*) FROM pg_logical_slot_peek_binary_changes(
    %s, NULL, NULL, 'proto_version', '1', 'publication_names', %s, 'messages', 'true')
"""


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().partition("\n")[0])
    parser.add_argument("--transactions", type=int, default=20_000)
    parser.add_argument("--rows", type=int, default=5, help="of each transaction")
    arguments = parser.parse_args()
    # A lane that is told to hold looks for its source, which is not there.
    logging.disable(logging.WARNING)
    base = servers_directory(Path(tempfile.mkdtemp(prefix="tenantferry-benchmark-")))
    server = PostgresServer(
        base / "target", choose_installation(), settings={"fsync": "off", "autovacuum": "off"}
    )
    try:
        server.start()
        params = _make_target(server)
        with closing(open_connection(params, purpose="benchmark", autocommit=True)) as target:
            _measure(params, target, arguments.transactions, arguments.rows)
    finally:
        server.stop("immediate")
        shutil.rmtree(base, ignore_errors=True)


def _measure(params: ConnectionParams, target: connection, transactions: int, rows: int) -> None:
    _go_live(params, target)
    end = _write(target, transactions, rows)
    changes = transactions * rows
    print(f"{changes} changes of {TENANTS} tenants in {transactions} transactions")
    print(f"{'slots':>6} {'tenants in grace':>17} {'seconds':>8} {'changes/s':>10}")
    for tenants in (1, TENANTS):
        _keep_graces(target, tenants)
        seconds = _read(params, target, end)
        print(f"{1:>6} {tenants:>17} {seconds:>8.2f} {changes / seconds:>10.0f}")
    began = time.monotonic()
    _execute(target, _DECODE, REVERSE_SLOT, REVERSE_SLOT)
    seconds = time.monotonic() - began
    print(f"decoding by the server alone: {seconds:.2f} s for each slot,", end=" ")
    print(f"{seconds * TENANTS:.1f} s for a slot of each of {TENANTS} tenants")


def _make_target(server: PostgresServer) -> ConnectionParams:
    password = "benchmark"  # noqa: S105  # of a server that only this process reaches
    server.psql("-c", f"CREATE ROLE tenantferry LOGIN PASSWORD '{password}'")
    script = resources.files("tenantferry.schema").joinpath("target_privileges.sql")
    with resources.as_file(script) as path:
        server.psql(f"--file={path}")
    superuser = server.superuser
    params = ConnectionParams(
        superuser.host, superuser.port, "tenantferry", superuser.database, password
    )
    with closing(open_connection(params, purpose="benchmark")) as target, target:
        ensure_control_schema(target)
        ensure_isolation(target)
        _execute(target, _TABLE)
    return params


def _go_live(params: ConnectionParams, target: connection) -> None:
    ids = {_key(number): _tenant_id(number) for number in range(TENANTS)}
    ids[IDLE_TENANT] = _tenant_id(TENANTS)
    for key, tenant_id in ids.items():
        ensure_registered(target, tenant=key, tenant_id=tenant_id, source_identity=key, run_id=None)
    ensure_reverse(params)
    target.autocommit = False
    for key in ids:
        with target:
            [(attempt,)] = _execute(
                target,
                "INSERT INTO tenantferry.write_pauses (tenant, deadline, resumed_at)"
                " VALUES (%s, now(), now()) RETURNING id",
                key,
            )
            lsn = emit_grace(target, key)
            begin_grace(target, key, attempt=attempt, start_lsn=lsn, hours=1)
            if key != IDLE_TENANT:
                command(
                    target,
                    key,
                    StreamCommand.HOLD,
                    lease_seconds=86_400,
                    direction=Direction.REVERSE,
                )
    target.autocommit = True


def _write(target: connection, transactions: int, rows: int) -> int:
    """Let the tenants write in turn; return the LSN after it."""
    _execute(target, "SET synchronous_commit = off")
    for step in range(transactions):
        first = step * rows
        _execute(target, _WRITE, str(_tenant_id(step % TENANTS)), first, first + rows - 1)
    _execute(target, "SET synchronous_commit = on")
    return write_marker(target, "* end")


def _keep_graces(target: connection, tenants: int) -> None:
    _execute(
        target,
        "UPDATE tenantferry.graces SET ended_at = CASE WHEN tenant < %s OR tenant = %s"
        " THEN NULL::timestamptz ELSE now() END",
        _key(tenants),
        IDLE_TENANT,
    )


def _read(params: ConnectionParams, target: connection, end: int) -> float:
    """Return how long it takes to have routed all that was written."""
    # What the former reading has reported of it.
    _execute(target, "UPDATE tenantferry.streams SET position = '0/0'")
    stop = threading.Event()
    reader = threading.Thread(
        target=run_reverse,
        args=(params, _no_source),
        kwargs={"stop": stop, "wal_budget_bytes": 1 << 50},
    )
    began = time.monotonic()
    reader.start()
    # Nothing is routed to this tenant: it stands where reading stands.
    wait_for_position(params, IDLE_TENANT, end, timeout_seconds=3600, direction=Direction.REVERSE)
    seconds = time.monotonic() - began
    stop.set()
    reader.join()
    while _execute(target, _IS_IDLE, REVERSE_SLOT) != [(True,)]:
        time.sleep(0.02)  # the end of a session can only be asked for
    return seconds


def _no_source(tenant: str) -> LaneSource:
    raise PermanentError(f'tenant "{tenant}" has no source here')


def _key(number: int) -> str:
    return f"tenant_{number:03}"


def _tenant_id(number: int) -> UUID:
    return UUID(int=number + 1)


def _execute(session: connection, statement: str, *values: object) -> list[tuple[int, ...]]:
    with session.cursor() as cursor:
        cursor.execute(statement, values or None)
        return cursor.fetchall() if cursor.description else []


if __name__ == "__main__":
    main()
