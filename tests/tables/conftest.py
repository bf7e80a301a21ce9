"""A tenant that goes the whole way with the real steps, while a client keeps writing."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from psycopg2 import sql
from psycopg2.extensions import connection

from tenantferry.backfill.chunk import TEXT_SETTINGS
from tenantferry.backfill.finished import BackfillResult
from tenantferry.connections import ConnectionParams, open_client_connection, open_connection
from tenantferry.errors import TransientError
from tenantferry.fleet import Source, Tenant
from tenantferry.local.postgres import PostgresServer
from tenantferry.moves.backfill import backfill
from tenantferry.moves.move import Move
from tenantferry.moves.prepare import prepare
from tenantferry.moves.stream import stream
from tenantferry.moves.validate import validate
from tenantferry.schema.findings import Finding, Verdict
from tenantferry.schema.preflight import run_preflight
from tenantferry.stream.handshake import wait_for_position
from tenantferry.stream.marker import emit_marker
from tenantferry.traffic.router import Router
from tenantferry.validation.running import ValidationResult

ACME_ID = UUID("11111111-1111-1111-1111-111111111111")
_TABLES = """
SELECT n.nspname, c.relname, array_agg(a.attname::text ORDER BY a.attnum)
    FILTER (WHERE a.attnum > 0 AND NOT a.attisdropped), c.relkind = 'p'
FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
LEFT JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid
WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition
    AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'tenantferry')
GROUP BY c.oid, n.nspname, c.relname
ORDER BY n.nspname, c.relname
"""
_PAUSE_SECONDS = 0.005

Rows = list[tuple[Any, ...]]


def execute(session: connection, statement: str | sql.Composed, *values: Any) -> Rows:
    """Run one statement and return its rows."""
    with session.cursor() as cursor:
        cursor.execute(statement, values or None)
        return cursor.fetchall() if cursor.description else []


class Writer:
    """A client of the source in a thread; each statement is a transaction of its own."""

    def __init__(self, params: ConnectionParams, writes: Sequence[str]) -> None:
        self._params, self._writes = params, writes
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.error: BaseException | None = None
        self.rounds = 0

    def _run(self) -> None:
        try:
            with closing(open_client_connection(self._params, purpose="writer")) as client:
                client.autocommit = True
                execute(client, "SET search_path = public")
                for number in itertools.count(1):
                    for statement in self._writes:
                        execute(client, statement.replace("{n}", str(number)))
                    self.rounds = number
                    if self._done.wait(_PAUSE_SECONDS):
                        return
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.error = error

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Write beside the block; the round that has begun is finished behind it."""
        self._thread.start()
        try:
            yield
        finally:
            self._done.set()
            self._thread.join(60)
        assert not self._thread.is_alive()
        if self.error is not None:
            raise self.error
        assert self.rounds > 0


