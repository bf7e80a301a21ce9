"""The whole backfill of one tenant: round one, copied under the durable slot's snapshot."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass

import psycopg2
from psycopg2 import errors, sql
from psycopg2.extensions import connection

from tenantferry.backfill.chunk import TEXT_SETTINGS, Chunk
from tenantferry.backfill.clearing import (
    delete_rows,
    end_leftover_sessions,
    forget_attempt,
    session_purpose,
)
from tenantferry.backfill.copying import LOAD_SETTINGS, CopyJob, read_heap_files
from tenantferry.backfill.failures import describe_failure
from tenantferry.backfill.finished import BackfillResult, read_finished_backfill
from tenantferry.backfill.planning import plan_chunks
from tenantferry.backfill.progress import BackfillProgress
from tenantferry.backfill.snapshot import (
    Snapshot,
    drop_slot,
    exported_snapshot,
    import_snapshot,
)
from tenantferry.backfill.workers import copy_chunks
from tenantferry.connections import ConnectionParams, open_connection
from tenantferry.control.chunks import (
    ChunkRecord,
    finish_round,
    start_round,
    store_chunks,
)
from tenantferry.control.phases import IllegalPhaseError, Phase
from tenantferry.control.registry import require_registration
from tenantferry.control.streams import reset_stream
from tenantferry.errors import TransientError
from tenantferry.fleet import Tenant
from tenantferry.lsn import format_lsn
from tenantferry.schema.model import Table

logger = logging.getLogger(__name__)

FIRST_ROUND = 1
# How long to wait for a backfill of the same tenant that is about to end.
LOCK_TIMEOUT = "60s"


@dataclass(frozen=True, slots=True)
class _Attempt:
    source: ConnectionParams
    target: ConnectionParams
    tenant: Tenant
    tables: Sequence[Table]


def run_backfill(
    source_params: ConnectionParams,
    target_params: ConnectionParams,
    tenant: Tenant,
    tables: Sequence[Table],
    *,
    report: Callable[[BackfillProgress], None],
) -> BackfillResult:
    """
    Copy the tenant's rows, unless that is done and the slot holds all that came after.

    Commits as it goes. An attempt that died is started over: its slot and its rows go, and a new
    snapshot is taken. A finished backfill is left alone.

    :param tables: the largest first.
    :param report: called with the progress, at most once a second.
    :raises TransientError: if a retry may help.
    :raises PermanentError: if the source cannot have a slot, or a row cannot be loaded.
    """
    try:
        return _run(_Attempt(source_params, target_params, tenant, tables), report=report)
    except psycopg2.Error as error:
        raise describe_failure(error, doing=f'copy tenant "{tenant.key}"') from None


def _run(attempt: _Attempt, *, report: Callable[[BackfillProgress], None]) -> BackfillResult:
    tenant, tables = attempt.tenant, attempt.tables
    purpose = session_purpose(tenant)
    with (
        closing(open_connection(attempt.source, purpose=purpose, autocommit=True)) as source,
        closing(open_connection(attempt.target, purpose=purpose, settings=LOAD_SETTINGS)) as target,
    ):
        finished = read_finished_backfill(source, target, tenant, tables)
        target.rollback()
        if finished is not None:
            return finished
        _check_not_live(target, tenant)
        with _only_backfill(target, tenant):
            _clear(source, target, tenant, tables)
            with _slot_dropped_on_failure(source, tenant):
                _copy(attempt, source, target, report=report)
                finished = read_finished_backfill(source, target, tenant, tables)
                target.rollback()
            _analyze(target, tables)
    if finished is None:
        raise TransientError(
            f'backfill of tenant "{tenant.key}" ended, but its slot or its chunks are gone',
            detail="Another process started over, or the slot was invalidated meanwhile.",
            hint="Check max_slot_wal_keep_size and idle_replication_slot_timeout of the source.",
        )
    return finished


def _check_not_live(target: connection, tenant: Tenant) -> None:
    # Starting over deletes the tenant's rows in the target. They may be the only ones.
    with target:
        phase = require_registration(target, tenant.key).phase
    if phase in (Phase.CUTTING_OVER, Phase.LIVE):
        raise IllegalPhaseError(
            f'tenant "{tenant.key}" cannot be copied in phase "{phase}"',
            detail="Its rows in the target are in use.",
        )


@contextmanager
def _only_backfill(target: connection, tenant: Tenant) -> Iterator[None]:
    """Keep other backfills of this tenant away; the lock ends with the session."""
    with target, target.cursor() as cursor:
        end_leftover_sessions(target, tenant)
        cursor.execute("SELECT set_config('lock_timeout', %s, false)", (LOCK_TIMEOUT,))
        try:
            cursor.execute(
                "SELECT pg_advisory_lock(hashtextextended('tenantferry backfill ' || %s, 0))",
                (tenant.key,),
            )
        except errors.LockNotAvailable:
            raise TransientError(
                f'another backfill of tenant "{tenant.key}" is still running'
            ) from None
        cursor.execute("SELECT set_config('lock_timeout', '0', false)")
    yield


def _clear(source: connection, target: connection, tenant: Tenant, tables: Sequence[Table]) -> None:
    end_leftover_sessions(source, tenant)
    with target:
        forget_attempt(target, tenant)
    # Only now: the commit above keeps every earlier attempt from adding rows behind us.
    delete_rows(target, tenant, tables)
    if drop_slot(source, tenant.slot):
        logger.info("dropped the slot of an earlier attempt slot=%s", tenant.slot)


@contextmanager
def _slot_dropped_on_failure(source: connection, tenant: Tenant) -> Iterator[None]:
    """Leave no slot that nobody will read: it would keep the log until the disk is full."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(psycopg2.Error, TransientError):
            drop_slot(source, tenant.slot)
        raise


