"""The slot on the target: there before the first tenant goes live, gone after the last one."""

from __future__ import annotations

import logging
from contextlib import closing
from dataclasses import dataclass
from importlib import resources

from psycopg2 import errors, sql
from psycopg2.extensions import connection

from tenantferry.backfill.snapshot import drop_slot, exported_snapshot
from tenantferry.connections import ConnectionParams, open_connection
from tenantferry.control.graces import REVERSE_SLOT, lose_way_back, read_graces
from tenantferry.control.phases import Phase
from tenantferry.control.reverse_slot import (
    forget_reverse_slot,
    keep_reverse_slot,
    lock_reverse_slot,
    lose_reverse_slot,
    read_reverse_slot,
    record_reverse_slot,
)
from tenantferry.errors import PermanentError, TransientError
from tenantferry.lsn import format_lsn, parse_lsn
from tenantferry.schema.reverse_publication import (
    drop_reverse_publication,
    ensure_reverse_publication,
)

logger = logging.getLogger(__name__)

# Creating a slot waits for every transaction that is open and has written.
SLOT_TIMEOUT_SECONDS = 60.0

_SLOT = resources.files("tenantferry.reverse").joinpath("slot.sql").read_text("utf-8")
# Nobody makes the slot while another does, or gives it up. Literals, no parameters.
_LOCK = "SELECT pg_advisory_lock(hashtextextended('tenantferry reverse slot', 0))"
_UNLOCK = _LOCK.replace("advisory_lock", "advisory_unlock")
_LOCK_TIMEOUT = "60s"
# A cutover makes sure of the slot before it begins: its tenant still is validated then.
_ABOUT_TO_NEED_IT = [Phase.VALIDATED, Phase.CUTTING_OVER, Phase.ROLLING_BACK]


@dataclass(frozen=True, slots=True)
class Slot:
    """
    The slot as the server knows it.

    :ivar active_pid: process that uses it.
    :ivar is_ours: whether that is a session of ours.
    :ivar reason: why it is lost.
    """

    active_pid: int | None
    is_ours: bool
    confirmed: int
    is_lost: bool
    reason: str


def ensure_reverse(
    target: ConnectionParams, *, timeout_seconds: float = SLOT_TIMEOUT_SECONDS
) -> None:
    """
    Make sure that what is written in the target from now on is kept for the reverse streams.

    Publishes the tenants' tables, creates the slot, records it. To be called before the write
    pause, never in it: creating the slot waits for transactions of the whole cluster. Commits.

    :raises TransientError: if a table or the slot could not be had in time; says what it waits for.
    :raises PermanentError: if the target cannot have the slot.
    """
    settings = {"lock_timeout": _LOCK_TIMEOUT}
    with closing(open_connection(target, purpose="reverse slot", settings=settings)) as session:
        with session.cursor() as cursor:
            cursor.execute(_LOCK)
        session.commit()
        with session:
            # First: the slot's reader looks for it at the positions that it reads.
            publish(session)
        session.autocommit = True
        slot = read_slot(session)
        if read_reverse_slot(session) is not None:
            if slot is not None and not slot.is_lost:
                return
            _settle_loss(session, reason=_tell_loss(slot))
            slot = None
        if slot is not None and not slot.is_lost:
            # Of a creation that was interrupted before it was recorded.
            record_reverse_slot(session, confirmed=slot.confirmed)
            return
        drop_slot(session, REVERSE_SLOT)
        with exported_snapshot(
            target, slot=REVERSE_SLOT, temporary=False, timeout_seconds=timeout_seconds
        ) as snapshot:
            record_reverse_slot(session, confirmed=snapshot.consistent_point)
        logger.info("created replication slot %s on the target", REVERSE_SLOT)


def publish(target: connection) -> None:
    """
    Publish the tables that hold rows of tenants, as far as they are not yet.

    Where a tenant in grace has written to a table before it was published, its source will never
    hold that: the tenant loses its way back.

    :param target: open transaction; the caller commits.
    :raises TransientError: if a table is in use for too long.
    :raises PermanentError: if a table cannot be published.
    """
    in_grace = [grace for grace in read_graces(target) if grace.lost_at is None]
    added = ensure_reverse_publication(target, REVERSE_SLOT, exclusively=bool(in_grace))
    for schema, name in added:
        logger.info("table %s.%s is published for the way back", schema, name)
        for grace in in_grace:
            if _has_rows(target, schema, name, grace.tenant):
                reason = f'It wrote to table "{schema}.{name}" before that was followed.'
                logger.error("tenant=%s lost its way back: %s", grace.tenant, reason)
                lose_way_back(target, grace.id, reason=reason)


def is_reverse_slot_recorded(target: ConnectionParams) -> bool:
    """
    Tell whether there is something to read for the reverse streams, or soon will be.

    :raises TransientError: if the target could not be asked.
    """
    with closing(
        open_connection(target, purpose="wait for reverse slot", autocommit=True)
    ) as session:
        with session.cursor() as cursor:
            cursor.execute("SELECT to_regclass('tenantferry.reverse_slot') IS NOT NULL")
            if cursor.fetchone() == (False,):
                return False
        return read_reverse_slot(session) is not None


def check_reverse_slot(target: connection) -> None:
    """
    Check that the slot keeps what will be written, and let nobody drop it meanwhile.

    :param target: the open transaction that flips a tenant: until its end the slot stays.
    :raises TransientError: if there is no such slot; the next attempt creates it.
    """
    slot = read_slot(target) if keep_reverse_slot(target) is not None else None
    if slot is None or slot.is_lost:
        raise TransientError(
            f'the target has no usable replication slot "{REVERSE_SLOT}"',
            detail="Without it the tenant could not go back.",
            hint='Clear the task "cutover": it creates the slot before it pauses anybody.',
        )


