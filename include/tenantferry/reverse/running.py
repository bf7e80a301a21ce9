"""Follow the target for all tenants that can go back, until told to stop."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial

import psycopg2
from psycopg2 import errors
from psycopg2.extensions import connection

from tenantferry.connections import ConnectionParams, open_connection
from tenantferry.control.chunks import read_chunk_tables
from tenantferry.control.graces import REVERSE_SLOT
from tenantferry.control.reverse_slot import (
    ReverseSlot,
    keep_reverse_slot,
    read_reverse_slot,
)
from tenantferry.control.streams import (
    END_SESSION_TIMEOUT_SECONDS,
    StreamState,
    lock_stream,
)
from tenantferry.errors import TenantferryError, TransientError
from tenantferry.lsn import format_lsn
from tenantferry.reverse.board import Board
from tenantferry.reverse.dispatching import Dispatcher
from tenantferry.reverse.follower import LaneSource
from tenantferry.reverse.lane import Lane
from tenantferry.reverse.lanes import Lanes
from tenantferry.reverse.loop import Ending, Loop
from tenantferry.reverse.slot import check_loss, read_slot, settle_loss
from tenantferry.schema.reverse_publication import read_reverse_tables
from tenantferry.stream.failures import explain
from tenantferry.stream.heartbeat import Heartbeat
from tenantferry.stream.relations import can_send_binary
from tenantferry.stream.walsender import Walsender

__all__ = ["LaneSource", "ReverseResult", "run_reverse"]

logger = logging.getLogger(__name__)

# What all lanes together keep in memory of what their sources lack; the rest goes to disk.
MEMORY_BYTES = 256 * 1024 * 1024
# A tenant that writes nothing for so long costs no session in its source.
IDLE_SECONDS = 30.0

_PURPOSE = "reverse stream"
# No key of a tenant: the lock of the one process that reads the slot, and its own markers.
_LABEL = "*"


@dataclass(frozen=True, slots=True)
class ReverseResult:
    """
    How the reverse streams ended.

    :ivar changes: read since the start, of all tenants.
    :ivar read_to: LSN of the target.
    :ivar lanes: tenants that were followed at the end.
    :ivar reason: one sentence.
    """

    changes: int
    read_to: int
    lanes: int
    reason: str


def run_reverse(
    target: ConnectionParams,
    sources: Callable[[str], LaneSource],
    *,
    stop: threading.Event,
    wal_budget_bytes: int,
    memory_bytes: int = MEMORY_BYTES,
    idle_seconds: float = IDLE_SECONDS,
) -> ReverseResult:
    """
    Apply what live tenants write in the target to their sources until *stop* is set.

    Without a tenant in grace it stays, and lets the target delete its log. A session that still
    does the same is ended first: the newest start wins. Whatever happens, also to this process,
    the next start goes on exactly where each source stands.

    :param sources: looks up where a tenant's changes go; called when they are applied, in another
        thread, so that one tenant's broken connection is only that tenant's.
    :param wal_budget_bytes: a tenant whose source lacks more of the target's log loses its way
        back.
    :param memory_bytes: about what may wait in memory; what does not fit waits in temporary files,
        and what does not fit there either is read again when its source can take it.
    :param idle_seconds: the session with a source is closed when nothing came for so long.
    :return: also where no slot is recorded, or not any more.
    :raises TransientError: if the target was lost; the next start goes on.
    :raises PermanentError: if the slot was lost, and with it the way back of all tenants.
    """
    try:
        while True:
            with ExitStack() as stack:
                result = _run(
                    stack, target, sources, stop=stop, wal_budget_bytes=wal_budget_bytes,
                    memory_bytes=memory_bytes, idle_seconds=idle_seconds,
                )  # fmt: skip
            if result is not None:
                return result
    except TenantferryError as error:
        return _settle(target, error)
    except psycopg2.Error as error:
        return _settle(target, explain(error, "run the reverse streams"))


def _run(
    stack: ExitStack,
    target: ConnectionParams,
    sources: Callable[[str], LaneSource],
    *,
    stop: threading.Event,
    wal_budget_bytes: int,
    memory_bytes: int,
    idle_seconds: float,
) -> ReverseResult | None:
    """Follow the target once; ``None`` where it is to be read again from where it is confirmed."""
    control = stack.enter_context(
        closing(open_connection(target, purpose=_PURPOSE, autocommit=True))
    )
    with control.cursor() as cursor:
        lock_stream(cursor, _LABEL, what="reverse stream")
    record = read_reverse_slot(control)
    if record is None:
        return ReverseResult(0, 0, 0, "no reverse slot is recorded")
    _take_slot(control, record)
    board = Board(control)
    walsender = stack.enter_context(
        Walsender(
            target,
            slot=REVERSE_SLOT,
            purpose=_PURPOSE,
            position=record.confirmed,
            binary=can_send_binary(control, read_reverse_tables(control, REVERSE_SLOT)),
            skip_replicated=True,
        )
    )

    def lose(lane: Lane, reason: str) -> None:
        loop.lose(lane, reason)

    dispatcher = Dispatcher(walsender, control, position=record.confirmed, lose=lose)
    lanes = Lanes(
        dispatcher.shapes, sources, partial(_read_copied, target), memory_bytes=memory_bytes,
        idle_seconds=idle_seconds,
    )  # fmt: skip
    stack.callback(lanes.end)
    loop = Loop(
        walsender=walsender,
        dispatcher=dispatcher,
        lanes=lanes,
        board=board,
        heartbeat=Heartbeat(control, _LABEL),
        confirmed=record.confirmed,
        wal_budget_bytes=wal_budget_bytes,
    )
    logger.info("reverse streams start position=%s", format_lsn(record.confirmed))
    ending = loop.run(stop)
    if ending is Ending.TO_BE_READ_AGAIN:
        logger.info("reverse streams read again position=%s", format_lsn(loop.confirmed))
        return None
    is_given_up = ending is Ending.GIVEN_UP
    reason = _GIVEN_UP if is_given_up else f"interrupted at {format_lsn(dispatcher.read_to)}"
    logger.info("reverse streams end reason=%s", reason)
    return ReverseResult(dispatcher.changes, dispatcher.read_to, len(lanes), reason)


_GIVEN_UP = "the reverse slot was given up"


def _read_copied(target: ConnectionParams, tenant: str) -> set[tuple[str, str]]:
    with closing(open_connection(target, purpose=f"reverse {tenant} tables")) as session, session:
        return read_chunk_tables(session, tenant)


def _take_slot(control: connection, record: ReverseSlot) -> None:
    """
    Check that the slot still holds what the sources lack, and end a session of ours that uses it.

    :raises PermanentError: if it does not: then no tenant that is live now can go back.
    :raises TransientError: if another session does not give way.
    """
    for _ in range(3):
        slot = read_slot(control)
        if check_loss(slot, recorded=record.confirmed) is not None:
            raise settle_loss(control) or TransientError(
                f'replication slot "{REVERSE_SLOT}" of the target was replaced just now',
                hint="The next start reads the new one.",
            )
        if slot is None or slot.active_pid is None:
            return
        if not slot.is_ours:
            break
        with control.cursor() as cursor:
            # Left behind by a host that is gone; the lock is already ours.
            cursor.execute(
                "SELECT pg_terminate_backend(%s, %s)",
                (slot.active_pid, END_SESSION_TIMEOUT_SECONDS * 1000),
            )
    raise TransientError(
        f'replication slot "{REVERSE_SLOT}" of the target is in use',
        detail="Another session reads it.",
        hint="End that session; see pg_replication_slots.active_pid.",
    )


def _settle(target: ConnectionParams, error: TenantferryError) -> ReverseResult:
    """Record why the streams ended; where the slot was given up meanwhile, that is no failure."""
    try:
        settings = {"lock_timeout": "5s"}
        with (
            closing(
                open_connection(target, purpose=f"{_PURPOSE} failure", settings=settings)
            ) as session,
            session,
        ):
            # Waits for who is just giving it up, and has ended our session in order to.
            record = keep_reverse_slot(session)
            if record is None and isinstance(error, TransientError):
                return ReverseResult(0, 0, 0, _GIVEN_UP)
            _record_failure(session, str(error))
    except errors.LockNotAvailable:
        logger.info("another process runs the reverse streams now")
    except (psycopg2.Error, TenantferryError):
        logger.warning("could not record the failure of the reverse streams")
    raise error


def _record_failure(session: connection, error: str) -> None:
    """
    Write down why the streams ended, unless another process has taken over.

    :param session: open transaction; the caller commits.
    :raises LockNotAvailable: if one has.
    """
    with session.cursor() as cursor:
        cursor.execute("SET LOCAL lock_timeout = '2s'")
        cursor.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended('tenantferry stream ' || %s, 0))",
            (_LABEL,),
        )
        cursor.execute("UPDATE tenantferry.reverse_slot SET error = %s", (error,))
        cursor.execute(
            "UPDATE tenantferry.streams SET state = %s, error = %s WHERE direction = 'reverse'"
            " AND tenant IN (SELECT tenant FROM tenantferry.graces"
            " WHERE ended_at IS NULL AND lost_at IS NULL)",
            (StreamState.FAILED, error),
        )
