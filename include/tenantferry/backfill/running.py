"""The whole backfill of one tenant: rounds, until every chunk is copied."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager

import psycopg2
from psycopg2 import errors, sql
from psycopg2.extensions import connection

from tenantferry.backfill.admitting import admit_tables
from tenantferry.backfill.clearing import (
    delete_rows,
    end_leftover_sessions,
    forget_attempt,
    session_purpose,
)
from tenantferry.backfill.copying import LOAD_SETTINGS
from tenantferry.backfill.failures import describe_failure
from tenantferry.backfill.finished import BackfillResult, find_obstacle, read_finished_backfill
from tenantferry.backfill.pace import Pace
from tenantferry.backfill.progress import BackfillProgress
from tenantferry.backfill.rounds import Backfill, copy_first_round, copy_next_round
from tenantferry.backfill.snapshot import drop_slot
from tenantferry.connections import ConnectionParams, open_connection
from tenantferry.control.chunks import close_dead_rounds, has_pending_chunks, read_chunks
from tenantferry.control.phases import AT_TARGET, IllegalPhaseError, Phase
from tenantferry.control.registry import require_registration
from tenantferry.control.streams import mark_copy_again
from tenantferry.errors import CopyAgainError, TransientError
from tenantferry.fleet import Tenant
from tenantferry.schema.model import Table
from tenantferry.throttle.throttle import UNTHROTTLED, Throttle

logger = logging.getLogger(__name__)

# How long to wait for a backfill of the same tenant that is about to end.
LOCK_TIMEOUT = "60s"


def run_backfill(
    source_params: ConnectionParams,
    target_params: ConnectionParams,
    tenant: Tenant,
    tables: Sequence[Table],
    *,
    catch_up: Callable[[int], object],
    report: Callable[[BackfillProgress], None],
    throttle: Throttle = UNTHROTTLED,
) -> BackfillResult:
    """
    Copy the tenant's rows, unless that is done and the slot holds all that came after.

    Commits as it goes. An attempt that died is gone on from with the next round; it is started over
    only where what it has copied is of no use any more, and the log says why. Tables that were
    published since the others were copied are copied in a further round.

    :param tables: the largest first.
    :param catch_up: apply what was committed before an LSN to the copied chunks, so that P is
        exactly there: `tenantferry.stream.catching_up.catch_up`.
    :param report: called with the progress, at most once a second.
    :param throttle: slows down the workers.
    :raises TransientError: if a retry may help; it goes on where this ended.
    :raises PermanentError: if the source cannot have a slot, or a row cannot be written.
    """
    pace = Pace(tenant.round_budget_seconds)
    backfill = Backfill(
        source_params, target_params, tenant, tables, catch_up, report, pace, throttle
    )
    try:
        return _run(backfill)
    except psycopg2.Error as error:
        raise describe_failure(error, doing=f'copy tenant "{tenant.key}"') from None


def _run(backfill: Backfill) -> BackfillResult:
    tenant, tables = backfill.tenant, backfill.tables
    purpose = session_purpose(tenant)
    with (
        closing(open_connection(backfill.source, purpose=purpose, autocommit=True)) as source,
        closing(
            open_connection(backfill.target, purpose=purpose, settings=LOAD_SETTINGS)
        ) as target,
    ):
        with target:
            finished = read_finished_backfill(source, target, tenant, tables)
            if finished is not None:
                close_dead_rounds(target, tenant.key)
                return finished
        _check_not_live(target, tenant)
        with _only_backfill(target, tenant):
            end_leftover_sessions(source, tenant)
            with _useless_slot_dropped(source, target, tenant):
                _copy_rounds(backfill, source, target)
            finished = read_finished_backfill(source, target, tenant, tables)
            target.rollback()
            _analyze(target, tables)
    if finished is None:
        raise TransientError(
            f'backfill of tenant "{tenant.key}" ended, but its slot or its chunks are gone',
            detail="Another process started over, a table came, or the slot was invalidated"
            " meanwhile.",
            hint="Check max_slot_wal_keep_size and idle_replication_slot_timeout of the source.",
        )
    return finished


def _check_not_live(target: connection, tenant: Tenant) -> None:
    # Starting over deletes the tenant's rows in the target. They may be the only ones.
    with target:
        phase = require_registration(target, tenant.key).phase
    if phase is Phase.CUTTING_OVER or phase in AT_TARGET:
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


def _copy_rounds(backfill: Backfill, source: connection, target: connection) -> None:
    tenant = backfill.tenant
    with target:
        obstacle = find_obstacle(source, target, tenant, backfill.tables)
    if obstacle is not None:
        logger.info("backfill starts from nothing tenant=%s reason=%s", tenant.key, obstacle)
        _clear(backfill, source, target)
        copy_first_round(backfill, source, target)
    else:
        admit_tables(backfill, source, target)
    while _is_pending(target, tenant):
        with target:
            close_dead_rounds(target, tenant.key)
            obstacle = find_obstacle(source, target, tenant, backfill.tables)
        if obstacle is not None:
            raise TransientError(
                f'could not go on with the backfill of tenant "{tenant.key}"',
                detail=f"Meanwhile {obstacle}.",
                hint="The retry starts over. Check max_slot_wal_keep_size and"
                " idle_replication_slot_timeout of the source.",
            )
        copy_next_round(backfill, source, target)


def _is_pending(target: connection, tenant: Tenant) -> bool:
    with target:
        return has_pending_chunks(target, tenant.key)


def _clear(backfill: Backfill, source: connection, target: connection) -> None:
    tenant = backfill.tenant
    with target:
        forget_attempt(target, tenant)
    # Only now: the commit above keeps every earlier attempt from adding rows behind us.
    delete_rows(target, tenant, backfill.tables)
    if drop_slot(source, tenant.slot):
        logger.info("dropped the slot of an earlier attempt slot=%s", tenant.slot)


@contextmanager
def _useless_slot_dropped(source: connection, target: connection, tenant: Tenant) -> Iterator[None]:
    """
    Leave no slot behind a failure that nobody will read: it would keep the log until the disk is
    full. The retry goes on with the slot of an attempt that has copied something.
    """
    try:
        yield
    except BaseException as failure:
        # Nothing of it may hide the failure; the retry looks again.
        with contextlib.suppress(psycopg2.Error, TransientError):
            target.rollback()
            with target:
                if is_lost := isinstance(failure, CopyAgainError):
                    mark_copy_again(target, tenant.key, needed=True)
                chunks = read_chunks(target, tenant.key)
            if is_lost or all(chunk.done_at is None for chunk in chunks):
                drop_slot(source, tenant.slot)
        raise


def _analyze(target: connection, tables: Sequence[Table]) -> None:
    """Refresh statistics: the validation and the tenant's first queries are planned with them."""
    for table in tables:
        with target, target.cursor() as cursor:
            cursor.execute(sql.SQL("ANALYZE {}").format(sql.Identifier(*table.qualified)))
