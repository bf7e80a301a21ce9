"""The streams of a tenant: their position, what they were told, what they answer."""

from __future__ import annotations

import logging
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from importlib import resources

import psycopg2
from psycopg2 import errors
from psycopg2.extensions import connection
from psycopg2.extensions import cursor as cursor_type

from tenantferry.connections import ConnectionParams, open_connection
from tenantferry.control.direction import Direction
from tenantferry.errors import PermanentError, TenantferryError, TransientError
from tenantferry.lsn import format_lsn, parse_lsn
from tenantferry.timelines import Timeline

logger = logging.getLogger(__name__)

# A command for a stream; the payload is the tenant's key, or "<key> <lsn>" from somebody who
# waits for that position.
COMMAND_CHANNELS = {
    Direction.FORWARD: "tenantferry_stream",
    Direction.REVERSE: "tenantferry_reverse",
}
# An answer of a stream of either direction; the payload is the tenant's key.
STATE_CHANNEL = "tenantferry_stream_state"

# How long a session that we end may take to be gone.
END_SESSION_TIMEOUT_SECONDS = 10

_READ = resources.files("tenantferry.control").joinpath("stream.sql").read_text("utf-8")
# The lock of a stream's session in the target. Its holder shows in pg_locks, unlike the session
# that holds a replication origin. Literals with one parameter: the tenant's key.
_LOCK_SESSION = "SELECT pg_try_advisory_lock(hashtextextended('tenantferry stream ' || %s, 0))"
_LOCK_TRANSACTION = _LOCK_SESSION.replace("advisory_lock", "advisory_xact_lock")
_WAIT_LOCK = _LOCK_SESSION.replace("pg_try_advisory_lock", "pg_advisory_xact_lock")
_ORIGINS = """
SELECT count(*) FILTER (WHERE roname <> %s), coalesce(
    current_setting('max_active_replication_origins', true),
    current_setting('max_replication_slots'))::integer
FROM pg_catalog.pg_replication_origin
"""
_END_HOLDER = resources.files("tenantferry.control").joinpath("end_stream.sql").read_text("utf-8")


class StreamState(StrEnum):
    """
    What the process of a stream does, or how it ended.

    :cvar HOLDING: it applies nothing until it is released or its lease ends.
    :cvar STOPPED: it was told to stop, and ended at that position for good.
    :cvar INTERRUPTED: its host ended it; the next start goes on.
    """

    STARTING = "starting"
    RUNNING = "running"
    HOLDING = "holding"
    STOPPED = "stopped"
    INTERRUPTED = "interrupted"
    FAILED = "failed"


class StreamCommand(StrEnum):
    """What a stream can be told."""

    RUN = "run"
    HOLD = "hold"
    ADVANCE = "advance"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class StreamRecord:
    """
    The row of one stream.

    :ivar position: P: exactly the transactions with ``commit_lsn < P`` are applied.
    :ivar confirmed: the slot was never confirmed beyond it.
    :ivar command_lsn: where ``advance`` and ``stop`` end.
    :ivar command_id: counts commands; the stream answers by setting *acknowledged_id* to it.
    :ivar lease_until: a hold that nobody renews ends then.
    :ivar copy_again: rows are missing or wrong in the target; only a new backfill helps ...
    :ivar repairable: ... or a validation that copies again what it finds to differ.
    :ivar touched_since: from this position on `tenantferry.control.touched` knows what was written.
    :ivar lag_seconds: round trip of the last marker; ``None`` is unknown, never zero.
    :ivar went_back_to: where the source's log was seen to end before *position*; ``None``: never.
    :ivar timeline: of the source, that *position* is on; ``None`` until it is known.
    """

    tenant: str
    direction: Direction
    position: int
    confirmed: int
    state: StreamState
    command: StreamCommand
    command_lsn: int | None
    command_id: int
    acknowledged_id: int
    lease_until: datetime | None
    lease_expired: bool
    changes: int
    transactions: int
    lag_seconds: float | None
    lag_measured_at: datetime | None
    lag_bytes: int | None
    reported_at: datetime | None
    error: str | None
    copy_again: bool
    repairable: bool
    touched_since: int | None
    went_back_to: int | None
    timeline: Timeline | None


def origin_name(tenant: str) -> str:
    """Return the replication origin of a tenant's stream in the target."""
    return f"tenantferry_{tenant}"


def read_stream(
    target: connection, tenant: str, *, direction: Direction = Direction.FORWARD
) -> StreamRecord | None:
    """
    Return the row of a tenant's stream, or ``None`` where there is none yet.

    :param target: open transaction or autocommit; only read.
    """
    with target.cursor() as cursor:
        cursor.execute(_READ, (tenant, direction))
        row = cursor.fetchone()
    if row is None:
        return None
    timeline = None if row[22] is None else Timeline(*row[22:])
    rest = [*row[7:22], timeline]
    return StreamRecord(
        row[0],
        Direction(row[1]),
        parse_lsn(row[2]),
        parse_lsn(row[3]),
        StreamState(row[4]),
        StreamCommand(row[5]),
        None if row[6] is None else parse_lsn(row[6]),
        *rest,
    )


