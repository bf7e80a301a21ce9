"""A backfill on its way, round by round, and the comparison of what it has copied."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from typing import Any
from uuid import UUID

import pytest
from psycopg2 import sql
from psycopg2.extensions import connection

from tenantferry.backfill import rounds as engine
from tenantferry.backfill.admitting import admit_tables
from tenantferry.backfill.chunk import TEXT_SETTINGS, Chunk, chunk_predicate, to_chunk
from tenantferry.backfill.copying import LOAD_SETTINGS, CopyJob
from tenantferry.backfill.finished import BackfillResult
from tenantferry.backfill.pace import Pace
from tenantferry.backfill.planning import read_key_columns
from tenantferry.backfill.progress import BackfillProgress
from tenantferry.backfill.rounds import Backfill, copy_first_round, copy_next_round
from tenantferry.backfill.running import run_backfill
from tenantferry.backfill.snapshot import Snapshot, import_snapshot
from tenantferry.backfill.workers import copy_chunks
from tenantferry.connections import ConnectionParams, open_connection
from tenantferry.control.chunks import has_pending_chunks, read_chunks, read_rounds, reopen_chunks
from tenantferry.control.streams import require_stream
from tenantferry.fleet import Tenant
from tenantferry.lsn import parse_lsn
from tenantferry.schema.catalog import read_tables
from tenantferry.schema.model import Table
from tenantferry.schema.publication import ensure_publication
from tenantferry.stream.catching_up import catch_up
from tenantferry.throttle.throttle import UNTHROTTLED, Throttle

Statements = Sequence[str]
_NOTHING: Statements = ()


def run(session: connection, statement: str, *values: Any) -> None:
    with session.cursor() as cursor:
        cursor.execute(statement, values or None)


def fetch(session: connection, query: str | sql.Composed) -> list[tuple[Any, ...]]:
    with session.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchall()


class Rounds:
    """
    A tenant whose backfill copies one chunk per round, in the order of the chunks.

    At the end of each round the copied chunks are compared with what the round's snapshot shows of
    them, and the others must have no row in the target.

    :ivar compared: how often that was done.
    :ivar reports: of `run_backfill`.
    """

    def __init__(
        self,
        tenant: Tenant,
        *,
        sessions: tuple[connection, connection, connection],
        params: tuple[ConnectionParams, ConnectionParams],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        self.tenant = tenant.model_copy(
            update={"chunk_rows": 10, "backfill_workers": 1, "round_budget_seconds": 0.001}
        )
        self.source, self.owner, self.target = sessions
        self.source_params, self.target_params = params
        self.compared = 0
        self.reports: list[BackfillProgress] = []
        self._while_copying: Statements = _NOTHING
        monkeypatch.setattr(engine, "copy_chunks", self._copy_and_compare)

    def pair(
        self, name: str, columns: str, *, key: str = "id", source: str = "", target: str = ""
    ) -> None:
        """
        Create one table on both sides.

        :param source: statements that run on the source only, e.g. a unique index.
        :param target: the same of the target.
        """
        narrow = f", PRIMARY KEY ({key})" if key else ""
        wide = f", PRIMARY KEY (tenant_id, {key})" if key else ""
        run(self.owner, f"CREATE TABLE public.{name} ({columns}{narrow}); {source}")
        run(
            self.target,
            f"CREATE TABLE public.{name} ({columns}, tenant_id uuid NOT NULL{wide}); {target}",
        )

    def write(self, *statements: str) -> None:
        """Run statements on the source as the application, each in its own transaction."""
        for statement in statements:
            run(self.owner, statement)

    def tables(self) -> tuple[Table, ...]:
        """Return the tables of the move, published."""
        tables = read_tables(self.source, self.tenant)
        ensure_publication(self.source, self.tenant, tables)
        return tables

    def catch_up_to(self, lsn: int) -> None:
        """Bring the copied chunks to a position."""
        tables = read_tables(self.source, self.tenant)
        catch_up(self.source_params, self.target_params, self.tenant, tables, lsn)

    def catch_up(self) -> None:
        """Bring the copied chunks to now."""
        [(lsn,)] = fetch(self.source, "SELECT pg_current_wal_insert_lsn()::text")
        self.catch_up_to(parse_lsn(lsn))

    def copy_round(
        self,
        *,
        before_snapshot: Statements = _NOTHING,
        while_copying: Statements = _NOTHING,
        catch_up: Callable[[int], object] | None = None,
        publish: bool = True,
    ) -> None:
        """
        Copy one chunk more; plan tables that came.

        :param before_snapshot: statements after the catch-up without a snapshot, before that to it.
        :param while_copying: statements after the snapshot was taken, before a row is copied.
        :param publish: tables that came; else only those stay published that were.
        """
        self._while_copying = while_copying
        waiting = list(before_snapshot)
        tables = self.tables() if publish else read_tables(self.source, self.tenant)

        def catch_up_and_write(lsn: int) -> None:
            (catch_up or self.catch_up_to)(lsn)
            self.write(*waiting)
            waiting.clear()

        backfill = Backfill(
            self.source_params,
            self.target_params,
            self.tenant,
            tables,
            catch_up_and_write,
            lambda _: None,
            Pace(self.tenant.round_budget_seconds),
        )
        with closing(
            open_connection(self.target_params, purpose="round", settings=LOAD_SETTINGS)
        ) as target:
            is_first = not read_rounds(self.target, self.tenant.key)
            if not is_first:
                admit_tables(backfill, self.source, target)
            step = copy_first_round if is_first else copy_next_round
            step(backfill, self.source, target)

    def run_backfill(
        self,
        *,
        catch_up: Callable[[int], object] | None = None,
        throttle: Throttle = UNTHROTTLED,
        **changes: object,
    ) -> BackfillResult:
        """Run the whole backfill; keyword arguments change the tenant."""
        return run_backfill(
            self.source_params,
            self.target_params,
            self.tenant.model_copy(update=changes),
            self.tables(),
            catch_up=catch_up or self.catch_up_to,
            report=self.reports.append,
            throttle=throttle,
        )

    def finish(self) -> None:
        """Copy what is left, stream what was written, and compare everything as it is now."""
        while has_pending_chunks(self.target, self.tenant.key):
            self.copy_round()
        self.catch_up()
        self.compare(None)

    def reopen(self, table: str, number: int) -> None:
        """Make a copied chunk pending again, as if it had not been copied yet."""
        (found,) = (t for t in self.tables() if t.name == table)
        (chunk,) = (chunk for chunk in self._chunks(found) if chunk.number == number)
        delete = sql.SQL("DELETE FROM {} WHERE tenant_id = {} AND {}").format(
            sql.Identifier(*found.qualified),
            sql.Literal(str(self.tenant.id)),
            chunk_predicate(chunk),
        )
        with self.target.cursor() as cursor:
            cursor.execute(delete)
        reopen_chunks(
            self.target, self.tenant.key, schema=found.schema, table=table, numbers=[number]
        )

    def copied(self) -> dict[str, set[int]]:
        """Return the numbers of the copied chunks by table."""
        found: dict[str, set[int]] = {}
        for chunk in read_chunks(self.target, self.tenant.key):
            numbers = found.setdefault(chunk.table, set())
            if chunk.done_at is not None:
                numbers.add(chunk.number)
        return found

    def compare(self, snapshot: Snapshot | None) -> None:
        """
        Compare the copied chunks with the source; the other chunks must be empty in the target.

        :param snapshot: at which the source is looked at; ``None``: as it is now.
        """
        done = self.copied()
        with (
            closing(
                open_connection(self.source_params, purpose="look", settings=TEXT_SETTINGS)
            ) as source,
            closing(
                open_connection(self.target_params, purpose="look", settings=TEXT_SETTINGS)
            ) as target,
        ):
            if snapshot is not None:
                assert require_stream(target, self.tenant.key).position == snapshot.consistent_point
                import_snapshot(source, snapshot)
            for table in read_tables(self.source, self.tenant):
                for chunk in self._chunks(table):
                    theirs = read_chunk_rows(source, table, chunk, None)
                    ours = read_chunk_rows(target, table, chunk, self.tenant.id)
                    label = f"chunk {chunk.number} of {table.label}"
                    if chunk.number in done[table.name]:
                        assert ours == theirs, label
                    else:
                        assert ours == [], label
                if table.name not in done:
                    # It is not planned yet.
                    query = sql.SQL("SELECT FROM {} WHERE tenant_id = {}").format(
                        sql.Identifier(*table.qualified), sql.Literal(str(self.tenant.id))
                    )
                    assert fetch(target, query) == [], table.label
        self.compared += 1

    def _copy_and_compare(self, job: CopyJob, chunks: Sequence[Chunk], **options: Any) -> int:
        statements, self._while_copying = self._while_copying, _NOTHING
        self.write(*statements)
        copied = copy_chunks(job, chunks, **options)
        self.compare(job.snapshot)
        return copied

    def _chunks(self, table: Table) -> Iterable[Chunk]:
        key_columns = read_key_columns(self.source, table)
        for record in read_chunks(self.target, self.tenant.key):
            if (record.schema, record.table) == table.qualified:
                yield to_chunk(record, key_columns)


def read_chunk_rows(
    session: connection, table: Table, chunk: Chunk, tenant_id: UUID | None
) -> list[str]:
    """Return the rows of one chunk as text, sorted; of a tenant in the target, or of a source."""
    columns = sql.SQL(", ").join(sql.Identifier(column.name) for column in table.columns)
    in_scope = sql.SQL("true").format()
    if tenant_id is not None:
        in_scope = sql.SQL("tenant_id = {}").format(sql.Literal(str(tenant_id)))
    query = sql.SQL("SELECT ROW({})::text FROM {} WHERE {} AND {}").format(
        columns, sql.Identifier(*table.qualified), chunk_predicate(chunk), in_scope
    )
    return sorted(row for (row,) in fetch(session, query))


def in_process_that_is_killed(act: Callable[[], object]) -> None:
    """Run something that kills its process."""
    process = multiprocessing.get_context("fork").Process(target=act)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class KillAfter(logging.Handler):
    """Ends this process, as the kernel would, when some chunks are copied."""

    def __init__(self, chunks: int) -> None:
        super().__init__()
        self.chunks = chunks

    def emit(self, record: logging.LogRecord) -> None:
        if "copied chunk" in record.msg:
            self.chunks -= 1
            if self.chunks == 0:
                die()
