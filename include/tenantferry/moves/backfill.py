"""Step three: copy every row, round by round, and know the position that they stand for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial

from psycopg2.extensions import connection

from tenantferry.backfill.finished import (
    BackfillResult,
    find_obstacle,
    read_copied,
    read_finished_backfill,
)
from tenantferry.backfill.progress import BackfillProgress
from tenantferry.backfill.running import run_backfill
from tenantferry.control.phases import AT_TARGET, Phase, check_not_aborting
from tenantferry.control.registry import change_phase, check_owner, require_registration
from tenantferry.control.streams import mark_copy_again, read_stream
from tenantferry.errors import PermanentError
from tenantferry.moves.former import settle_former
from tenantferry.moves.move import Move
from tenantferry.moves.sessions import exclusive_step, open_source
from tenantferry.moves.throttling import throttled
from tenantferry.moves.witnessing import looking_on
from tenantferry.schema.catalog import read_tables
from tenantferry.schema.model import Table
from tenantferry.stream.catching_up import catch_up

logger = logging.getLogger(__name__)


def backfill(
    move: Move,
    *,
    repair: bool = False,
    report: Callable[[BackfillProgress], None] | None = None,
) -> BackfillResult:
    """
    Copy the tenant's rows, unless they are copied and the slot still holds what came after.

    A try that died is gone on from: what it has copied stays. Only where that is of no use any
    more, e.g. because the slot is lost, the tenant's rows and its slot go and all begins anew.
    Where tables were published since, only these are copied.
    A tenant that was handed over is left alone. One that was rolled back is copied already.

    :param repair: leave rows that a validation found to differ to the next one, which copies their
        chunks again.
    :param report: called with the progress about once a second; by default it is logged.
    :raises SupersededError: if another run has the tenant.
    """
    tenant = move.tenant
    with (
        open_source(move.source, purpose=f"backfill {tenant.key}") as source,
        exclusive_step(move.target, tenant=tenant.key, step="backfill step") as target,
    ):
        settle_former(move, target)
        registration = require_registration(target, tenant.key)
        phase = registration.phase
        if phase is Phase.CUTTING_OVER or phase in AT_TARGET:
            return _recorded(target, move)
        check_owner(registration, move.run_id)
        check_not_aborting(tenant.key, phase)
        tables = read_tables(source, tenant)
        if repair:
            _trust_what_can_be_repaired(target, tenant.key)
        obstacle = find_obstacle(source, target, tenant, tables)
        finished = read_finished_backfill(source, target, tenant, tables)
        if finished is not None and phase is not Phase.BACKFILLING:
            target.rollback()
            return finished
        with target:
            change_phase(
                target,
                tenant.key,
                Phase.BACKFILLING,
                run_id=move.run_id,
                reason=obstacle or "some tables or chunks are not copied, or tables went",
            )
        return copy_in_step(target, move, tables, report=report)


def _trust_what_can_be_repaired(target: connection, tenant: str) -> None:
    stream = read_stream(target, tenant)
    if stream is not None and stream.repairable:
        with target:
            mark_copy_again(target, tenant, needed=False)


def copy_in_step(
    target: connection,
    move: Move,
    tables: Sequence[Table],
    *,
    report: Callable[[BackfillProgress], None] | None = None,
) -> BackfillResult:
    """
    Copy what is not copied, within a step that already keeps other steps of this tenant away.

    :param target: the step's session, outside a transaction; this commits the phase.
    """
    tenant = move.tenant
    with throttled(move) as throttle, looking_on(move):
        finished = run_backfill(
            move.source,
            move.target,
            tenant,
            tables,
            catch_up=partial(catch_up, move.source, move.target, tenant, tables),
            report=report or _log_progress,
            throttle=throttle,
        )
    with target:
        change_phase(
            target,
            tenant.key,
            Phase.STREAMING,
            run_id=move.run_id,
            lsn=finished.consistent_point,
            reason=f"{finished.rows} rows of {finished.tables} tables are copied in"
            f" {finished.rounds} round(s)",
        )
    return finished


def _recorded(target: connection, move: Move) -> BackfillResult:
    copied = read_copied(target, move.tenant)
    target.rollback()
    if copied is None:
        raise PermanentError(f'tenant "{move.tenant.key}" was handed over but never copied')
    return copied


def _log_progress(progress: BackfillProgress) -> None:
    logger.info(
        "copied rows=%s of about %s bytes=%s rows_per_second=%.0f eta_seconds=%s round=%s"
        " snapshot_seconds=%.0f",
        progress.rows,
        progress.estimated_rows,
        progress.bytes,
        progress.rows_per_second,
        progress.eta_seconds,
        progress.round,
        progress.snapshot_seconds,
    )
