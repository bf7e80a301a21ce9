"""The record of the one slot on the target that all reverse streams share."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from psycopg2 import sql
from psycopg2.extensions import connection

from tenantferry.control.graces import REVERSE_SLOT, lose_way_back, read_graces
from tenantferry.lsn import format_lsn, parse_lsn

_READ = sql.SQL(
    "SELECT confirmed::text, read_to::text, reported_at, error"
    " FROM tenantferry.reverse_slot WHERE slot = %s"
)


@dataclass(frozen=True, slots=True)
class ReverseSlot:
    """
    The record.

    :ivar confirmed: the slot was never confirmed beyond it.
    :ivar read_to: how far its log was read.
    :ivar reported_at: ``None``: nobody has read it yet.
    """

    confirmed: int
    read_to: int
    reported_at: datetime | None
    error: str | None


def read_reverse_slot(target: connection) -> ReverseSlot | None:
    """
    Return the record, or ``None`` where there is none.

    :param target: open transaction or autocommit; only read.
    """
    return _read(target, sql.SQL(""))


def keep_reverse_slot(target: connection) -> ReverseSlot | None:
    """Return the record, and let nobody drop it until the transaction ends."""
    # Not FOR SHARE: the reverse stream goes on reporting in it.
    return _read(target, sql.SQL(" FOR KEY SHARE"))


def lock_reverse_slot(target: connection) -> ReverseSlot | None:
    """Return the record, and let nobody begin a grace or report until the transaction ends."""
    return _read(target, sql.SQL(" FOR UPDATE"))


def record_reverse_slot(target: connection, *, confirmed: int) -> None:
    """
    Record a slot that was created, or is there from a creation that was interrupted.

    :param target: open transaction or autocommit; the caller commits.
    """
    lsn = format_lsn(confirmed)
    with target.cursor() as cursor:
        cursor.execute(
            "INSERT INTO tenantferry.reverse_slot (slot, confirmed, read_to) VALUES (%s, %s, %s)",
            (REVERSE_SLOT, lsn, lsn),
        )


def forget_reverse_slot(target: connection) -> None:
    """Delete the record. The caller commits."""
    with target.cursor() as cursor:
        cursor.execute("DELETE FROM tenantferry.reverse_slot WHERE slot = %s", (REVERSE_SLOT,))


def lose_reverse_slot(target: connection, *, reason: str) -> list[str]:
    """
    Record that the slot is of no use any more: no tenant that is live now can go back.

    A cutover that is about to flip holds the record, so it is either among those that lose, or
    finds no slot.

    :param target: open transaction; the caller commits.
    :param reason: a whole sentence.
    :return: the keys of those who lost their way back.
    """
    lock_reverse_slot(target)
    lost = [grace for grace in read_graces(target) if grace.lost_at is None]
    for grace in lost:
        lose_way_back(target, grace.id, reason=reason)
    forget_reverse_slot(target)
    return [grace.tenant for grace in lost]


def _read(target: connection, lock: sql.SQL) -> ReverseSlot | None:
    with target.cursor() as cursor:
        cursor.execute(_READ + lock, (REVERSE_SLOT,))
        row = cursor.fetchone()
    return None if row is None else ReverseSlot(parse_lsn(row[0]), parse_lsn(row[1]), *row[2:])
