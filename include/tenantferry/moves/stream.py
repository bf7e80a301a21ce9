"""
Step four, beside the next ones: keep the target current until the cutover says stop.

After a rollback it is the run of the rollback that hosts the stream, until a later move begins.
The run that has the tenant streams it; a stream of any other run ends, successfully.
"""

from __future__ import annotations

import threading
from contextlib import closing

from tenantferry.connections import open_connection
from tenantferry.control.phases import AT_TARGET, IllegalPhaseError, Phase
from tenantferry.control.registry import Registration, require_registration
from tenantferry.control.streams import StreamRecord, mark_copy_again, read_stream
from tenantferry.errors import CopyAgainError, TransientError
from tenantferry.moves.move import Move
from tenantferry.moves.sessions import open_source
from tenantferry.moves.throttling import throttled
from tenantferry.moves.witnessing import looking_on
from tenantferry.schema.catalog import read_tables
from tenantferry.stream.drift import DriftError
from tenantferry.stream.running import StreamResult, run_stream

_COPIED = frozenset({Phase.STREAMING, Phase.VALIDATED, Phase.CUTTING_OVER})


def stream(move: Move, *, stop: threading.Event) -> StreamResult:
    """
    Apply the source's changes until the tenant is live, another run has it, or *stop* is set.

    :param stop: set it to end at the next transaction boundary; nothing is lost by it.
    :raises TransientError: if the rows are being copied, again.
    :raises IllegalPhaseError: if they were never copied.
    """
    tenant = move.tenant
    with closing(open_connection(move.target, purpose=f"stream step {tenant.key}")) as target:
        registration = require_registration(target, tenant.key)
        record = read_stream(target, tenant.key)
    if (ended := _tell_end(move, registration, record)) is not None:
        return ended
    phase = registration.phase
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
        with throttled(move) as throttle, looking_on(move):
            return run_stream(
                move.source, move.target, tenant, tables, stop=stop, throttle=throttle
            )
    except (CopyAgainError, DriftError, TransientError) as failure:
        finished = _look_again(move, is_lost=isinstance(failure, CopyAgainError))
        if finished is None:
            raise
        return finished


def _look_again(move: Move, *, is_lost: bool) -> StreamResult | None:
    """
    Look again after a failure: a later run has taken over, or a cutover has dropped the slot.

    :param is_lost: whether only a new backfill helps; that is recorded.
    :return: the result of a stream that is over.
    """
    tenant = move.tenant.key
    try:
        target = open_connection(move.target, purpose=f"stream step {tenant}")
    except TransientError:  # it is the target that failed: the next start looks
        return None
    with closing(target), target:
        registration = require_registration(target, tenant)
        ended = _tell_end(move, registration, read_stream(target, tenant))
        if ended is None and is_lost:
            mark_copy_again(target, tenant, needed=True)
    return ended


def _tell_end(
    move: Move, registration: Registration, record: StreamRecord | None
) -> StreamResult | None:
    """Return the result of a stream that has nothing to do any more, else ``None``."""
    if not registration.is_of(move.run_id):
        reason = f'run "{registration.run_id}" has the tenant'
    elif registration.phase in AT_TARGET:
        reason = "the tenant is live"
    else:
        return None
    return StreamResult(
        changes=0 if record is None else record.changes,
        transactions=0 if record is None else record.transactions,
        position=0 if record is None else record.position,
        reason=reason,
    )
