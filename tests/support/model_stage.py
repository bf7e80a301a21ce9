"""
Plays the cases of the model, and compares with the source at every position that can be known.

The source says itself what is right: at each snapshot of a round the copied chunks must hold what
the snapshot shows of them and the others nothing, and the same holds whenever the stream has come
to the end of the log. The rows of another tenant, which are the first rows of this one, must stay
where they are.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from functools import partial
from typing import Any
from unittest import mock
from uuid import UUID

import pytest
from psycopg2.extensions import connection

from model_client import Overlap, execute, write
from model_points import in_process_that_dies
from model_rows import (
    Rows,
    check_copied,
    copy_for_other_tenant,
    drop_in_target,
    empty_source,
    empty_target,
    has_gap,
    read_rows_of_others,
    read_source_rows,
)
from model_script import ACROSS, Place, Script, Step, Verb
from tenantferry.backfill import rounds as engine
from tenantferry.backfill.chunk import TEXT_SETTINGS, Chunk
from tenantferry.backfill.copying import CopyJob
from tenantferry.backfill.pace import Allowance
from tenantferry.backfill.running import run_backfill
from tenantferry.backfill.snapshot import Snapshot, drop_slot, import_snapshot
from tenantferry.backfill.workers import copy_chunks
from tenantferry.connections import ConnectionParams, open_connection
from tenantferry.control.chunks import read_chunks
from tenantferry.control.streams import StreamCommand, command, require_stream
from tenantferry.errors import TransientError
from tenantferry.lsn import parse_lsn
from tenantferry.moves.move import Move
from tenantferry.moves.prepare import prepare
from tenantferry.schema.catalog import read_tables
from tenantferry.schema.model import Column, Table
from tenantferry.schema.publication import ensure_publication
from tenantferry.stream.catching_up import catch_up
from tenantferry.stream.drift import DriftError
from tenantferry.stream.handshake import release
from tenantferry.stream.running import run_stream
from tenantferry.validation import alignment
from tenantferry.validation.alignment import aligned_view
from tenantferry.validation.running import compare_view, load_chunks

OTHER_ID = UUID("22222222-2222-2222-2222-222222222222")
# A stream that does not answer has failed, and that is what a case is to end with.
_HANDSHAKE_TIMEOUT_SECONDS = 20.0
# The only failure of a round that the application may cause.
_TRUNCATED = "was truncated or rewritten while it was copied"
_CLIENTS = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'tenantferry model'"


class _EnoughError(TransientError):
    """A step has copied its rounds."""


class Stage:
    """
    One tenant that begins anew with every case.

    :ivar compared: how often this process compared the target with the source.
    :ivar deaths: how many processes died.
    """

    def __init__(self, move: Move) -> None:
        self._move = move
        self._tenant = move.tenant
        self._tables: Sequence[Table] = ()
        self._others: Rows = {}
        # Of the target's tables, by name.
        self._columns: dict[str, tuple[Column, ...]] = {}
        self._rounds_left = 0
        self.compared = self.deaths = 0

    def play(self, script: Script) -> None:
        """
        Play a case from a source nobody has touched to a validated target.

        :raises AssertionError: if the target holds other rows than the source at P.
        :raises TenantferryError: if the engine gives up, which no case is a reason for.
        """
        with (
            mock.patch.dict(run_stream.__kwdefaults__ or {}, batch_bytes=script.batch_bytes),
            mock.patch.object(alignment, "HANDSHAKE_TIMEOUT_SECONDS", _HANDSHAKE_TIMEOUT_SECONDS),
        ):
            self._set_up(script)
            for step in script.steps:
                self._take(step)
            self._publish(self._tables)
            while not self._is_copied():
                self._round(Step(Verb.ROUND, chunks=100))
            self._stream()
            self._hold(Step(Verb.HOLD))

    def _set_up(self, script: Script) -> None:
        changes = {"chunk_rows": script.chunk_rows, "backfill_workers": script.workers}
        self._tenant = tenant = self._move.tenant.model_copy(update=changes)
        self.clear()
        with self.sessions() as (source, target):
            write(self._move.source, (*script.tables, *script.rows))
            self._tables = read_tables(source, tenant)
            self._prepare(target)
            ensure_publication(source, tenant, self._tables)
            # Only now: it says how the tables' rows are told apart.
            self._tables = read_tables(source, tenant)
            copy_for_other_tenant(source, target, self._tables, OTHER_ID)
            self._others = read_rows_of_others(target, self._tables, tenant)

    def _prepare(self, target: connection) -> None:
        """Make the tables in the target that an earlier case had not, or had with other columns."""
        wanted = {table.label: table.columns for table in self._tables}
        changed = [t for t in self._tables if self._columns.get(t.label) != wanted[t.label]]
        for table in changed:
            drop_in_target(target, table)
            self._columns.pop(table.label, None)
        if changed:
            prepare(self._move)
            self._columns |= wanted

    def clear(self) -> None:
        """Leave nothing behind of what was played, wherever it ended."""
        tenant = self._tenant
        with self.sessions() as (source, target):
            for slot in (tenant.slot, tenant.round_slot, tenant.validation_slot):
                drop_slot(source, slot)
            empty_source(source, self._move.source)
            empty_target(target, tenant)

    def _take(self, step: Step) -> None:
        acts: dict[Verb, Callable[[], None]] = {
            Verb.WRITE: lambda: self._write(step, Place.STEP),
            Verb.PUBLISH: lambda: self._publish(t for t in self._tables if t.name in step.tables),
            Verb.ROUND: lambda: self._round(step),
            Verb.STREAM: self._stream,
            Verb.HOLD: lambda: self._hold(step),
        }
        act = acts[step.verb]
        if not step.killed_at:
            act()
        elif in_process_that_dies(act, at=step.killed_at, nth=step.nth):
            self.deaths += 1
            self._wait_for_clients()

    def _wait_for_clients(self) -> None:
        """Wait until what a dead process has written as the application is undone."""
        with self.sessions() as (source, _):
            while execute(source, _CLIENTS):
                threading.Event().wait(0.01)

    def _write(self, step: Step, place: Place) -> None:
        write(self._move.source, step.writes.get(place, ()))

    def _publish(self, tables: Iterable[Table]) -> None:
        with self.sessions() as (source, _):
            ensure_publication(source, self._tenant, list(tables))

    def _round(self, step: Step) -> None:
        self._rounds_left = step.rounds
        with (
            self._gap_refused(),
            self._snapshots_for(step, engine),
            mock.patch.object(engine, "copy_chunks", partial(self._copy_and_compare, step)),
        ):
            try:
                run_backfill(
                    self._move.source,
                    self._move.target,
                    self._tenant,
                    self._tables,
                    catch_up=self._catch_up,
                    report=lambda _: None,
                )
            except _EnoughError:
                return
            except TransientError as error:
                if _TRUNCATED not in error.message:
                    raise

    def _catch_up(self, lsn: int) -> None:
        if self._rounds_left <= 0:
            raise _EnoughError("the step ends here")
        catch_up(self._move.source, self._move.target, self._tenant, self._tables, lsn)

    def _copy_and_compare(
        self, step: Step, job: CopyJob, chunks: Sequence[Chunk], **options: Any
    ) -> int:
        with self.sessions() as (source, target):
            import_snapshot(source, job.snapshot)
            # Before anybody can truncate: that empties a table for older snapshots, too.
            expected = read_source_rows(source, self._tables, read_chunks(target, job.tenant))
            source.rollback()
            self._write(step, Place.AFTER_SNAPSHOT)
            options["allowance"] = Allowance(0.0, step.chunks)
            copied = copy_chunks(job, chunks, **options)
            position = require_stream(target, job.tenant).position
            assert position == job.snapshot.consistent_point
            self._check(expected, source, target)
        self._rounds_left -= 1
        return copied

    def _stream(self) -> None:
        with self.sessions() as (source, target):
            records = read_chunks(target, self._tenant.key)
            if all(record.done_at is None for record in records):
                return  # a slot without copied rows behind it is nothing to go on from
            [(lsn,)] = execute(source, "SELECT pg_current_wal_insert_lsn()::text")
            command(target, self._tenant.key, StreamCommand.STOP, lsn=parse_lsn(lsn))
            is_pending = any(record.done_at is None for record in records)
            if has_gap(source, target, self._tenant):
                with pytest.raises(DriftError, match="not all changes"):
                    self._run_stream(threading.Event(), while_copying=is_pending)
                command(target, self._tenant.key, StreamCommand.RUN)
                return
            self._run_stream(threading.Event(), while_copying=is_pending)
            command(target, self._tenant.key, StreamCommand.RUN)
            records = read_chunks(target, self._tenant.key)
            self._check(read_source_rows(source, self._tables, records), source, target)

    def _hold(self, step: Step) -> None:
        if not self._is_copied():
            return
        release(self._move.target, self._tenant.key)
        with (
            self._streaming(),
            self._snapshots_for(step, alignment),
            aligned_view(self._move.source, self._move.target, self._tenant, lanes=1) as view,
            self.sessions() as (source, target),
        ):
            self._write(step, Place.AFTER_SNAPSHOT)
            chunks = load_chunks(source, target, self._tenant, self._tables)
            records = read_chunks(target, self._tenant.key)
            (lane,) = view.lanes
            expected = read_source_rows(lane.source, self._tables, records)
            self._check(expected, source, lane.target)
            _, differences, mismatches = compare_view(view, self._tenant, self._tables, chunks)
            assert mismatches == 0, differences

    @contextmanager
    def _streaming(self) -> Iterator[None]:
        stop, failures = threading.Event(), list[BaseException]()

        def host() -> None:
            try:
                self._run_stream(stop)
            except BaseException as failure:  # noqa: BLE001 - a thread's boundary: raised below
                failures.append(failure)

        thread = threading.Thread(target=host, daemon=True)
        thread.start()
        try:
            yield
        except TransientError:
            # That nobody answers is explained by what ended the stream.
            if not failures:
                raise
        finally:
            stop.set()
            thread.join()
        if failures:
            raise failures[0]

    def _run_stream(self, stop: threading.Event, *, while_copying: bool = False) -> None:
        run_stream(
            self._move.source,
            self._move.target,
            self._tenant,
            self._tables,
            stop=stop,
            while_copying=while_copying,
        )

    def _snapshots_for(self, step: Step, place: Any) -> AbstractContextManager[object]:
        """Let the application write around the snapshots that a step takes."""
        create = place.exported_snapshot
        waiting = {**step.writes}

        @contextmanager
        def exported_snapshot(*args: Any, **options: Any) -> Iterator[Snapshot]:
            write(self._move.source, waiting.pop(Place.BEFORE_SNAPSHOT, ()))
            across = [waiting.pop(place, ()) for place in ACROSS]
            with ExitStack() as stack:
                if any(across):
                    overlap = Overlap(self._move.source, across)
                    overlap.begin()
                    stack.callback(overlap.finish)
                with create(*args, **options) as snapshot:
                    stack.close()
                    yield snapshot

        patch: AbstractContextManager[object] = mock.patch.object(
            place, "exported_snapshot", exported_snapshot
        )
        return patch

    def _check(self, expected: Rows, source: connection, target: connection) -> None:
        check_copied(expected, source, target, self._tables, self._tenant)
        others = read_rows_of_others(target, self._tables, self._tenant)
        assert others == self._others, "rows of another tenant"
        self.compared += 1

    def _is_copied(self) -> bool:
        with self.sessions() as (source, target):
            records = read_chunks(target, self._tenant.key)
            gap = has_gap(source, target, self._tenant)
        missing = {t.qualified for t in self._tables} - {(r.schema, r.table) for r in records}
        return not gap and not missing and all(r.done_at is not None for r in records)

    @contextmanager
    def _gap_refused(self) -> Iterator[None]:
        """Let a step fail for it was not sent all changes, where that is so."""
        try:
            yield
        except DriftError as error:
            with self.sessions() as (source, target):
                if "not all changes" not in error.message or not has_gap(
                    source, target, self._tenant
                ):
                    raise

    @contextmanager
    def sessions(self) -> Iterator[tuple[connection, connection]]:
        """Yield a session of each side, in autocommit."""
        with (
            closing(_open(self._move.source)) as source,
            closing(_open(self._move.target)) as target,
        ):
            yield source, target


def _open(params: ConnectionParams) -> connection:
    settings = {**TEXT_SETTINGS, "lock_timeout": "60s"}
    return open_connection(params, purpose="look", autocommit=True, settings=settings)