def require_stream(
    target: connection, tenant: str, *, direction: Direction = Direction.FORWARD
) -> StreamRecord:
    """
    Return the row of a tenant's stream.

    :raises PermanentError: if there is none.
    """
    record = read_stream(target, tenant, direction=direction)
    if record is None:
        hints = {
            Direction.FORWARD: 'Clear the task "backfill" and those after it.',
            Direction.REVERSE: "It has one from its cutover until it is rolled back or retired.",
        }
        raise PermanentError(f'tenant "{tenant}" has no {direction} stream', hint=hints[direction])
    return record


def reset_stream(
    target: connection, tenant: str, position: int, *, timeline: Timeline | None = None
) -> None:
    """
    Make the forward stream of a tenant begin at *position*, whatever it did before.

    A session that still streams this tenant is ended first.

    :param timeline: of the source, that *position* is on; by default the stream's first start
        takes the one that it finds.

    :param target: open transaction; the caller commits it with the first round.
    :raises TransientError: if the old session does not end in time.
    """
    with target.cursor() as cursor:
        lock_stream(cursor, tenant, for_session=False)
        _drop_origin(cursor, tenant)
        cursor.execute("SELECT pg_replication_origin_create(%s)", (origin_name(tenant),))
        cursor.execute(
            "SELECT pg_replication_origin_advance(%s, %s)",
            (origin_name(tenant), format_lsn(position)),
        )
        cursor.execute("DELETE FROM tenantferry.touched WHERE tenant = %s", (tenant,))
        cursor.execute(
            "DELETE FROM tenantferry.streams WHERE tenant = %s AND direction = %s",
            (tenant, Direction.FORWARD),
        )
        cursor.execute(
            "INSERT INTO tenantferry.streams"
            " (tenant, position, confirmed, timeline, timeline_began) VALUES (%s, %s, %s, %s, %s)",
            (tenant, format_lsn(position), format_lsn(position), *_to_columns(timeline)),
        )


def record_timeline(target: connection, tenant: str, *, timeline: Timeline, confirmed: int) -> None:
    """
    Record which timeline of the source a forward stream follows from here on.

    :param target: open transaction or autocommit.
    :param confirmed: the slot was never confirmed beyond it on that timeline.
    """
    with target.cursor() as cursor:
        cursor.execute(
            "UPDATE tenantferry.streams SET timeline = %s, timeline_began = %s, confirmed = %s"
            " WHERE tenant = %s AND direction = %s",
            (*_to_columns(timeline), format_lsn(confirmed), tenant, Direction.FORWARD),
        )


def record_went_back(target: connection, tenant: str, log_end: int) -> None:
    """
    Record that the source's log ended before P; `reset_stream` forgets it.

    The log grows beyond P again, and then nothing of it tells that it is another one.

    :param target: open transaction or autocommit.
    """
    with target.cursor() as cursor:
        cursor.execute(
            "UPDATE tenantferry.streams SET went_back_to = %s WHERE tenant = %s AND direction = %s",
            (format_lsn(log_end), tenant, Direction.FORWARD),
        )


def check_origin_room(target: connection, tenant: str) -> None:
    """
    Check that `reset_stream` finds room for the position of a tenant's stream.

    :param target: open transaction or autocommit; only read.
    :raises TransientError: if all origins of the server are taken.
    """
    with target.cursor() as cursor:
        cursor.execute(_ORIGINS, (origin_name(tenant),))
        others, most = cursor.fetchone() or (0, 0)
    if others >= most:
        raise TransientError(
            f'no replication origin of the target is left for tenant "{tenant}"',
            detail=f"All {most} are in use.",
            hint="Raise max_active_replication_origins (before 18: max_replication_slots), or wait"
            " until other moves have ended.",
        )


def mark_copy_again(
    target: connection, tenant: str, *, needed: bool, repairable: bool = False
) -> None:
    """
    Record whether the tenant must be copied again; `reset_stream` forgets it.

    :param target: open transaction; the caller commits.
    :param repairable: it would also help to copy again what differs. What only a new backfill helps
        against stays so.
    """
    with target.cursor() as cursor:
        cursor.execute(
            "UPDATE tenantferry.streams SET copy_again = %(needed)s,"
            " repairable = %(needed)s AND %(repairable)s AND (repairable OR NOT copy_again)"
            " WHERE tenant = %(tenant)s AND direction = %(direction)s",
            {
                "needed": needed,
                "repairable": repairable,
                "tenant": tenant,
                "direction": Direction.FORWARD,
            },
        )


