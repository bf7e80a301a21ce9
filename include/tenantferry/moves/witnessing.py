"""The witness of a move beside its steps: begun, looked at, called upon, and ended."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from tenantferry.control.validations import Difference, MismatchKind
from tenantferry.control.witnesses import Violation
from tenantferry.errors import PermanentError, TenantferryError
from tenantferry.moves.move import Move
from tenantferry.validation.comparison import MAX_NAMED
from tenantferry.validation.running import TenantComparison
from tenantferry.witness.looking import WitnessLostError, look
from tenantferry.witness.slot import drop_witness, ensure_witness

logger = logging.getLogger(__name__)

# The target keeps its log for so long, and for as long as a look takes.
LOOK_SECONDS = 60.0


class TrespassError(PermanentError):
    """The move has changed rows of other tenants."""


def begin_witness(move: Move) -> None:
    """Make sure that the move has a witness, or none where its tenant wants none. Commits."""
    if move.tenant.witness:
        ensure_witness(move.target, move.tenant)
    else:
        drop_witness(move.target, move.tenant)


def let_look(move: Move) -> bool:
    """
    Let the witness look now, so that the target keeps little log; what it saw is for a later step.

    :return: whether there is a witness that can go on.
    """
    try:
        evidence = look(move.target, move.tenant)
    except WitnessLostError as failure:
        logger.error("%s", failure)  # noqa: TRY400 - it is the message that says what to do
        return False
    except TenantferryError as failure:
        logger.warning("the next look reads it: %s", failure)
        return True
    if evidence is not None:
        logger.info("%s", evidence)
    return evidence is not None


@contextmanager
def looking_on(move: Move) -> Iterator[None]:
    """Let the witness look about every minute until the end of the block."""
    is_over = threading.Event()

    def look_on() -> None:
        while not is_over.wait(LOOK_SECONDS) and let_look(move):
            pass

    thread = threading.Thread(target=look_on, name="witness", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def call_witness(move: Move, found: TenantComparison) -> TenantComparison:
    """
    Add to a comparison what the witness says.

    :raises WitnessLostError: if the witness cannot say anything.
    """
    evidence = look(move.target, move.tenant)
    if evidence is None:
        if move.tenant.witness:
            raise WitnessLostError(
                f'the move of tenant "{move.tenant.key}" has no witness',
                detail="It was begun before the fleet file asked for one, or another run ended it.",
                hint='Clear the task "prepare" and those after it.',
            )
        return found
    logger.info("%s", evidence)
    named = [_name(violation) for violation in evidence.violations]
    return replace(
        found,
        mismatches=found.mismatches + sum(violation.rows for violation in evidence.violations),
        differences=tuple([*named, *found.differences][:MAX_NAMED]),
        witnessed=str(evidence),
    )


def check_witness(move: Move) -> None:
    """
    Check that the move has changed no row of others, as far as its witness knows.

    :raises TrespassError: if it has.
    """
    try:
        evidence = look(move.target, move.tenant)
    except WitnessLostError as failure:
        logger.error("%s", failure)  # noqa: TRY400 - it is the message that says what to do
        return
    if evidence is not None and evidence.violations:
        named = " ".join(str(_name(violation)) for violation in evidence.violations[:MAX_NAMED])
        raise tell_trespass(move, detail=f"{evidence}. {named}")


def end_witness(move: Move) -> None:
    """
    Drop the witness after a last look.

    :raises TrespassError: if it has seen that the move changed rows of others; it is dropped, too.
    """
    try:
        check_witness(move)
    finally:
        drop_witness(move.target, move.tenant)


def tell_trespass(move: Move, *, detail: str) -> TrespassError:
    """Return what to tell people about a move that has changed rows of others."""
    return TrespassError(
        f'the move of tenant "{move.tenant.key}" has changed rows of other tenants',
        detail=detail,
        hint="This must never happen: report it. All of it is listed in tenantferry.violations."
        " Mend these rows from a backup, delete what is settled from that table, then clear the"
        " task.",
    )


def _name(violation: Violation) -> Difference:
    return Difference(
        violation.schema,
        violation.table,
        MismatchKind.ISOLATION,
        "; ".join(violation.keys) or None,
        f"the move did this to other tenants: {violation}",
    )
