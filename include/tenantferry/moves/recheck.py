"""
Compare again within a cutover's write pause what was written since everything was compared.

`get_ready` has compared just before the pause, so only what the last moments wrote is left. Both
sides stand still.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager

import psycopg2

from tenantferry.backfill.chunk import TEXT_SETTINGS
from tenantferry.backfill.failures import describe_failure
from tenantferry.connections import open_connection
from tenantferry.control.touched import read_touched
from tenantferry.errors import TransientError
from tenantferry.moves.move import Move
from tenantferry.moves.readiness import Readiness
from tenantferry.moves.validate import MismatchError
from tenantferry.validation.alignment import Lane
from tenantferry.validation.touched import compare_touched


@contextmanager
def recheck_sessions(move: Move) -> Iterator[Lane]:
    """Open a session on each side, before anybody waits."""
    settings = {
        **TEXT_SETTINGS,
        "statement_timeout": f"{move.tenant.recheck_seconds * 1000:.0f}",
    }
    purpose = f"recheck {move.tenant.key}"
    with (
        closing(open_connection(move.source, purpose=purpose, settings=settings)) as source,
        closing(open_connection(move.target, purpose=purpose, settings=settings)) as target,
    ):
        yield Lane(source, target)


def recheck(move: Move, lane: Lane, readiness: Readiness) -> None:
    """
    Compare what was written since `Readiness.compared_at_lsn`.

    :param lane: of `recheck_sessions`; both sides stand still, at the final marker.
    :raises MismatchError: if it differs.
    :raises TransientError: if it takes longer than it may.
    """
    tenant = move.tenant
    try:
        touched = read_touched(lane.target, tenant.key, since=readiness.compared_at_lsn)
        # Always remembered: the stream held there.
        found = compare_touched(
            lane, touched or (), readiness.tables, readiness.chunks, tenant_id=tenant.id
        )
        lane.source.rollback()
        lane.target.rollback()
    except TransientError as failure:
        raise TransientError(
            f'could not compare what was written last for tenant "{tenant.key}"',
            detail=f"{failure.detail} recheck_seconds is {tenant.recheck_seconds:g}.",
            hint="If that was too short: cut over at a quieter time, or give the tenant more"
            " recheck_seconds; its clients wait for so long.",
        ) from None
    except psycopg2.Error as failure:
        raise describe_failure(failure, doing="compare what was written last") from None
    if found.mismatches:
        raise MismatchError(
            f'source and target differ for tenant "{tenant.key}" in {found.mismatches} of the'
            " places that were written last",
            detail=" ".join(map(str, found.differences)),
            hint='Clear "validate" and those after it: the tenant stays on its source.',
        )
