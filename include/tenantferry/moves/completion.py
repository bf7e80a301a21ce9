"""What remains to be done once a tenant is live. None of it concerns its clients."""

from __future__ import annotations

import logging
from collections.abc import Callable

import psycopg2
from psycopg2.extensions import connection

from tenantferry.backfill.snapshot import drop_slot
from tenantferry.control.pauses import WritePause
from tenantferry.control.streams import StreamState, read_stream, retire_stream
from tenantferry.errors import TenantferryError
from tenantferry.moves.move import Move
from tenantferry.moves.probe import probe
from tenantferry.moves.sessions import open_source
from tenantferry.schema.publication import drop_publication
from tenantferry.stream.handshake import stop_at

logger = logging.getLogger(__name__)

# A stream that works ends at once. One that does not finds the tenant live when it starts again.
_STOP_TIMEOUT_SECONDS = 10.0


def complete(
    move: Move, target: connection, recorded: WritePause, on_step: Callable[[str], None]
) -> None:
    """
    End the stream, let the source forget about it, and look at the tenant as its application.

    What fails here is logged: the tenant is live whatever happens to its source. Only the probe
    raises.

    :param target: the step's session, outside a transaction; commits.
    """
    if recorded.probed_at is not None:
        return
    _attempt("end the stream", lambda: _stop_stream(move, target, recorded))
    on_step("stopped")
    _attempt("drop the slot and the publication", lambda: _drop(move))
    _attempt("drop the replication origin", lambda: _retire(move, target))
    on_step("dropped")
    probe(move)


def _attempt(what: str, act: Callable[[], None]) -> None:
    try:
        act()
    except (TenantferryError, psycopg2.Error) as failure:
        logger.warning("could not %s: %s", what, failure)


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


def _retire(move: Move, target: connection) -> None:
    with target:
        retire_stream(target, move.tenant.key)
