"""Tenants that are live in a target, each with a fenced source; runs of the reverse streams."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from importlib import resources
from itertools import count
from pathlib import Path
from typing import Any
from uuid import UUID

from psycopg2 import sql
from psycopg2.extensions import connection

from slots import drop_slots
from stream_thread import StreamThread
from tenantferry.connections import ConnectionParams, open_connection
from tenantferry.control.direction import Direction
from tenantferry.control.graces import (
    REVERSE_SLOT,
    Grace,
    GraceEnd,
    begin_grace,
    end_grace,
    read_grace,
)
from tenantferry.control.registry import ensure_registered
from tenantferry.control.reverse_slot import ReverseSlot, read_reverse_slot
from tenantferry.control.streams import StreamRecord, require_stream
from tenantferry.errors import PermanentError
from tenantferry.fleet import Source, Tenant
from tenantferry.local.postgres import PostgresServer
from tenantferry.reverse.marker import emit_grace, emit_grace_over
from tenantferry.reverse.running import LaneSource, ReverseResult, run_reverse
from tenantferry.reverse.slot import ensure_reverse
from tenantferry.schema.isolation import ensure_isolation
from tenantferry.schema.roles import ensure_tenant_role
from tenantferry.stream.marker import emit_marker
from tenantferry.traffic.fence import plan_fence, raise_fence

_IDS = {
    "acme": UUID("11111111-1111-1111-1111-111111111111"),
    "globex": UUID("22222222-2222-2222-2222-222222222222"),
    "initech": UUID("33333333-3333-3333-3333-333333333333"),
}
_PROTECT = """
ALTER TABLE public.{table} ENABLE ROW LEVEL SECURITY;
ALTER TABLE public.{table} FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant_isolation ON public.{table}
    USING (tenant_id = (SELECT app.current_tenant()))
    WITH CHECK (tenant_id = (SELECT app.current_tenant()));
GRANT SELECT, INSERT, UPDATE, DELETE ON public.{table} TO tenantferry_app
"""
_numbers = count(1)


def execute(session: connection, statement: str, *values: Any) -> list[tuple[Any, ...]]:
    """Run one statement and return its rows."""
    with session.cursor() as cursor:
        cursor.execute(statement, values or None)
        return cursor.fetchall() if cursor.description else []


def wait_until(condition: Callable[[], bool], *, timeout: float = 20) -> None:
    """Wait for something that can only be asked for."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        threading.Event().wait(0.02)


@dataclass
class Side:
    """
    One tenant: its source, and its clients in the target.

    :ivar client: the target as the tenant's own role.
    """

    tenant: Tenant
    params: ConnectionParams
    source: connection
    owner: connection
    client: connection
    is_reachable: bool = True

    def rows(self, name: str) -> list[str]:
        """Return the rows of the source, as text."""
        return self._rows(self.source, name)

    def target_rows(self, name: str) -> list[str]:
        """Return the tenant's rows in the target, as text."""
        return self._rows(self.client, name)

    def write(self, *statements: str) -> None:
        """Run statements in the target as the tenant, each in its own transaction."""
        for statement in statements:
            execute(self.client, statement)

    def _rows(self, session: connection, name: str) -> list[str]:
        found = execute(
            self.source,
            "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0"
            " AND NOT attisdropped ORDER BY attnum",
            f"public.{name}",
        )
        names = sql.SQL(", ").join(sql.Identifier(column) for (column,) in found)
        query = sql.SQL("SELECT ROW({})::text FROM public.{}").format(names, sql.Identifier(name))
        return sorted(row[0] for row in execute(session, query.as_string(session)))


