"""What remains to be done once a tenant is live. None of it concerns its clients."""

from __future__ import annotations

import logging
from collections.abc import Callable

import psycopg2
from psycopg2.extensions import connection

from tenantferry.backfill.snapshot import drop_slot
from tenantferry.control.pauses import WritePause, record_dropped
from tenantferry.control.streams import StreamState, read_stream, retire_stream
from tenantferry.errors import TenantferryError, TransientError
from tenantferry.moves.move import Move
from tenantferry.moves.probe import probe
from tenantferry.moves.sessions import open_source
from tenantferry.moves.witnessing import TrespassError, end_witness
from tenantferry.schema.publication import drop_publication
from tenantferry.stream.handshake import stop_at

logger = logging.getLogger(__name__)

# A stream that works ends at once.
_STOP_TIMEOUT_SECONDS = 10.0


def complete(
    move: Move, target: connection, recorded: WritePause, on_step: Callable[[str], None]
) -> None:
    """
    End the stream, let the source forget about it, and look at the tenant as its application.

    The tenant is live whatever happens to its source, so the look comes before any complaint.

    :param target: the step's session, outside a transaction; commits.
    :raises PermanentError: if the application does not reach the target as this tenant.
    :raises TrespassError: if the move has changed rows of other tenants.
    :raises TransientError: if something is left behind on the source; the next call goes on.
    """
    if recorded.dropped_at is not None and recorded.probed_at is not None:
        return
    # One that does not end now finds the tenant live when it starts again.
    _attempt("end the stream", lambda: _stop_stream(move, target, recorded))
    on_step("stopped")
    trespasses: list[TrespassError] = []
    failures = [
        *_attempt("end the witness", lambda: _end_witness(move, trespasses)),
        *_attempt("drop the slot and the publication", lambda: _drop(move)),
        *_attempt("drop the replication origin", lambda: _retire(move, target)),
    ]
    if not failures:
        with target:
            record_dropped(target, recorded.id)
    on_step("dropped")
    probe(move)
    for trespass in trespasses:
        raise trespass
    if failures:
        raise TransientError(
            f'tenant "{move.tenant.key}" is live, but log is still kept for it',
            detail=" ".join(failures),
            hint=f'The retry drops slot "{move.tenant.slot}" of the source again, and slot'
            f' "{move.tenant.witness_slot}" of the target. If the source is gone for good,'
            f" set dropped_at of row {recorded.id} of tenantferry.write_pauses in the target.",
        )


def _attempt(what: str, act: Callable[[], None]) -> list[str]:
    """Return what went wrong."""
    try:
        act()
    except (TenantferryError, psycopg2.Error) as failure:
        logger.warning("could not %s: %s", what, failure)
        return [f"Could not {what}: {' '.join(str(failure).split())}"]
    return []


def _stop_stream(move: Move, target: connection, recorded: WritePause) -> None:
    with target:
        record = read_stream(target, move.tenant.key)
    if record is None or record.state in (StreamState.STOPPED, StreamState.INTERRUPTED):
        return
    stop_at(
        move.target,
        move.tenant.key,
        recorded.final_lsn or record.position,
        timeout_seconds=_STOP_TIMEOUT_SECONDS,
    )


def _drop(move: Move) -> None:
    # While the slot is there, the source keeps its log.
    with open_source(move.source, purpose=f"complete {move.tenant.key}") as source:
        drop_slot(source, move.tenant.slot)
        drop_publication(source, move.tenant)


def _end_witness(move: Move, trespasses: list[TrespassError]) -> None:
    """Keep in mind what the witness has seen: all else is done all the same."""
    try:
        end_witness(move)
    except TrespassError as trespass:
        trespasses.append(trespass)


def _retire(move: Move, target: connection) -> None:
    with target:
        retire_stream(target, move.tenant.key)
