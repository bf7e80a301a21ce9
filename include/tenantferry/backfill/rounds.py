"""
One round of a backfill: a snapshot at S, the copied chunks brought to exactly S, more chunks.

Invariant: while a pending chunk belongs to a round, P is that round's consistent point. It holds
because only `_give_chunks` gives chunks to a round, with the stream's lock, after it has seen P
there; and because whoever moves P takes the same lock and first takes the chunks away again. So
rows as of S are committed only where all other rows are as of S, whatever is left of a process that
was thought dead.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from dataclasses import dataclass

from psycopg2.extensions import connection

from tenantferry.backfill.chunk import TEXT_SETTINGS, Chunk, to_chunk, to_record
from tenantferry.backfill.clearing import session_purpose
from tenantferry.backfill.copying import CopyJob, HeapFiles, read_heap_files
from tenantferry.backfill.pace import Pace
from tenantferry.backfill.planning import plan_chunks, read_key_columns
from tenantferry.backfill.progress import BackfillProgress, Copied, ProgressMeter
from tenantferry.backfill.snapshot import (
    Snapshot,
    drop_slot,
    exported_snapshot,
    import_snapshot,
)
from tenantferry.backfill.workers import copy_chunks
from tenantferry.connections import ConnectionParams, open_connection
from tenantferry.control.chunks import (
    assign_chunks,
    finish_round,
    read_chunks,
    read_rounds,
    start_round,
    store_chunks,
)
from tenantferry.control.streams import lock_stream, require_stream, reset_stream
from tenantferry.errors import PermanentError, TransientError
from tenantferry.failpoints import Point, reach
from tenantferry.fleet import Tenant
from tenantferry.lsn import format_lsn, parse_lsn
from tenantferry.schema.model import Table
from tenantferry.schema.publication import read_entries
from tenantferry.throttle.throttle import UNTHROTTLED, Throttle

logger = logging.getLogger(__name__)

FIRST_ROUND = 1
# A catch-up that takes no longer needs no other one before the snapshot is taken: what comes up
# meanwhile is caught up with in about the same time.
SHORT_CATCH_UP_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Backfill:
    """
    What all rounds share.

    :ivar tables: the largest first.
    :ivar catch_up: apply what was committed before an LSN to the copied chunks, so that P is
        exactly there.
    :ivar report: called with the progress, at most once a second.
    :ivar pace: says how much a round may copy.
    :ivar throttle: slows down the workers.
    """

    source: ConnectionParams
    target: ConnectionParams
    tenant: Tenant
    tables: Sequence[Table]
    catch_up: Callable[[int], object]
    report: Callable[[BackfillProgress], None]
    pace: Pace
    throttle: Throttle = UNTHROTTLED


@dataclass(frozen=True, slots=True)
class _Round:
    """
    A round whose snapshot is held.

    :ivar taken_at: ``time.monotonic()`` of the snapshot.
    :ivar files: see `read_heap_files`; read before the snapshot was taken.
    """

    number: int
    snapshot: Snapshot
    taken_at: float
    files: HeapFiles


def copy_first_round(backfill: Backfill, source: connection, target: connection) -> None:
    """
    Cut published tables into chunks and copy the first of them, under the durable slot's snapshot.

    A table that is not published is left to a later round: its changes are not sent.

    :param source: session in autocommit.
    :param target: session outside a transaction; commits.
    :raises TenantferryError: if something could not be copied; what is done stays.
    """
    tenant = backfill.tenant
    files = read_heap_files(source, backfill.tables)
    # Before the snapshot: while an entry is the same, all changes are sent that it does not show.
    entries = read_entries(source, tenant)
    if not any(table.qualified in entries for table in backfill.tables):
        raise PermanentError(
            f'no table of tenant "{tenant.key}" is published',
            hint='Clear the task "preflight" and those after it.',
        )
    with exported_snapshot(
        backfill.source,
        slot=tenant.slot,
        temporary=False,
        timeout_seconds=tenant.slot_timeout_seconds,
        failover=True,
    ) as snapshot:
        begun = _begin(backfill, target, FIRST_ROUND, snapshot, files)
        chunks = _plan(backfill, snapshot, entries)
        records = [to_record(c, published_as=entries[c.schema, c.table]) for c in chunks]
        with target:
            store_chunks(target, tenant.key, records)
            assign_chunks(target, tenant.key, number=FIRST_ROUND)
            # The copied rows need no origin: changes of this tenant travel back only from the
            # cutover on, and a slot for that begins there.
            reset_stream(target, tenant.key, snapshot.consistent_point, timeline=snapshot.timeline)
        _copy(backfill, target, begun, chunks)
    _finish(backfill, target, begun)


def copy_next_round(backfill: Backfill, source: connection, target: connection) -> None:
    """
    Bring the copied chunks to a new snapshot, and copy pending ones under it.

    :param source: session in autocommit.
    :param target: session outside a transaction; commits.
    :raises TenantferryError: if something could not be done; what is done stays.
    """
    tenant = backfill.tenant
    _catch_up_to_now(backfill, source)
    reach(Point.CAUGHT_UP_TO_NOW)
    # Left behind by a process that died with its machine: the source has not noticed yet.
    drop_slot(source, tenant.round_slot)
    with target:
        number = max(copied.number for copied in read_rounds(target, tenant.key)) + 1
    files = read_heap_files(source, backfill.tables)
    with exported_snapshot(
        backfill.source,
        slot=tenant.round_slot,
        temporary=True,
        timeout_seconds=tenant.slot_timeout_seconds,
    ) as snapshot:
        begun = _begin(backfill, target, number, snapshot, files)
        backfill.catch_up(snapshot.consistent_point)
        reach(Point.CAUGHT_UP)
        chunks = _give_chunks(backfill, source, target, begun)
        reach(Point.CHUNKS_GIVEN)
        _copy(backfill, target, begun, chunks)
    _finish(backfill, target, begun)


def _catch_up_to_now(backfill: Backfill, source: connection) -> None:
    """Catch up while no snapshot is held yet, until little is left or it does not get less."""
    before = float("inf")
    while True:
        with source.cursor() as cursor:
            cursor.execute("SELECT pg_current_wal_insert_lsn()::text")
            (lsn,) = cursor.fetchone() or ("0/0",)
        started = time.monotonic()
        backfill.catch_up(parse_lsn(lsn))
        seconds = time.monotonic() - started
        if seconds <= SHORT_CATCH_UP_SECONDS or seconds >= before:
            return
        before = seconds


def _begin(
    backfill: Backfill, target: connection, number: int, snapshot: Snapshot, files: HeapFiles
) -> _Round:
    taken_at = time.monotonic()
    reach(Point.SNAPSHOT_TAKEN)
    tenant = backfill.tenant.key
    with target:
        start_round(target, tenant, number=number, consistent_point=snapshot.consistent_point)
    reach(Point.ROUND_BEGUN)
    logger.info(
        "round begins tenant=%s round=%s consistent_point=%s",
        tenant,
        number,
        format_lsn(snapshot.consistent_point),
    )
    return _Round(number, snapshot, taken_at, files)


def _give_chunks(
    backfill: Backfill, source: connection, target: connection, begun: _Round
) -> list[Chunk]:
    """Give the pending chunks to a round, and return them, those of the largest table first."""
    tenant = backfill.tenant.key
    wanted = begun.snapshot.consistent_point
    with target, target.cursor() as cursor:
        # Ends a session that would still move P.
        lock_stream(cursor, tenant, for_session=False)
        position = require_stream(target, tenant).position
        if position != wanted:
            raise TransientError(
                f'could not catch up tenant "{tenant}" to its snapshot exactly',
                detail=f"The snapshot is at {format_lsn(wanted)}, the stream at"
                f" {format_lsn(position)}: another process has moved it.",
            )
        assign_chunks(target, tenant, number=begun.number)
        pending = [chunk for chunk in read_chunks(target, tenant) if chunk.done_at is None]
    return [
        to_chunk(record, key_columns)
        for table in backfill.tables
        if (mine := [r for r in pending if (r.schema, r.table) == table.qualified])
        for key_columns in [read_key_columns(source, table)]
        for record in mine
    ]


def _copy(backfill: Backfill, target: connection, begun: _Round, chunks: Sequence[Chunk]) -> None:
    tenant = backfill.tenant
    job = CopyJob(
        source=backfill.source,
        target=backfill.target,
        tenant=tenant.key,
        tenant_id=tenant.id,
        purpose=session_purpose(tenant),
        snapshot=begun.snapshot,
        tables={table.qualified: table for table in backfill.tables},
        files=begun.files,
        throttle=backfill.throttle,
    )
    copy_chunks(
        job,
        chunks,
        workers=tenant.backfill_workers,
        meter=_make_meter(backfill, target, begun),
        allowance=backfill.pace.next(len(chunks)),
        snapshot_at=begun.taken_at,
    )


def _make_meter(backfill: Backfill, target: connection, begun: _Round) -> ProgressMeter:
    with target:
        records = read_chunks(target, backfill.tenant.key)
    done = [record for record in records if record.done_at is not None]
    return ProgressMeter(
        backfill.report,
        estimated_rows=sum(record.estimated_rows for record in records),
        chunks=len(records),
        before=Copied(
            rows=sum(record.rows or 0 for record in done),
            chunks=len(done),
            bytes=sum(record.bytes or 0 for record in done),
        ),
        round_number=begun.number,
        snapshot_at=begun.taken_at,
    )


def _finish(backfill: Backfill, target: connection, begun: _Round) -> None:
    """Record that the snapshot was let go."""
    tenant = backfill.tenant.key
    with target:
        finish_round(
            target,
            tenant,
            number=begun.number,
            consistent_point=begun.snapshot.consistent_point,
        )
        records = read_chunks(target, tenant)
    reach(Point.ROUND_ENDED)
    logger.info(
        "round ends tenant=%s round=%s snapshot_seconds=%.2f chunks=%s pending=%s",
        tenant,
        begun.number,
        time.monotonic() - begun.taken_at,
        sum(record.done_at is not None and record.round == begun.number for record in records),
        sum(record.done_at is None for record in records),
    )


def _plan(
    backfill: Backfill, snapshot: Snapshot, published: Collection[tuple[str, str]]
) -> list[Chunk]:
    tenant = backfill.tenant
    with closing(
        open_connection(backfill.source, purpose=session_purpose(tenant), settings=TEXT_SETTINGS)
    ) as source:
        import_snapshot(source, snapshot)
        chunks = [
            chunk
            for table in backfill.tables
            if table.qualified in published
            for chunk in plan_chunks(source, table, chunk_rows=tenant.chunk_rows)
        ]
    logger.info(
        "planned backfill tenant=%s chunks=%s rows=%s",
        tenant.key,
        len(chunks),
        sum(chunk.estimated_rows for chunk in chunks),
    )
    return chunks