def drop_reverse_slot(target: ConnectionParams) -> bool:
    """
    Drop slot, publication and record, if nobody needs them. Commits.

    :return: whether they are gone; ``False`` while a tenant can go back, or is about to go live.
    :raises TransientError: if somebody holds them for too long.
    """
    try:
        return _drop_unneeded(target)
    except errors.LockNotAvailable as error:
        raise TransientError(
            f'could not give up replication slot "{REVERSE_SLOT}" of the target',
            detail=f"{(error.diag.message_primary or '').strip()} ({_LOCK_TIMEOUT}).",
            hint="The retry goes on. If it hangs, find the session in pg_locks of the target.",
        ) from None


def _drop_unneeded(target: ConnectionParams) -> bool:
    settings, purpose = {"lock_timeout": _LOCK_TIMEOUT}, "drop reverse slot"
    with (
        closing(open_connection(target, purpose=purpose, settings=settings)) as session,
        closing(open_connection(target, purpose=purpose, autocommit=True)) as dropping,
        session,
    ):
        # Whoever flips keeps the record: once it is ours, a grace that begins shows below.
        record = lock_reverse_slot(session)
        if _is_needed(session):
            return False
        if record is not None:
            # The slot first, for one without a record would keep log that nobody reads.
            drop_slot(dropping, REVERSE_SLOT)
            forget_reverse_slot(session)
            drop_reverse_publication(session, REVERSE_SLOT)
    return True


def settle_loss(target: connection) -> PermanentError | None:
    """
    Give the slot up if it has lost changes: whoever is live now lost the way back.

    Whoever goes live gets a new slot.

    :param target: session in autocommit. Commits.
    :return: what to tell people; ``None`` where nothing is lost, or somebody has settled it.
    """
    with target.cursor() as cursor:
        cursor.execute(_LOCK)
        try:
            record = read_reverse_slot(target)
            if record is None:
                return None
            loss = check_loss(read_slot(target), recorded=record.confirmed)
            return None if loss is None else _settle_loss(target, reason=loss)
        finally:
            cursor.execute(_UNLOCK)


def _settle_loss(target: connection, *, reason: str) -> PermanentError:
    target.autocommit = False
    with target:
        lost = lose_reverse_slot(target, reason=reason)
    target.autocommit = True
    # What is left of it would keep log for nobody.
    drop_slot(target, REVERSE_SLOT)
    tenants = ", ".join(lost) or "none"
    logger.error(
        "replication slot %s is lost; tenants without a way back: %s", REVERSE_SLOT, tenants
    )
    return PermanentError(
        f'replication slot "{REVERSE_SLOT}" of the target is lost',
        detail=f"{reason} These tenants cannot go back any more: {tenants}.",
        hint="They stay on the target; nothing of theirs is lost there. The next cutover creates a"
        " new slot.",
    )


def read_slot(target: connection) -> Slot | None:
    """
    Return the slot as the server knows it, or ``None`` where there is none.

    :param target: open transaction or autocommit; only read.
    :raises PermanentError: if another database of the cluster has it.
    """
    with target.cursor() as cursor:
        cursor.execute(_SLOT, (REVERSE_SLOT,))
        row = cursor.fetchone()
    if row is None:
        return None
    is_here, database, pid, is_ours, confirmed, is_lost, reason = row
    if not is_here:
        raise PermanentError(
            f'replication slot "{REVERSE_SLOT}" belongs to database "{database}"',
            detail="The name of a slot is taken in its whole cluster.",
            hint="Two targets cannot be databases of one cluster.",
        )
    # A slot that is just being created is not confirmed anywhere.
    return Slot(pid, is_ours, parse_lsn(confirmed or "0/0"), is_lost or confirmed is None, reason)


def check_loss(slot: Slot | None, *, recorded: int) -> str | None:
    """
    Tell, in a whole sentence, why changes are lost to the reverse streams; ``None`` if none are.

    :param recorded: LSN beyond which we never confirmed the slot.
    """
    if slot is None or slot.is_lost:
        return _tell_loss(slot)
    if slot.confirmed > recorded:
        return (
            f"Somebody else has consumed the slot: it is confirmed up to"
            f" {format_lsn(slot.confirmed)}, the reverse streams have confirmed"
            f" {format_lsn(recorded)}."
        )
    return None


def _tell_loss(slot: Slot | None) -> str:
    if slot is None:
        return f'Replication slot "{REVERSE_SLOT}" does not exist on the target any more.'
    return (
        f'The target has invalidated replication slot "{REVERSE_SLOT}" ("{slot.reason}") and'
        " removed changes that were not read yet."
    )


def _has_rows(target: connection, schema: str, name: str, tenant: str) -> bool:
    with target.cursor() as cursor:
        cursor.execute(
            sql.SQL(
                "SELECT EXISTS (SELECT FROM ONLY {} WHERE tenant_id ="
                " (SELECT tenant_id FROM tenantferry.tenants WHERE tenant = %s))"
            ).format(sql.Identifier(schema, name)),
            (tenant,),
        )
        return cursor.fetchone() == (True,)


def _is_needed(session: connection) -> bool:
    if any(grace.lost_at is None for grace in read_graces(session)):
        return True
    with session.cursor() as cursor:
        cursor.execute(
            "SELECT EXISTS (SELECT FROM tenantferry.tenants WHERE phase = ANY (%s))",
            (_ABOUT_TO_NEED_IT,),
        )
        return cursor.fetchone() == (True,)
