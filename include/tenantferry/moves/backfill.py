"""Step three: copy every row under one snapshot, and know the position it stands for."""

from __future__ import annotations

import logging
from collections.abc import Callable

from psycopg2.extensions import connection

from tenantferry.backfill.finished import BackfillResult, read_copied, read_finished_backfill
from tenantferry.backfill.progress import BackfillProgress
from tenantferry.backfill.running import run_backfill
from tenantferry.control.phases import Phase
from tenantferry.control.registry import change_phase, require_registration
from tenantferry.errors import PermanentError
from tenantferry.moves.former import settle_former
from tenantferry.moves.move import Move
from tenantferry.moves.sessions import exclusive_step, open_source
from tenantferry.schema.catalog import read_tables

logger = logging.getLogger(__name__)


def backfill(
    move: Move, *, report: Callable[[BackfillProgress], None] | None = None
) -> BackfillResult:
    """
    Copy the tenant's rows, unless they are copied and the slot still holds what came after.

    A try that died is started over by itself: its rows and its slot go, a new snapshot is taken.
    A tenant that was handed over is left alone.

    :param report: called with the progress about once a second; by default it is logged.
    """
    tenant = move.tenant
    with (
        open_source(move.source, purpose=f"backfill {tenant.key}") as source,
        exclusive_step(move.target, tenant=tenant.key, step="backfill step") as target,
    ):
        settle_former(move, target)
        phase = require_registration(target, tenant.key).phase
        if phase in (Phase.CUTTING_OVER, Phase.LIVE):
            return _recorded(target, move)
        tables = read_tables(source, tenant)
        finished = read_finished_backfill(source, target, tenant, tables)
        if finished is None:
            with target:
                change_phase(
                    target,
                    tenant.key,
                    Phase.BACKFILLING,
                    run_id=move.run_id,
                    reason="the rows are not copied, or their slot is gone",
                )
            finished = run_backfill(
                move.source,
                move.target,
                tenant,
                tables,
                report=report or _log_progress,
            )
        elif phase is not Phase.BACKFILLING:
            target.rollback()
            return finished
        with target:
            change_phase(
                target,
                tenant.key,
                Phase.STREAMING,
                run_id=move.run_id,
                lsn=finished.consistent_point,
                reason=f"{finished.rows} rows of {finished.tables} tables are copied",
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
        "copied rows=%s of about %s bytes=%s rows_per_second=%.0f eta_seconds=%s",
        progress.rows,
        progress.estimated_rows,
        progress.bytes,
        progress.rows_per_second,
        progress.eta_seconds,
    )
