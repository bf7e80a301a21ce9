"""
The attempts of cutovers and rollbacks: one row each, from PAUSE to RESUME.

The row decides who wins. An attempt is flipped only while nobody undoes it, and undone only while
it is not flipped; both take the row first.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from psycopg2 import sql
from psycopg2.extensions import connection
from psycopg2.extras import Json

from tenantferry.control.direction import Direction
from tenantferry.errors import TransientError
from tenantferry.lsn import format_lsn, parse_lsn


class PauseStep(StrEnum):
    """The steps that are recorded, in their order; each value names its column."""

    PAUSED = "paused_at"
    FENCED = "fenced_at"
    DRAINED = "drained_at"
    COMPARED = "compared_at"
    SEQUENCES = "sequences_at"
    FLIPPED = "flipped_at"
    RESUMED = "resumed_at"


@dataclass(frozen=True, slots=True)
class WritePause:
    """
    One attempt.

    :ivar id: also the number in the comments of the alias files.
    :ivar direction: forward is a cutover, reverse a rollback.
    :ivar dropped_at: when slot, publication and origin were gone.
    :ivar source_pid: of the attempt's session on the source.
    :ivar fence: what the source's fence takes away, to give it back; empty where there is none.
        A rollback gives back what the cutover took.
    :ivar reached: the steps that are done, and when.
    :ivar is_given_up: whether it cannot be flipped any more.
    """

    id: int
    tenant: str
    direction: Direction
    began_at: datetime
    final_lsn: int | None
    undone_at: datetime | None
    probed_at: datetime | None
    dropped_at: datetime | None
    source_pid: int | None
    fence: dict[str, Any]
    sequences: dict[str, int]
    reached: dict[PauseStep, datetime]
    is_given_up: bool


class AttemptLostError(TransientError):
    """Another process undoes this attempt, or has undone it."""


_COLUMNS = (
    "id, tenant, direction, began_at, final_lsn::text, undone_at, probed_at, dropped_at,"
    " source_pid, fence, sequences,"
    " paused_at, fenced_at, drained_at, compared_at, sequences_at, flipped_at, resumed_at,"
    " undoing_at IS NOT NULL"
)


def begin_pause(
    target: connection,
    tenant: str,
    *,
    run_id: str | None,
    seconds: float,
    fence: dict[str, Any],
    source_pid: int,
    direction: Direction = Direction.FORWARD,
) -> int:
    """
    Open an attempt.

    :param target: open transaction; the caller commits it before it pauses anything.
    :param seconds: how long the pause may take.
    :param source_pid: of the session on the source. Whoever undoes the attempt ends it first.
    :return: its id.
    """
    with target.cursor() as cursor:
        cursor.execute(
            "INSERT INTO tenantferry.write_pauses"
            " (tenant, direction, run_id, fence, source_pid, deadline)"
            " VALUES (%s, %s, %s, %s, %s, clock_timestamp() + make_interval(secs => %s))"
            " RETURNING id",
            (tenant, direction, run_id, Json(fence), source_pid, seconds),
        )
        row = cursor.fetchone()
    attempt: int = row[0] if row else 0
    return attempt


def read_open_pause(target: connection, tenant: str) -> WritePause | None:
    """Return the attempt, of either direction, that was neither undone nor brought to its end."""
    return _read(
        target,
        sql.SQL("WHERE tenant = {} AND undone_at IS NULL AND resumed_at IS NULL"),
        tenant,
    )


def read_flipped_pause(
    target: connection, tenant: str, *, direction: Direction = Direction.FORWARD
) -> WritePause | None:
    """Return the latest attempt of that direction that moved the tenant's clients."""
    return _read(
        target,
        sql.SQL(
            "WHERE tenant = {} AND direction = {} AND flipped_at IS NOT NULL"
            " ORDER BY id DESC LIMIT 1"
        ),
        tenant,
        direction,
    )


def read_stored_fence(target: connection, tenant: str) -> dict[str, Any] | None:
    """
    Return what the latest attempt of a tenant took away from its source, or was about to.

    ``None`` where that was given back for good, as by a rollback.
    """
    found = _read(target, sql.SQL("WHERE tenant = {} ORDER BY id DESC LIMIT 1"), tenant)
    if found is None or found.direction is Direction.REVERSE:
        return None
    return found.fence or None


def keep_latest(target: connection, tenant: str, attempt: int) -> bool:
    """
    Let no attempt of a tenant begin until the end of the transaction.

    :param target: open transaction.
    :return: whether *attempt* is the latest one.
    """
    with target.cursor() as cursor:
        cursor.execute("SELECT FROM tenantferry.tenants WHERE tenant = %s FOR UPDATE", (tenant,))
        cursor.execute(
            "SELECT max(id) = %s FROM tenantferry.write_pauses WHERE tenant = %s",
            (attempt, tenant),
        )
        return cursor.fetchone() == (True,)


