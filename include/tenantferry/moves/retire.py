"""
Decommission the source of a tenant whose grace is over.

Four verbs, in this order: `begin_retire`, `archive_source`, `verify_archive`, `lock_source`. Each
finds out what is left of it. What a person would have to take back comes last, and only after the
proof: nobody is locked out of a source whose dump was not restored once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime

from psycopg2.extensions import connection

from tenantferry.archive.contents import Contents, count_database, describe_differences
from tenantferry.archive.storage import StoragePath
from tenantferry.backfill.snapshot import drop_slot
from tenantferry.connections import ConnectionParams, open_connection
from tenantferry.control.archives import (
    Archive,
    begin_archive,
    forget_verified,
    record_locked,
    record_locking,
    require_archive,
)
from tenantferry.control.graces import Grace, GraceEnd, end_grace, read_grace
from tenantferry.control.phases import IllegalPhaseError, Phase
from tenantferry.control.registry import change_phase, require_registration, take_over
from tenantferry.control.streams import retire_stream
from tenantferry.errors import PermanentError
from tenantferry.moves.archiving import require_kept, require_retiring
from tenantferry.moves.former import settle_former
from tenantferry.moves.left_source import check_left_source
from tenantferry.moves.move import Move
from tenantferry.moves.retire_readiness import check_can_archive
from tenantferry.moves.sessions import exclusive_step, open_source
from tenantferry.reverse.marker import emit_grace_over
from tenantferry.reverse.removal import drop_positions
from tenantferry.reverse.slot import drop_reverse_slot
from tenantferry.schema.publication import drop_publication
from tenantferry.traffic.lock import is_locked, lock_database, plan_lock

logger = logging.getLogger(__name__)

OnStep = Callable[[str], None]

_RETIRABLE = """
SELECT t.tenant, t.phase, coalesce(g.attempt, a.attempt), g.started_at, g.ends_at, g.lost_reason
FROM tenantferry.tenants AS t
LEFT JOIN tenantferry.graces AS g ON g.tenant = t.tenant AND g.ended_at IS NULL
LEFT JOIN tenantferry.archives AS a ON a.tenant = t.tenant
WHERE t.phase = %s OR t.phase = %s AND g.ends_at <= clock_timestamp()
ORDER BY g.ends_at NULLS FIRST, t.tenant
"""


@dataclass(frozen=True, slots=True)
class Retirable:
    """
    A tenant that can be retired.

    :ivar attempt: the cutover that brought it to the target.
    :ivar live_since: ``None`` where retiring has begun, and was interrupted.
    :ivar lost_reason: why it could not go back even before that.
    """

    tenant: str
    phase: Phase
    attempt: int
    live_since: datetime | None
    grace_ended: datetime | None
    lost_reason: str | None


@dataclass(frozen=True, slots=True)
class Approval:
    """
    What a person has said yes to: one tenant, as one cutover brought it to the target.

    :ivar attempt: that cutover.
    """

    tenant: str
    attempt: int


@dataclass(frozen=True, slots=True)
class RetireSummary:
    """The tenant is in this phase now."""

    phase: str


@dataclass(frozen=True, slots=True)
class LockSummary:
    """
    A locked source.

    :ivar unlock: what a superuser runs on its server to let the application in again.
    :ivar reverse_slot_dropped: no tenant is in grace any more.
    """

    unlock: str
    reverse_slot_dropped: bool


def find_retirable(target: ConnectionParams, declared: Collection[str]) -> list[Retirable]:
    """
    Return the tenants whose grace is over, or whose retiring was interrupted, the first ones first.

    :param declared: keys of the fleet file; others are left alone.
    """
    with (
        closing(open_connection(target, purpose="find retirable")) as session,
        session,
        session.cursor() as cursor,
    ):
        cursor.execute("SELECT to_regclass('tenantferry.graces') IS NULL")
        if cursor.fetchone() == (True,):  # nothing was ever prepared in this target
            return []
        cursor.execute(_RETIRABLE, (Phase.RETIRING, Phase.LIVE))
        found = [Retirable(row[0], Phase(row[1]), *row[2:]) for row in cursor]
    for one in found:
        if one.tenant not in declared:
            logger.warning("tenant %s could be retired, but is not declared", one.tenant)
    return [one for one in found if one.tenant in declared]


def begin_retire(
    move: Move, approval: Approval, folder: StoragePath, server: ConnectionParams
) -> RetireSummary:
    """
    End the tenant's way back for good, if nothing keeps its source from being archived.

    :param folder: below which its dump will be kept.
    :param server: where the dump will be restored.
    :raises IllegalPhaseError: if the tenant is not live.
    :raises PermanentError: if its grace is not over, the approval is not for it, or its source
        could not be archived; nothing was changed.
    :raises TransientError: if it could not be archived now; nothing was changed.
    """
    tenant = move.tenant
    with exclusive_step(move.target, tenant=tenant.key, step="retire") as target:
        settle_former(move, target)
        with target:
            phase = require_registration(target, tenant.key).phase
            if phase in (Phase.RETIRING, Phase.RETIRED):
                recorded = require_archive(target, tenant.key)
                _check_approval(approval, Approval(tenant.key, recorded.attempt))
                return RetireSummary(phase)
            grace = _require_over(target, tenant.key, phase)
        _check_approval(approval, Approval(tenant.key, grace.attempt))
        check_can_archive(move, target, folder, server)
        _end_way_back(move, target, grace)
    return RetireSummary(Phase.RETIRING)


def lock_source(move: Move, folder: StoragePath, *, on_step: OnStep | None = None) -> LockSummary:
    """
    Leave nothing of ours on the source, and let nobody in there any more, us included.

    :param folder: below which its dump is kept.
    :raises PermanentError: if its dump was not verified or is gone, or the source is not what was
        dumped.
    :raises TransientError: if something is left to be done.
    """
    tenant, tell = move.tenant, on_step or _ignore
    with exclusive_step(move.target, tenant=tenant.key, step="retire") as target:
        recorded = require_retiring(target, tenant.key)
        if recorded.verified_at is None or recorded.contents is None:
            raise PermanentError(
                f'the dump of tenant "{tenant.key}" was not verified',
                hint='Clear the task "verify" and those after it.',
            )
        if recorded.locked_at is None and not _was_locked(move, recorded):
            require_kept(recorded, folder)
            _lock(move, target, Contents.from_json(recorded.contents), tell)
        with target:
            retire_stream(target, tenant.key)
            record_locked(target, tenant.key)
            change_phase(
                target,
                tenant.key,
                Phase.RETIRED,
                run_id=move.run_id,
                reason=f"dump {recorded.url} is verified, and nobody gets into the source",
            )
        tell("recorded")
        # It names the password with which the application got into the source.
        move.router.forget_former(tenant.alias)
        with target:
            recorded = require_archive(target, tenant.key)
    dropped = drop_reverse_slot(move.target)
    tell("reverse slot")
    return LockSummary(recorded.unlock or "", dropped)


def _require_over(target: connection, tenant: str, phase: Phase) -> Grace:
    if phase is not Phase.LIVE:
        raise IllegalPhaseError(
            f'tenant "{tenant}" cannot be retired in phase "{phase}"',
            detail="Only a tenant that is live on the target needs its source no more.",
        )
    grace = read_grace(target, tenant)
    if grace is None:
        raise PermanentError(
            f'tenant "{tenant}" cannot be retired',
            detail="It is live, but the target knows no time of grace that could be over.",
        )
    with target.cursor() as cursor:
        cursor.execute("SELECT %s <= clock_timestamp()", (grace.ends_at,))
        if cursor.fetchone() != (True,):
            raise PermanentError(
                f'the grace of tenant "{tenant}" is not over',
                detail=f"It lasts until {grace.ends_at:%Y-%m-%d %H:%M:%S %Z}: until then it can go"
                " back to its source.",
                hint="Wait for that. To retire it earlier, set ends_at of its row of"
                " tenantferry.graces in the target.",
            )
    return grace


def _end_way_back(move: Move, target: connection, grace: Grace) -> None:
    tenant = move.tenant.key
    with target:
        change_phase(
            target,
            tenant,
            Phase.RETIRING,
            run_id=move.run_id,
            reason=f"its grace ended at {grace.ends_at:%Y-%m-%d %H:%M:%S %Z}",
        )
        take_over(target, tenant, run_id=move.run_id)
        end_grace(target, tenant, why=GraceEnd.RETIRED)
        emit_grace_over(target, tenant)
        begin_archive(target, tenant, attempt=grace.attempt)


def _check_approval(given: Approval, needed: Approval) -> None:
    """Check that people were asked about this tenant, and that it was not back since."""
    if given != needed:
        raise PermanentError(
            f'nobody has approved that tenant "{needed.tenant}" is retired as it is now',
            detail=f'The approval is for tenant "{given.tenant}" after its cutover attempt'
            f' {given.attempt}; this is "{needed.tenant}" after attempt {needed.attempt}.',
            hint='Clear the task "find_tenants" and those after it: people are asked anew.',
        )


def _was_locked(move: Move, recorded: Archive) -> bool:
    """Tell whether a former call has locked the source, and ended before it could say so."""
    purpose = f"lock {move.tenant.key}"
    return recorded.locking_at is not None and is_locked(move.source, purpose=purpose)


def _lock(move: Move, target: connection, dumped: Contents, tell: OnStep) -> None:
    tenant = move.tenant
    with open_source(move.source, purpose=f"lock {tenant.key}") as source:
        fence = check_left_source(move, source, target)
        _check_dumped(move, target, dumped)
        drop_slot(source, tenant.validation_slot)
        drop_slot(source, tenant.slot)
        drop_publication(source, tenant)
        drop_positions(source)
        tell("cleared")
        lock = plan_lock(source, fence)
        with target:
            record_locking(target, tenant.key, unlock=lock.undo)
        tell("locking")
        lock_database(source, lock)
        tell("locked")


def _check_dumped(move: Move, target: connection, dumped: Contents) -> None:
    """Check that the source holds as many rows as its dump: its fence may have been passed."""
    tenant = move.tenant.key
    found = count_database(move.source, purpose=f"lock {tenant}")
    if differences := describe_differences(found, dumped):
        with target:
            forget_verified(target, tenant)
        raise PermanentError(
            f'the source of tenant "{tenant}" has changed since it was dumped',
            detail=differences,
            hint='Find out who wrote to it. Then clear the task "archive" and those after it: it'
            " dumps again.",
        )


def _ignore(_: str) -> None:
    """Nobody listens."""