class Following(StreamThread[ReverseResult]):
    """One run of the reverse streams."""

    def __init__(self, way: Way, **options: Any) -> None:
        super().__init__()
        self.way = way
        self._options = {"wal_budget_bytes": 1 << 40, **options}

    def call(self) -> ReverseResult:
        """Follow the target until told to stop."""
        way = self.way
        return run_reverse(way.target_params, way.find_source, stop=self.stop, **self._options)

    def catch_up(self, *keys: str, timeout: float = 20) -> None:
        """Wait until everything that was committed so far is applied, for some or all tenants."""
        way = self.way
        for key in keys or way.sides:
            lsn = emit_marker(way.target, way.sides[key].tenant)
            self.wait_for(way.target_params, key, lsn, direction=Direction.REVERSE, timeout=timeout)


@dataclass
class Way:
    """A target, and tenants that may go back from it."""

    target_params: ConnectionParams
    target: connection
    source_server: PostgresServer
    stack: ExitStack
    sides: dict[str, Side] = field(default_factory=dict)

    execute = staticmethod(execute)

    def __getitem__(self, key: str) -> Side:
        return self.sides[key]

    def add(self, key: str) -> Side:
        """Register a tenant with an empty source."""
        name = f"grace_{key}_{next(_numbers)}"
        server = self.source_server
        server.psql("-c", f"CREATE DATABASE {name} OWNER app_owner")
        self.stack.callback(server.psql, "-c", f"DROP DATABASE {name} WITH (FORCE)")
        script = resources.files("tenantferry.schema").joinpath("source_privileges.sql")
        with resources.as_file(script) as path:
            server.psql("--set=owner=app_owner", f"--file={path}", database=name)
        superuser = server.superuser
        params = ConnectionParams(
            superuser.host, superuser.port, "tenantferry", name, self.target_params.password
        )
        tenant = Tenant(key=key, id=_IDS[key], source=Source(conn_id=key))
        ensure_registered(
            self.target, tenant=key, tenant_id=tenant.id, source_identity=f"1/{name}", run_id=None
        )
        self.target.autocommit = False
        with self.target:
            ensure_tenant_role(self.target, tenant)
        self.target.autocommit = True
        client = self._open(self.target_params)
        execute(
            client,
            f"SET row_security = on; SET ROLE {tenant.role};"
            f" SET search_path = {tenant.schema_name}, public",
        )
        owner = self._open(params)
        execute(owner, "SET ROLE app_owner; SET search_path = public")
        side = Side(tenant, params, self._open(params), owner, client)
        self.sides[key] = side
        return side

    def _open(self, params: ConnectionParams) -> connection:
        opened = open_connection(
            params, purpose="test", autocommit=True, settings={"extra_float_digits": "1"}
        )
        return self.stack.enter_context(closing(opened))

    def table(
        self, name: str, columns: str, *, key: str = "id", source: str = "", target: str = ""
    ) -> None:
        """
        Create one table in the target and in every source.

        :param source: statements that run on the sources only, e.g. a unique index.
        :param target: the same of the target.
        """
        narrow = f", PRIMARY KEY ({key})" if key else ""
        wide = f", PRIMARY KEY (tenant_id, {key})" if key else ""
        for side in self.sides.values():
            execute(side.owner, f"CREATE TABLE public.{name} ({columns}{narrow}); {source}")
        execute(self.target, "SET search_path = public")
        execute(
            self.target,
            f"CREATE TABLE public.{name} ({columns},"
            f" tenant_id uuid NOT NULL DEFAULT app.current_tenant(){wide}); {target}",
        )
        execute(self.target, "SET search_path = pg_catalog")
        self.protect(name)

    def protect(self, name: str) -> None:
        """Let each tenant see its own rows of a table of the target only."""
        execute(self.target, _PROTECT.format(table=name))

    def ensure(self) -> None:
        """Publish the tables and create the slot, as a cutover does before its pause."""
        ensure_reverse(self.target_params, timeout_seconds=10)

    def go_live(self, *keys: str) -> None:
        """Flip tenants, all where none is named: from then on they write in the target."""
        for key in keys or self.sides:
            side = self.sides[key]
            raise_fence(side.source, plan_fence(side.source), timeout_seconds=5)
            self.begin_grace(key)

    def begin_attempt(self, key: str) -> int:
        """Record an attempt that has come to its end."""
        [(attempt,)] = execute(
            self.target,
            "INSERT INTO tenantferry.write_pauses (tenant, deadline, resumed_at)"
            " VALUES (%s, clock_timestamp(), clock_timestamp()) RETURNING id",
            key,
        )
        return int(attempt)

    def begin_grace(self, key: str, *, attempt: int | None = None) -> int:
        """Commit what a cutover commits about the way back."""
        attempt = attempt or self.begin_attempt(key)
        self.target.autocommit = False
        with self.target:
            lsn = emit_grace(self.target, key)
            grace = begin_grace(self.target, key, attempt=attempt, start_lsn=lsn, hours=1)
        self.target.autocommit = True
        return grace

    def end_grace(self, key: str) -> None:
        """Commit what a rollback commits about it."""
        self.target.autocommit = False
        with self.target:
            emit_grace_over(self.target, key)
            end_grace(self.target, key, why=GraceEnd.ROLLED_BACK)
        self.target.autocommit = True

    def follow(self, **options: Any) -> Following:
        """Return a run of the reverse streams; enter it to start."""
        return Following(self, **options)

    def find_source(self, key: str) -> LaneSource:
        """Look a tenant's source up."""
        side = self.sides[key]
        if not side.is_reachable:
            raise PermanentError(f'the connection of tenant "{key}" is broken')
        return LaneSource(side.tenant, side.params)

    def record(self, key: str) -> StreamRecord:
        """Return the row of one reverse stream."""
        return require_stream(self.target, key, direction=Direction.REVERSE)

    def grace(self, key: str) -> Grace:
        """Return the grace of a tenant."""
        found = read_grace(self.target, key)
        assert found is not None
        return found

    @property
    def slot(self) -> ReverseSlot:
        """The record of the slot."""
        found = read_reverse_slot(self.target)
        assert found is not None
        return found

    def sessions(self, key: str) -> int:
        """Count the sessions of the reverse stream with a source."""
        [(number,)] = execute(
            self.sides[key].source,
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s",
            f"tenantferry reverse {key}",
        )
        return int(number)

    @contextmanager
    def away(self, key: str) -> Iterator[None]:
        """Let a source be out of reach, and end the session that is there."""
        side = self.sides[key]
        side.is_reachable = False
        execute(
            side.source,
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE application_name = %s",
            f"tenantferry reverse {key}",
        )
        try:
            yield
        finally:
            side.is_reachable = True