def lock_pause(target: connection, attempt: int) -> WritePause:
    """
    Take the row of an attempt until the end of the transaction, and return it.

    :param target: open transaction.
    """
    found = _read(target, sql.SQL("WHERE id = {} FOR UPDATE"), attempt)
    if found is None:
        raise TransientError(f"attempt {attempt} is not recorded")
    return found


def record_step(
    target: connection,
    attempt: int,
    step: PauseStep,
    *,
    final_lsn: int | None = None,
    sequences: dict[str, int] | None = None,
) -> None:
    """
    Record a step that is done; recording it again keeps the first time.

    :param target: open transaction; the caller commits.
    :raises AttemptLostError: if the attempt is being undone.
    """
    with target.cursor() as cursor:
        cursor.execute(
            sql.SQL(
                "UPDATE tenantferry.write_pauses SET {step} = coalesce({step}, clock_timestamp()),"
                " final_lsn = coalesce(%s, final_lsn), sequences = coalesce(%s, sequences)"
                " WHERE id = %s AND undoing_at IS NULL"
            ).format(step=sql.Identifier(step)),
            (
                None if final_lsn is None else format_lsn(final_lsn),
                None if sequences is None else Json(sequences),
                attempt,
            ),
        )
        if cursor.rowcount == 0:
            raise _lost(attempt)


def hold_pause(target: connection, attempt: int) -> None:
    """
    Take the row of an attempt: until the end of the transaction nobody can begin to undo it.

    :param target: open transaction.
    :raises AttemptLostError: if somebody began already.
    """
    if lock_pause(target, attempt).is_given_up:
        raise _lost(attempt)


def record_dropped(target: connection, attempt: int) -> None:
    """Record that the source has forgotten about the move. The caller commits."""
    with target.cursor() as cursor:
        cursor.execute(
            "UPDATE tenantferry.write_pauses SET dropped_at = clock_timestamp() WHERE id = %s",
            (attempt,),
        )


def record_probe(target: connection, tenant: str) -> None:
    """Record that the tenant was seen through the router. The caller commits."""
    with target.cursor() as cursor:
        cursor.execute(
            "UPDATE tenantferry.write_pauses SET probed_at = clock_timestamp() WHERE id ="
            " (SELECT max(id) FROM tenantferry.write_pauses"
            " WHERE tenant = %s AND flipped_at IS NOT NULL)",
            (tenant,),
        )


def claim_undo(target: connection, attempt: int, *, reason: str) -> bool:
    """
    Decide that an attempt is undone: once this is committed it cannot be flipped any more.

    :param target: open transaction; the caller commits, and then undoes.
    :return: ``False`` if the attempt is flipped already.
    """
    with target.cursor() as cursor:
        cursor.execute(
            "UPDATE tenantferry.write_pauses SET undoing_at = coalesce(undoing_at,"
            " clock_timestamp()), undo_reason = coalesce(undo_reason, %s)"
            " WHERE id = %s AND flipped_at IS NULL",
            (reason, attempt),
        )
        return bool(cursor.rowcount)


def record_undone(target: connection, attempt: int) -> None:
    """Record that nothing of an attempt is left. The caller commits."""
    with target.cursor() as cursor:
        cursor.execute(
            "UPDATE tenantferry.write_pauses SET undone_at = clock_timestamp() WHERE id = %s",
            (attempt,),
        )


def _lost(attempt: int) -> AttemptLostError:
    return AttemptLostError(
        f"attempt {attempt} is being undone by another process",
        hint="Its time was over, or its process was taken for dead. Try again.",
    )


def _read(target: connection, condition: sql.SQL, *values: str | int) -> WritePause | None:
    query = sql.SQL("SELECT {} FROM tenantferry.write_pauses ").format(sql.SQL(_COLUMNS))
    with target.cursor() as cursor:
        cursor.execute(query + condition.format(*map(sql.Literal, values)))
        row = cursor.fetchone()
    if row is None:
        return None
    lsn, times = row[4], row[11:-1]
    return WritePause(
        id=row[0],
        tenant=row[1],
        direction=Direction(row[2]),
        began_at=row[3],
        final_lsn=None if lsn is None else parse_lsn(lsn),
        undone_at=row[5],
        probed_at=row[6],
        dropped_at=row[7],
        source_pid=row[8],
        fence=row[9] or {},
        sequences=row[10] or {},
        reached={
            step: time for step, time in zip(PauseStep, times, strict=True) if time is not None
        },
        is_given_up=row[-1],
    )
