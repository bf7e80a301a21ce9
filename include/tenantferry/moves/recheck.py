"""
Compare again within a cutover's write pause what was written since everything was compared.

`get_ready` has compared just before the pause, so only what the last moments wrote is left. Both
sides stand still.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager

from psycopg2.extensions import connection

from tenantferry.backfill.chunk import TEXT_SETTINGS
from tenantferry.connections import open_connection
from tenantferry.control.touched import read_touched
from tenantferry.errors import TransientError
from tenantferry.moves.move import Move
from tenantferry.moves.readiness import Readiness
from tenantferry.moves.validate import MismatchError
from tenantferry.validation.alignment import Lane
from tenantferry.validation.touched import Recheck


@contextmanager
def ready_to_recheck(move: Move, readiness: Readiness) -> Iterator[Recheck]:
    """Open a session on each side and learn the tables, before anybody waits."""
    settings = {
        **TEXT_SETTINGS,
        "statement_timeout": f"{move.tenant.recheck_seconds * 1000:.0f}",
    }
    purpose = f"recheck {move.tenant.key}"
    with (
        closing(open_connection(move.source, purpose=purpose, settings=settings)) as source,
        closing(open_connection(move.target, purpose=purpose, settings=settings)) as target,
    ):
        lane = Lane(source, target)
        ready = Recheck(lane, readiness.tables, readiness.chunks, tenant_id=move.tenant.id)
        # What is read within the pause is seen as it is then.
        source.rollback()
        target.rollback()
        yield ready


def recheck(move: Move, target: connection, ready: Recheck, *, since: int) -> None:
    """
    Compare what was written since both sides were compared.

    :param target: the step's session, outside a transaction; only read.
    :param ready: of `ready_to_recheck`; both sides stand still, at the final marker.
    :param since: P of that comparison.
    :raises MismatchError: if it differs.
    :raises TransientError: if it takes longer than it may.
    """
    tenant = move.tenant
    with target:
        # Always remembered: the stream held there.
        touched = read_touched(target, tenant.key, since=since) or ()
    try:
        found = ready.compare(touched)
    except TransientError as failure:
        raise TransientError(
            f'could not compare what was written last for tenant "{tenant.key}"',
            detail=f"{failure.detail} recheck_seconds is {tenant.recheck_seconds:g}.",
            hint="If that was too short: cut over at a quieter time, or give the tenant more"
            " recheck_seconds; its clients wait for so long.",
        ) from None
    if found.mismatches:
        raise MismatchError(
            f'source and target differ for tenant "{tenant.key}" in {found.mismatches} of the'
            " places that were written last",
            detail=" ".join(map(str, found.differences)),
            hint='Clear "validate" and those after it: the tenant stays on its source.',
        )