def retire_stream(target: connection, tenant: str) -> None:
    """
    Give up the replication origin of a stream that is not needed any more; keep its row.

    The server has room for a limited number of origins.

    :param target: open transaction; the caller commits.
    """
    with target.cursor() as cursor:
        lock_stream(cursor, tenant, for_session=False)
        _drop_origin(cursor, tenant)
        cursor.execute("DELETE FROM tenantferry.touched WHERE tenant = %s", (tenant,))


def command(
    target: connection,
    tenant: str,
    verb: StreamCommand,
    *,
    lsn: int | None = None,
    lease_seconds: float | None = None,
    direction: Direction = Direction.FORWARD,
) -> int:
    """
    Tell a stream what to do; it hears of it when the caller commits.

    :param target: open transaction or autocommit.
    :param lsn: for ``advance`` and ``stop``.
    :param lease_seconds: for ``hold`` and ``advance``: after it the stream releases itself.
    :return: the id that the stream acknowledges.
    :raises PermanentError: if the tenant has no stream.
    """
    with target.cursor() as cursor:
        cursor.execute(
            "WITH changed AS (UPDATE tenantferry.streams SET command = %(verb)s,"
            " command_lsn = %(lsn)s, command_id = command_id + 1,"
            " lease_until = clock_timestamp() + make_interval(secs => %(lease)s)"
            " WHERE tenant = %(tenant)s AND direction = %(direction)s RETURNING command_id)"
            " SELECT command_id, pg_notify(%(channel)s, %(tenant)s) FROM changed",
            {
                "verb": verb,
                "lsn": None if lsn is None else format_lsn(lsn),
                "lease": lease_seconds,
                "tenant": tenant,
                "direction": direction,
                "channel": COMMAND_CHANNELS[direction],
            },
        )
        row = cursor.fetchone()
    if row is None:
        require_stream(target, tenant, direction=direction)
        raise TransientError(f'could not command the stream of tenant "{tenant}"')
    command_id: int = row[0]
    return command_id


def record_failure(
    params: ConnectionParams, tenant: str, error: str, *, compare_all: bool = False
) -> None:
    """
    Record why a forward stream ended, unless another one has taken its place; commits.

    Where the target cannot be reached, the row keeps its last report.

    :param compare_all: forget that what was written since the last comparison is known: the next
        cutover compares everything.
    """
    try:
        with (
            closing(open_connection(params, purpose=f"stream {tenant} failure")) as target,
            target,
            target.cursor() as cursor,
        ):
            cursor.execute("SET LOCAL lock_timeout = '2s'")
            cursor.execute(_WAIT_LOCK, (tenant,))
            cursor.execute(
                "UPDATE tenantferry.streams SET state = %s, error = %s,"
                " touched_since = CASE WHEN %s THEN NULL ELSE touched_since END"
                " WHERE tenant = %s AND direction = %s",
                (StreamState.FAILED, error, compare_all, tenant, Direction.FORWARD),
            )
    except errors.LockNotAvailable:
        logger.info("another stream has taken over tenant=%s", tenant)
    except (psycopg2.Error, TenantferryError):
        logger.warning("could not record the failure of the stream tenant=%s", tenant)


def lock_stream(
    cursor: cursor_type, tenant: str, *, for_session: bool = True, what: str | None = None
) -> None:
    """
    Become the only session that streams this tenant; end one that still does.

    :param for_session: keep the lock until the session ends, else until the transaction does.
    :param what: what it is the only one of, where that is not the stream of one tenant.
    :raises TransientError: if the other session does not end in time.
    """
    lock = _LOCK_SESSION if for_session else _LOCK_TRANSACTION
    for _ in range(3):
        cursor.execute(lock, (tenant,))
        if cursor.fetchone() == (True,):
            return
        # The newest start wins: what still holds the lock was left behind by a host that is
        # gone, or is about to be.
        cursor.execute(_END_HOLDER, (END_SESSION_TIMEOUT_SECONDS * 1000, tenant))
    name = what or f'stream of tenant "{tenant}"'
    raise TransientError(
        f"could not become the only {name}",
        detail="Another session is it and does not end.",
        hint="Two hosts may run it; end one of them.",
    )


def _to_columns(timeline: Timeline | None) -> tuple[int | None, str | None]:
    if timeline is None:
        return None, None
    return timeline.number, None if timeline.began is None else format_lsn(timeline.began)


def _drop_origin(cursor: cursor_type, tenant: str) -> None:
    name = origin_name(tenant)
    cursor.execute("SELECT pg_replication_origin_oid(%s)", (name,))
    if cursor.fetchone() == (None,):
        return
    try:
        cursor.execute("SELECT pg_replication_origin_drop(%s)", (name,))
    except errors.ObjectInUse as error:  # not by a stream of ours: that one held the lock
        raise TransientError(
            f'could not drop replication origin "{name}"',
            detail=(error.diag.message_primary or "").strip(),
            hint="End the session that uses it.",
        ) from None
