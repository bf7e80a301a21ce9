"""Step four, beside the next ones: keep the target current until the cutover says stop."""

from __future__ import annotations

import threading
from contextlib import closing

from tenantferry.connections import open_connection
from tenantferry.control.phases import IllegalPhaseError, Phase
from tenantferry.control.registry import require_registration
from tenantferry.control.streams import (
    StreamRecord,
    mark_copy_again,
    read_stream,
    require_stream,
)
from tenantferry.errors import CopyAgainError, TransientError
from tenantferry.moves.move import Move
from tenantferry.moves.sessions import open_source
from tenantferry.schema.catalog import read_tables
from tenantferry.stream.running import StreamResult, run_stream

_COPIED = frozenset({Phase.STREAMING, Phase.VALIDATED, Phase.CUTTING_OVER})


def stream(move: Move, *, stop: threading.Event) -> StreamResult:
    """
    Apply the source's changes until the tenant is live, or until *stop* is set.

    :param stop: set it to end at the next transaction boundary; nothing is lost by it.
    :raises TransientError: if the rows are being copied, again.
    :raises IllegalPhaseError: if they were never copied.
    """
    tenant = move.tenant
    with closing(open_connection(move.target, purpose=f"stream step {tenant.key}")) as target:
        phase = require_registration(target, tenant.key).phase
        record = read_stream(target, tenant.key)
    if phase is Phase.LIVE and record is not None:
        return _over(record)
    if phase is Phase.BACKFILLING:
        raise TransientError(
            f'tenant "{tenant.key}" is being copied',
            hint="The stream begins when that is done.",
        )
    if phase not in _COPIED or record is None:
        raise IllegalPhaseError(
            f'tenant "{tenant.key}" has nothing to stream in phase "{phase}"',
            hint='Clear the task "backfill" and those after it.',
        )
    with open_source(move.source, purpose=f"stream step {tenant.key}") as source:
        tables = read_tables(source, tenant)
    try:
        return run_stream(move.source, move.target, tenant, tables, stop=stop)
    except CopyAgainError:
        finished = _settle_loss(move)
        if finished is None:
            raise
        return finished


def _settle_loss(move: Move) -> StreamResult | None:
    """
    Look again after a loss: a cutover that went live meanwhile has dropped the slot.

    :return: the result of a stream that is over; else the loss is recorded.
    """
    tenant = move.tenant.key
    with closing(open_connection(move.target, purpose=f"stream step {tenant}")) as target, target:
        if require_registration(target, tenant).phase is Phase.LIVE:
            return _over(require_stream(target, tenant))
        mark_copy_again(target, tenant, needed=True)
    return None


def _over(record: StreamRecord) -> StreamResult:
    return StreamResult(
        changes=record.changes,
        transactions=record.transactions,
        position=record.position,
        reason="the tenant is live",
    )