def _copy(
    attempt: _Attempt,
    source: connection,
    target: connection,
    *,
    report: Callable[[BackfillProgress], None],
) -> None:
    tenant, tables = attempt.tenant, attempt.tables
    files = read_heap_files(source, tables)
    with exported_snapshot(
        attempt.source,
        slot=tenant.slot,
        temporary=False,
        timeout_seconds=tenant.slot_timeout_seconds,
    ) as snapshot:
        chunks = _plan(attempt, snapshot)
        _store_plan(target, tenant, chunks, snapshot.consistent_point)
        job = CopyJob(
            source=attempt.source,
            target=attempt.target,
            tenant=tenant.key,
            tenant_id=tenant.id,
            purpose=session_purpose(tenant),
            snapshot=snapshot,
            tables={table.qualified: table for table in tables},
            files=files,
        )
        copy_chunks(job, chunks, workers=tenant.backfill_workers, report=report)
    with target:
        finish_round(
            target, tenant.key, number=FIRST_ROUND, consistent_point=snapshot.consistent_point
        )


def _store_plan(
    target: connection, tenant: Tenant, chunks: Sequence[Chunk], consistent_point: int
) -> None:
    with target:
        start_round(target, tenant.key, number=FIRST_ROUND, consistent_point=consistent_point)
        store_chunks(target, tenant.key, map(_record, chunks))
        # The copied rows need no origin: changes of this tenant travel back only from the
        # cutover on, and a slot for that begins there.
        reset_stream(target, tenant.key, consistent_point)
    logger.info(
        "planned backfill tenant=%s consistent_point=%s chunks=%s rows=%s",
        tenant.key,
        format_lsn(consistent_point),
        len(chunks),
        sum(chunk.estimated_rows for chunk in chunks),
    )


def _plan(attempt: _Attempt, snapshot: Snapshot) -> list[Chunk]:
    purpose = session_purpose(attempt.tenant)
    with closing(
        open_connection(attempt.source, purpose=purpose, settings=TEXT_SETTINGS)
    ) as source:
        import_snapshot(source, snapshot)
        return [
            chunk
            for table in attempt.tables
            for chunk in plan_chunks(source, table, chunk_rows=attempt.tenant.chunk_rows)
        ]


def _record(chunk: Chunk) -> ChunkRecord:
    return ChunkRecord(
        schema=chunk.schema,
        table=chunk.table,
        number=chunk.number,
        key_columns=tuple(column.name for column in chunk.key_columns),
        lower=chunk.lower,
        upper=chunk.upper,
        estimated_rows=chunk.estimated_rows,
        round=FIRST_ROUND,
    )


def _analyze(target: connection, tables: Sequence[Table]) -> None:
    """Refresh statistics: the validation and the tenant's first queries are planned with them."""
    for table in tables:
        with target, target.cursor() as cursor:
            cursor.execute(sql.SQL("ANALYZE {}").format(sql.Identifier(*table.qualified)))