class Trip:
    """One tenant, from the first look at its source to the last comparison."""

    def __init__(
        self,
        move: Move,
        source_server: PostgresServer,
        *,
        source: connection,
        owner: connection,
        target: connection,
    ) -> None:
        self.move, self.source_server = move, source_server
        self.source, self.owner, self.target = source, owner, target

    def run(self, *statements: str) -> None:
        """Run statements on the source as its owner, each a transaction of its own."""
        for statement in statements:
            execute(self.owner, statement)

    def run_anew(self, *statements: str) -> None:
        """Do so in a session of its own: a fence ends those that are open."""
        with closing(open_client_connection(self.client, purpose="client")) as client, client:
            for statement in statements:
                execute(client, statement)

    @property
    def client(self) -> ConnectionParams:
        """The source as its application reaches it."""
        return replace(self.move.source, user="app_owner", password="owner")

    def find(self, verdict: Verdict) -> list[Finding]:
        """Run the preflight, and return what it found of one verdict."""
        found = run_preflight(self.source, self.target, self.move.tenant, target_regions=())
        return [finding for finding in found if finding.verdict is verdict]

    def prepare(self) -> None:
        """Pass the preflight and make both sides ready."""
        assert self.find(Verdict.ERROR) == []
        prepare(self.move)

    def backfill(self) -> BackfillResult:
        """Copy."""
        return backfill(self.move, report=lambda _: None)

    def validate(self) -> ValidationResult:
        """Compare both sides as the move does."""
        return validate(self.move)

    @contextmanager
    def streaming(self) -> Iterator[threading.Thread]:
        """Host the stream beside the block; what ended it is raised behind it."""
        stop = threading.Event()
        failures: list[BaseException] = []

        def host() -> None:
            try:
                stream(self.move, stop=stop)
            except BaseException as error:  # noqa: BLE001 - the test looks at it
                failures.append(error)

        thread = threading.Thread(target=host, daemon=True)
        thread.start()
        try:
            yield thread
        except TransientError:
            # That nobody answers is explained by what ended the stream.
            if not failures:
                raise
        finally:
            stop.set()
            thread.join(60)
            assert not thread.is_alive()
        if failures:
            raise failures[0]

    def catch_up(self, timeout_seconds: float = 60) -> None:
        """Wait until everything committed so far is applied."""
        lsn = emit_marker(self.source, self.move.tenant)
        wait_for_position(
            self.move.target, self.move.tenant.key, lsn, timeout_seconds=timeout_seconds
        )

    def travel(
        self, *writes: str, finally_run: Sequence[str] = (), rounds: int = 1
    ) -> ValidationResult:
        """
        Go the whole way while a client writes, and compare at its end.

        :param writes: statements that the client runs again and again; ``{n}`` counts.
        :param finally_run: statements that only the stream carries.
        :param rounds: so many the copy takes at least.
        """
        self.prepare()
        writer = Writer(self.client, writes)
        with writer.writing():
            assert self.backfill().rounds >= rounds
            with self.streaming():
                started = writer.rounds
                result = self.validate()
                deadline = time.monotonic() + 30
                while writes and writer.rounds < started + 2 and writer.error is None:
                    assert time.monotonic() < deadline
                    writer._done.wait(_PAUSE_SECONDS)
        with self.streaming():
            self.run(*finally_run)
            self.catch_up()
            result = self.validate()
        self.compare()
        return result

    def compare(self, column: str = "{}::text") -> None:
        """
        Read every row of both sides, column by column, and find them equal.

        :param column: what is compared of a column.
        """
        tables = execute(self.source, _TABLES)
        assert tables
        for schema, name, columns, is_partitioned in tables:
            values: list[sql.Composable] = [
                sql.SQL(column).format(sql.Identifier("t", name)) for name in columns or ()
            ]
            if not is_partitioned:
                # What inherits from it is seen in it, too.
                values.append(sql.SQL("t.tableoid::regclass::text"))
            query = sql.SQL("SELECT {} FROM {} AS t").format(
                sql.SQL(", ").join(values), sql.Identifier(schema, name)
            )
            ours, theirs = (
                sorted(execute(side, query), key=repr) for side in (self.source, self.target)
            )
            assert theirs == ours, f"{schema}.{name}"
            foreign = sql.SQL("SELECT FROM {} WHERE tenant_id IS DISTINCT FROM {}").format(
                sql.Identifier(schema, name), sql.Literal(str(self.move.tenant.id))
            )
            assert execute(self.target, foreign) == []


@pytest.fixture
def make_trip(
    *,
    source_server: PostgresServer,
    source_params: ConnectionParams,
    target_params: ConnectionParams,
    source_owner: connection,
) -> Iterator[Callable[..., Trip]]:
    """Make the trip of a tenant; keyword arguments change the tenant."""
    sessions: list[connection] = []

    def make(**changes: Any) -> Trip:
        source, target = (
            open_connection(params, purpose="test", autocommit=True, settings=TEXT_SETTINGS)
            for params in (source_params, target_params)
        )
        sessions.extend((source, target))
        tenant = Tenant(
            key="acme",
            id=ACME_ID,
            source=Source(conn_id="acme"),
            chunk_rows=100,
            slot_timeout_seconds=30,
        ).model_copy(update=changes)
        move = Move(
            tenant=tenant,
            target_regions=frozenset(),
            source=source_params,
            target=target_params,
            router=Router([]),
            target_address=(target_params.host, target_params.port, target_params.database),
            probe=source_params,
            run_id="test",
        )
        return Trip(move, source_server, source=source, owner=source_owner, target=target)

    yield make
    for session in sessions:
        session.close()


@pytest.fixture
def trip(make_trip: Callable[..., Trip]) -> Trip:
    """The trip of an ordinary tenant with small chunks."""
    return make_trip()
