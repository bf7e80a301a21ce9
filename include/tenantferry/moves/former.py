"""An attempt of a cutover or rollback that died with its guard, as when their machine is lost."""

from __future__ import annotations

from psycopg2 import errors
from psycopg2.extensions import connection

from tenantferry.control.direction import Direction
from tenantferry.control.pauses import read_open_pause
from tenantferry.moves.move import Move
from tenantferry.traffic.settlement import Attempt, settle


def settle_former(move: Move, target: connection) -> None:
    """
    Bring an attempt that was left open to its end: clients may be waiting for it.

    For every step right after it has the tenant to itself: then no other attempt lives.

    :param target: the step's session, of `exclusive_step`; this commits.
    :raises TransientError: if something could not be brought to its end; the retry goes on.
    """
    try:
        with target:
            former = read_open_pause(target, move.tenant.key)
    except errors.UndefinedTable:  # nothing was ever prepared in this target
        return
    if former is not None:
        attempt = make_attempt(move, former.id, direction=former.direction)
        settle(attempt, target, reason="a later step found it open")


def make_attempt(
    move: Move,
    number: int,
    *,
    direction: Direction = Direction.FORWARD,
    source_pid: int | None = None,
) -> Attempt:
    """
    Return what it takes to settle an attempt.

    :param number: of the attempt; 0 where it is not recorded yet.
    """
    return Attempt(
        id=number,
        direction=direction,
        tenant=move.tenant.key,
        alias=move.tenant.alias,
        slot=move.tenant.slot,
        source=move.source,
        target=move.target,
        router=move.router,
        run_id=move.run_id,
        source_pid=source_pid,
    )
