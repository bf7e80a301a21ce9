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
from tenantferry.moves.unchanged import require_same_shape
from tenantferry.moves.validate import MismatchError
from tenantferry.schema.table_states import TableState, find_changes, read_table_states
from tenantferry.validation.alignment import Lane
from tenantferry.validation.touched import Recheck, with_whole


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


def recheck(
    move: Move, source: connection, target: connection, ready: Recheck, readiness: Readiness
) -> dict[str, TableState]:
    """
    Compare what was written since both sides were compared.

    :param source: session in autocommit; only read.
    :param target: the step's session, outside a transaction; only read.
    :param ready: of `ready_to_recheck`; both sides stand still, at the final marker.
    :param readiness: since when.
    :return: the states of the source's tables for which all comparisons hold.
    :raises MismatchError: if it differs.
    :raises TransientError: if it takes longer than it may, or cannot be told any more.
    """
    tenant = move.tenant
    states = read_table_states(source, tenant)
    changes = find_changes(readiness.states, states)
    require_same_shape(changes, tenant)
    with target:
        touched = read_touched(target, tenant.key, since=readiness.compared_at_lsn)
    if touched is None:
        raise TransientError(
            f'nobody knows any more what was written last for tenant "{tenant.key}"',
            detail="Its stream has met a change of a table since both sides were compared.",
            hint="The retry validates again.",
        )
    rewritten = [table for table in readiness.tables if table.label in changes.rewritten]
    try:
        found = ready.compare(with_whole(touched, rewritten))
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
    return states
