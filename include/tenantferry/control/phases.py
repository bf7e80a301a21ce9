"""Where a tenant stands, and where it may go from there."""

from __future__ import annotations

from enum import StrEnum

from tenantferry.errors import PermanentError


class Phase(StrEnum):
    """The phase of one tenant."""

    REGISTERED = "registered"
    PREPARED = "prepared"
    BACKFILLING = "backfilling"
    STREAMING = "streaming"
    VALIDATED = "validated"
    CUTTING_OVER = "cutting_over"
    LIVE = "live"
    ROLLING_BACK = "rolling_back"
    RETIRING = "retiring"
    RETIRED = "retired"
    ABORTING = "aborting"


# Invariant: clients reach exactly one of source and target. Only CUTTING_OVER -> LIVE and
# ROLLING_BACK -> STREAMING move them, and these moves run while every router instance is paused
# and the side that they leave is fenced.
NEXT: dict[Phase, frozenset[Phase]] = {
    Phase.REGISTERED: frozenset({Phase.PREPARED, Phase.ABORTING}),
    Phase.PREPARED: frozenset({Phase.BACKFILLING, Phase.ABORTING}),
    Phase.BACKFILLING: frozenset({Phase.STREAMING, Phase.ABORTING}),
    # A lost slot cannot be caught up: the tenant is copied again.
    Phase.STREAMING: frozenset({Phase.VALIDATED, Phase.BACKFILLING, Phase.ABORTING}),
    # A later validation may find a mismatch.
    Phase.VALIDATED: frozenset(
        {Phase.CUTTING_OVER, Phase.STREAMING, Phase.BACKFILLING, Phase.ABORTING}
    ),
    # A cutover that undoes itself leaves the tenant as validated as it was.
    Phase.CUTTING_OVER: frozenset({Phase.LIVE, Phase.VALIDATED}),
    Phase.LIVE: frozenset({Phase.ROLLING_BACK, Phase.RETIRING}),
    # A rollback leaves a forward stream running; one that undoes itself leaves the tenant live.
    Phase.ROLLING_BACK: frozenset({Phase.STREAMING, Phase.LIVE}),
    # The way back ends where retiring begins.
    Phase.RETIRING: frozenset({Phase.RETIRED}),
    Phase.RETIRED: frozenset(),
    # Nothing of the tenant is left in the target: it may be moved anew.
    Phase.ABORTING: frozenset({Phase.REGISTERED}),
}


# Clients reach the target, and its rows are the truth: no step of a move may touch them.
AT_TARGET = frozenset({Phase.LIVE, Phase.ROLLING_BACK, Phase.RETIRING, Phase.RETIRED})


class IllegalPhaseError(PermanentError):
    """A step was asked of a tenant that is not in the phase for it."""


def check_move(tenant: str, current: Phase, wanted: Phase) -> None:
    """
    Check that a tenant may go from one phase to another.

    :raises IllegalPhaseError: if the move is not in `NEXT`.
    """
    if wanted not in NEXT[current]:
        allowed = ", ".join(sorted(NEXT[current])) or "nothing"
        raise IllegalPhaseError(
            f'tenant "{tenant}" cannot go from phase "{current}" to "{wanted}"',
            detail=f"From there it can go to: {allowed}.",
        )


def check_not_aborting(tenant: str, phase: Phase) -> None:
    """
    Check that nobody takes the tenant out just now, or has begun to.

    :raises IllegalPhaseError: if so; what a step added would be left behind.
    """
    if phase is Phase.ABORTING:
        raise IllegalPhaseError(
            f'tenant "{tenant}" is being aborted',
            detail="What an abort has begun has not come to its end.",
            hint='Clear the task "abort" of the Dag "abort_tenant" until it succeeds; then the'
            " tenant can be moved anew.",
        )
