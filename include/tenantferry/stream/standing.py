"""Whether the server that answers as the source has all that the target has of it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

from psycopg2.extensions import connection
from psycopg2.extras import LogicalReplicationConnection

from tenantferry.connections import ConnectionParams, open_replication_connection
from tenantferry.control.streams import StreamRecord, record_went_back
from tenantferry.errors import CopyAgainError, TransientError
from tenantferry.lsn import format_lsn, parse_lsn
from tenantferry.timelines import Stretch, Timeline, read_history

COPY_AGAIN = 'The tenant must be copied again: clear the task "backfill" and those after it.'

# Not the flushed position that IDENTIFY_SYSTEM returns. The slot sends what is flushed, but the
# P of a stream after a rollback is where the log was written to: that may stay unflushed.
_LOG_END = (
    "SELECT CASE WHEN NOT pg_catalog.pg_is_in_recovery()"
    " THEN pg_catalog.pg_current_wal_insert_lsn()::text END"
)


class ForkedError(CopyAgainError):
    """The source is, or became again, a server that never had all that the target has."""


@dataclass(frozen=True, slots=True)
class Standing:
    """
    Where a stream stands on the timeline of its source.

    :ivar confirmed: LSN beyond which we never confirmed a slot on this timeline.
    :ivar switch_point: where the server left the timeline that the stream followed before; ``None``
        if it follows the same one still.
    """

    timeline: Timeline
    confirmed: int
    switch_point: int | None


def find_standing(
    source_params: ConnectionParams, control: connection, record: StreamRecord
) -> Standing:
    """
    Check that P is a position in the log of the server that is the source now.

    A standby that was promoted goes on from where it had got to. What the old primary committed
    after that is not on it, but may be in the target; its own log uses the same positions again.
    So does a server whose files were put back as they once were. That one begins no timeline: it is
    known by a log that ends before P, for as long as it has not written up to there again.

    :param control: session with the target, in autocommit; where the log was seen to end before P,
        that is recorded.
    :raises ForkedError: if P is beyond what the two servers share.
    :raises TransientError: if the server is not promoted yet.
    """
    if record.went_back_to is not None:
        raise _gone_back(record, record.went_back_to)
    purpose = f"stream {record.tenant} timeline"
    with closing(open_replication_connection(source_params, purpose=purpose)) as walsender:
        history = read_history(walsender)
        log_end = _read_log_end(walsender, record.tenant)
    timeline = history[-1].timeline
    followed = _find_followed(history, record)
    left = followed.left
    if left is None and record.position > log_end:
        record_went_back(control, record.tenant, log_end)
        raise _gone_back(record, log_end)
    if left is not None and record.position > left:
        raise _failed_over(
            record,
            f"is on timeline {timeline.number}, and was only up to {format_lsn(left)} on timeline"
            f" {followed.timeline.number}",
        )
    return Standing(timeline, min(record.confirmed, log_end if left is None else left), left)


def _read_log_end(walsender: LogicalReplicationConnection, tenant: str) -> int:
    with walsender.cursor() as cursor:
        cursor.execute(_LOG_END)
        (text,) = cursor.fetchone() or (None,)
    if text is None:
        raise TransientError(
            f'could not stream from the source of tenant "{tenant}"',
            detail="The server is in recovery: a standby that is not promoted, or not yet.",
            hint="The Airflow connection of the source must lead to the primary.",
        )
    return parse_lsn(text)


def _find_followed(history: Sequence[Stretch], record: StreamRecord) -> Stretch:
    """
    Return the timeline that a stream has followed, as the server knows it.

    :raises ForkedError: if the server never was on it.
    """
    current = history[-1]
    followed = record.timeline
    if followed is None:
        return current
    for stretch in history:
        if stretch.timeline.may_be(followed):
            return stretch
    for stretch in history:
        if stretch.timeline.number == followed.number:
            raise _failed_over(
                record,
                f"is on another timeline {followed.number}, which began at"
                f" {format_lsn(stretch.timeline.began or 0)}, than the one from"
                f" {format_lsn(followed.began or 0)} on",
            )
    raise _failed_over(
        record,
        f"is on timeline {current.timeline.number}, and was never on timeline {followed.number}",
    )


def _failed_over(record: StreamRecord, what: str) -> ForkedError:
    return _forked(
        record,
        f"It failed over: it {what}, of which the target has all before"
        f" {format_lsn(record.position)}.",
        hint=" Synchronous replication, or from PostgreSQL 17 on synchronized_standby_slots, keeps"
        " a standby from falling behind the target.",
    )


def _gone_back(record: StreamRecord, log_end: int) -> ForkedError:
    return _forked(
        record,
        f"It went back in time, as where a snapshot of its disks is restored: its log ended at"
        f" {format_lsn(log_end)} when the stream looked, and the target has all before"
        f" {format_lsn(record.position)}.",
    )


def _forked(record: StreamRecord, detail: str, *, hint: str = "") -> ForkedError:
    return ForkedError(
        f'source of tenant "{record.tenant}" lacks transactions that the target has',
        detail=detail,
        hint=f"{COPY_AGAIN}{hint}",
    )
