"""
Take a tenant out of the move, at any moment before its clients were moved.

The phase comes first: once ABORTING is committed no other step takes the tenant further, so an
abort that is interrupted leaves nothing that grows, and the next call goes on. Then, in this order:
what allows to write goes before what was written, the rows go before the role that they belong to,
and what says how to give the source back goes last.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

import psycopg2
from psycopg2 import errors
from psycopg2.extensions import connection

from tenantferry.backfill.clearing import end_leftover_sessions, forget_attempt
from tenantferry.backfill.snapshot import drop_slot
from tenantferry.connections import open_connection
from tenantferry.control.pauses import read_stored_fence
from tenantferry.control.phases import AT_TARGET, IllegalPhaseError, Phase
from tenantferry.control.registry import (
    change_phase,
    read_registration,
    require_registration,
    take_over,
)
from tenantferry.control.removal import forget_move
from tenantferry.errors import PermanentError, TenantferryError, TransientError
from tenantferry.moves.erasing import erase_rows
from tenantferry.moves.former import settle_former
from tenantferry.moves.identity import check_same_source
from tenantferry.moves.move import Move
from tenantferry.moves.sessions import exclusive_step, open_source
from tenantferry.moves.witnessing import check_witness
from tenantferry.reverse.removal import drop_positions
from tenantferry.reverse.slot import drop_reverse_slot
from tenantferry.schema.publication import drop_publication
from tenantferry.schema.removal import remove_tenant_role
from tenantferry.traffic.fence import Fence, lower_fence, plan_fence
from tenantferry.witness.slot import drop_witness

logger = logging.getLogger(__name__)

# These settle themselves, or are settled, before anybody can say where the tenant stands.
_MOVING_CLIENTS = frozenset({Phase.CUTTING_OVER, Phase.ROLLING_BACK})

# Nobody holds a tenant's row for longer than a decision takes.
_LOCK_TIMEOUT = "10s"

OnStep = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class AbortSummary:
    """
    What this call took out; what an earlier one did is not counted again.

    :ivar rows: of the tenant, deleted in the target.
    :ivar tables: that held some of them.
    :ivar role_kept: why the tenant's role is still in the target; empty where it is gone.
    """

    rows: int
    tables: int
    role_kept: str


def abort(move: Move, *, on_step: OnStep | None = None) -> AbortSummary:
    """
    Remove everything of the tenant from the target, and everything of the move from the source.

    The tenant goes on working on its source. Its registry row and its audit trail stay; it may be
    moved anew.

    :param on_step: called with the name of each step when it is done.
    :raises PermanentError: if its clients are at the target already, or it is not the tenant that
        the target knows by that name; nothing was changed.
    :raises TransientError: if something is left; the next call goes on there.
    """
    tell = on_step or _ignore
    _announce(move)
    tell("announced")
    _interrupt(move)
    with exclusive_step(move.target, tenant=move.tenant.key, step="abort") as target:
        settle_former(move, target)
        _begin(move, target)
        with target:
            forget_attempt(target, move.tenant)
        tell("stopped")
        failure = _attempt("clear the source", lambda: _clear_source(move, target))
        tell("source")
        rows, tables = erase_rows(move.target, move.tenant)
        check_witness(move)
        tell("rows")
        # It serves nobody once the role is gone, so what comes of this does not matter.
        _attempt("clear the router", lambda: _clear_router(move))
        with target:
            role_kept = remove_tenant_role(target, move.tenant)
        tell("role")
        drop_witness(move.target, move.tenant)
        if failure is not None:
            raise _unfinished(move, failure)
        _finish(move, target, rows=rows)
        tell("forgotten")
    # An attempt to move its clients has made it, which was undone then.
    drop_reverse_slot(move.target)
    tell("reverse slot")
    return AbortSummary(rows, tables, role_kept or "")


def _announce(move: Move) -> None:
    """Let no other step go on, also one that runs now: it cannot record where it got to."""
    purpose, settings = f"abort {move.tenant.key}", {"lock_timeout": _LOCK_TIMEOUT}
    with closing(open_connection(move.target, purpose=purpose, settings=settings)) as target:
        try:
            _begin(move, target, may_wait=True)
        except errors.LockNotAvailable:
            raise TransientError(
                f'could not announce that tenant "{move.tenant.key}" is aborted',
                detail=f"Somebody has held its row of tenantferry.tenants for {_LOCK_TIMEOUT}.",
                hint="A transaction of another step, or of a person: see pg_stat_activity of the"
                " target. The retry waits again.",
            ) from None


def _begin(move: Move, target: connection, *, may_wait: bool = False) -> None:
    """
    Enter the phase, and take the tenant over from the run that moved it. Commits.

    :param may_wait: leave a tenant whose clients are being moved alone for now.
    """
    tenant = move.tenant
    with target:
        registration = read_registration(target, tenant.key)
        if registration is None:
            raise PermanentError(
                f'tenant "{tenant.key}" cannot be aborted',
                detail="It was never prepared: nothing of it is in the target.",
            )
        if registration.tenant_id != tenant.id:
            raise PermanentError(
                f'tenant "{tenant.key}" is registered with another id',
                detail=f"The fleet file says {tenant.id}, the target {registration.tenant_id}.",
                hint="Rows are deleted by this id. Mend the fleet file; nothing was changed.",
            )
        phase = registration.phase
        if may_wait and phase in _MOVING_CLIENTS:
            return
        if phase in AT_TARGET:
            raise IllegalPhaseError(
                f'tenant "{tenant.key}" cannot be aborted in phase "{phase}"',
                detail="Its clients are at the target, and the rows there are the only true ones.",
                hint='While it is in grace, "rollback_tenant" takes it back to its source; after'
                " that it can be aborted.",
            )
        change_phase(
            target, tenant.key, Phase.ABORTING, run_id=move.run_id, reason="asked for by a person"
        )
        take_over(target, tenant.key, run_id=move.run_id)


def _interrupt(move: Move) -> None:
    """End a copy that runs, which can take hours; its step then ends by itself."""
    for side, params in (("source", move.source), ("target", move.target)):
        try:
            purpose = f"abort {move.tenant.key}"
            with closing(open_connection(params, purpose=purpose, autocommit=True)) as session:
                ended = end_leftover_sessions(session, move.tenant)
        except (TenantferryError, psycopg2.Error) as failure:
            logger.warning("could not end a copy on the %s: %s", side, failure)
        else:
            logger.info("ended sessions of a copy side=%s sessions=%s", side, ended)


def _attempt(what: str, act: Callable[[], None]) -> TenantferryError | None:
    """Return what went wrong: the rest is done all the same."""
    error: TenantferryError
    try:
        act()
    except TenantferryError as failure:
        error = failure
    except psycopg2.Error as failure:
        error = TransientError(" ".join(str(failure).split()))
    else:
        return None
    logger.warning("could not %s: %s", what, error)
    return error


def _clear_source(move: Move, target: connection) -> None:
    """Give the source back what the move took, and leave nothing of the move there."""
    tenant = move.tenant
    with open_source(move.source, purpose=f"abort {tenant.key}") as source:
        with target:
            registration = require_registration(target, tenant.key)
            stored = read_stored_fence(target, tenant.key)
        check_same_source(source, registration)
        drop_slot(source, tenant.validation_slot)
        drop_slot(source, tenant.slot)
        drop_publication(source, tenant)
        if stored is not None:
            _lower_leftover(source, Fence.from_json(stored))
        drop_positions(source)


def _lower_leftover(source: connection, stored: Fence) -> None:
    # An undone cutover lowers its fence; one that could not reach the source leaves it up.
    if plan_fence(source).is_raised and not stored.is_raised:
        lower_fence(source, stored)


def _clear_router(move: Move) -> None:
    # A cutover that was killed while it rehearsed has left it there, with the role's password.
    move.router.remove_extra_alias(f"tenantferry_{move.tenant.key}")


def _finish(move: Move, target: connection, *, rows: int) -> None:
    with target:
        forget_move(target, move.tenant.key)
        change_phase(
            target,
            move.tenant.key,
            Phase.REGISTERED,
            run_id=move.run_id,
            reason=f"nothing of the tenant is left in the target; {rows} rows were deleted last",
        )


def _unfinished(move: Move, failure: TenantferryError) -> TenantferryError:
    tenant = move.tenant
    kind = PermanentError if isinstance(failure, PermanentError) else TransientError
    return kind(
        f'tenant "{tenant.key}" is out of the target, but not all of its move is out of its source',
        detail=f'There may be left: slot "{tenant.slot}", which keeps the source\'s log until its'
        f' disk is full, publication "{tenant.publication}", and a fence.'
        f" {' '.join(str(failure).split())}",
        hint="Clear the task to go on there. If the source is gone for good, nothing is left to be"
        " done: take the tenant out of the fleet file.",
    )


def _ignore(_: str) -> None:
    """Nobody listens."""
