"""Before the first change: be the only stream of the tenant, and know that nothing is missing."""

from __future__ import annotations

import logging
from importlib import resources

from psycopg2 import errors
from psycopg2.extensions import connection

from tenantferry.control.streams import END_SESSION_TIMEOUT_SECONDS, lock_stream, origin_name
from tenantferry.errors import CopyAgainError, TransientError
from tenantferry.fleet.declaration import Tenant
from tenantferry.lsn import format_lsn, parse_lsn
from tenantferry.stream.standing import COPY_AGAIN, Standing

logger = logging.getLogger(__name__)

_SLOT = resources.files("tenantferry.stream").joinpath("slot.sql").read_text("utf-8")


class LostChangesError(CopyAgainError):
    """Changes of the source that the target does not have are gone from the source's log."""


def take_target(target: connection, tenant: Tenant) -> int | None:
    """
    Become the only session that applies this tenant's changes.

    :param target: in autocommit; keeps the tenant's lock and its replication origin until closed.
    :return: the position up to which the origin has come, durable.
    :raises TransientError: if another session does not give way.
    """
    name = origin_name(tenant.key)
    with target.cursor() as cursor:
        lock_stream(cursor, tenant.key)
        cursor.execute("SELECT pg_replication_origin_oid(%s)", (name,))
        if cursor.fetchone() == (None,):
            return None
        try:
            cursor.execute("SELECT pg_replication_origin_session_setup(%s)", (name,))
        except errors.ObjectInUse as error:  # an ended session may need a moment to let go
            raise TransientError(
                f'could not use replication origin "{name}"',
                detail=(error.diag.message_primary or "").strip(),
            ) from None
        cursor.execute("SELECT pg_replication_origin_session_progress(true)::text")
        row = cursor.fetchone()
    return None if row is None or row[0] is None else parse_lsn(row[0])


def settle_origin(
    target: connection, tenant: Tenant, *, progress: int | None, position: int
) -> None:
    """
    Make the origin say what the stream's row says: the row alone is never ahead of the rows.

    From PostgreSQL 16 on a transaction that is rolled back after
    ``pg_replication_origin_xact_setup()`` moves the origin as if it had been committed. A stream
    that is killed between that call and its COMMIT leaves such an origin behind.

    :param target: session of `take_target`, in autocommit.
    :raises CopyAgainError: if the origin is behind: the target was restored, or somebody changed
        one of the two.
    """
    name = origin_name(tenant.key)
    if progress is None or progress < position:
        raise CopyAgainError(
            f'replication origin "{name}" and the stream\'s position disagree',
            detail=f"The origin is at {'nothing' if progress is None else format_lsn(progress)},"
            f" the position at {format_lsn(position)}.",
            hint=COPY_AGAIN,
        )
    if progress > position:
        logger.info(
            "origin of a rolled back transaction set back tenant=%s from=%s to=%s",
            tenant.key,
            format_lsn(progress),
            format_lsn(position),
        )
        with target.cursor() as cursor:
            # A held origin cannot be moved; the tenant's lock keeps others away meanwhile.
            cursor.execute("SELECT pg_replication_origin_session_reset()")
            cursor.execute(
                "SELECT pg_replication_origin_advance(%s, %s)", (name, format_lsn(position))
            )
            cursor.execute("SELECT pg_replication_origin_session_setup(%s)", (name,))


def take_slot(source: connection, tenant: Tenant, standing: Standing) -> None:
    """
    Check that the slot still holds everything after P, and end a session of ours that uses it.

    :param source: in autocommit.
    :param standing: of the server that *source* is a session on.
    :raises LostChangesError: if the slot is gone, invalidated, or was consumed by somebody else.
    :raises TransientError: if another session does not give way.
    """
    with source.cursor() as cursor:
        for _ in range(3):
            cursor.execute(_SLOT, (tenant.slot,))
            row = cursor.fetchone()
            if row is None:
                raise LostChangesError(
                    f'replication slot "{tenant.slot}" does not exist',
                    detail=_tell_failover(standing),
                    hint=COPY_AGAIN,
                )
            active_pid, is_ours, confirmed_text, is_lost, reason = row
            if is_lost:
                raise LostChangesError(
                    f'replication slot "{tenant.slot}" was invalidated',
                    detail=f'The source says "{reason}". It has removed changes that the target'
                    " does not have.",
                    hint=f"{COPY_AGAIN} Raise max_slot_wal_keep_size or"
                    " idle_replication_slot_timeout of the source before.",
                )
            if active_pid is None:
                _check_confirmed(tenant, parse_lsn(confirmed_text), standing.confirmed)
                return
            if not is_ours:
                break
            # Left behind by a host that is gone; the target's lock is already ours.
            cursor.execute(
                "SELECT pg_terminate_backend(%s, %s)",
                (active_pid, END_SESSION_TIMEOUT_SECONDS * 1000),
            )
    raise TransientError(
        f'replication slot "{tenant.slot}" is in use',
        detail=f"Process {active_pid} of the source uses it.",
        hint="End that session.",
    )


def _tell_failover(standing: Standing) -> str:
    if standing.switch_point is None:
        return ""
    return (
        f"The source failed over to a standby, at {format_lsn(standing.switch_point)}. From"
        " PostgreSQL 17 on a standby with sync_replication_slots keeps a copy of the slot."
    )


def _check_confirmed(tenant: Tenant, slot_lsn: int, confirmed: int) -> None:
    if slot_lsn > confirmed:
        raise LostChangesError(
            f'replication slot "{tenant.slot}" was consumed by somebody else',
            detail=f"It is confirmed up to {format_lsn(slot_lsn)}, the stream has confirmed"
            f" {format_lsn(confirmed)}. Changes between them are lost.",
            hint=COPY_AGAIN,
        )