def start_process(
    way: Way,
    *,
    memory_bytes: int = 1 << 22,
    params: dict[str, ConnectionParams] | None = None,
    fatal: tuple[str, str, int] | None = None,
) -> subprocess.Popen[str]:
    """
    Start the reverse streams in a process of their own.

    :param params: where some sources are believed to be.
    :param fatal: class, method, and number of its calls after which the process kills itself.
    """
    believed = {key: side.params for key, side in way.sides.items()} | (params or {})
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("reverse_process.py"))],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "include")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    given = {
        "target": dataclasses.asdict(way.target_params),
        "sources": {
            key: {"id": str(side.tenant.id), "params": dataclasses.asdict(believed[key])}
            for key, side in way.sides.items()
        },
        "memory_bytes": memory_bytes,
        "fatal": fatal,
    }
    json.dump(given, process.stdin)
    process.stdin.close()
    return process


def drop_slot(server: PostgresServer) -> None:
    """Drop the slot of the reverse streams, which the next test has, too."""
    drop_slots(server, f"slot_name = '{REVERSE_SLOT}'")


def make_way(
    stack: ExitStack, params: ConnectionParams, target: connection, source_server: PostgresServer
) -> Way:
    """Make a target ready for tenants."""
    execute(target, "SET extra_float_digits = 1")
    target.autocommit = False
    with target:
        ensure_isolation(target)
    target.autocommit = True
    return Way(params, target, source_server, stack)
