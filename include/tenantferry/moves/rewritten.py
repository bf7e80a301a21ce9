"""
Whether the source of a tenant in grace still has the rows that it had when its clients left.

The reverse stream brings what was written since, and rests on the rest being there. Nobody but a
person gets past the fence; one who makes a table again there, as a migration of both sides may,
takes along what the old one held, or not.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from psycopg2.extensions import connection

from tenantferry.control.direction import Direction
from tenantferry.control.graces import Grace, read_source_files, record_source_files
from tenantferry.errors import PermanentError, TransientError
from tenantferry.fleet import Tenant
from tenantferry.moves.move import Move
from tenantferry.schema.catalog import read_tables
from tenantferry.schema.model import Table
from tenantferry.schema.table_states import RowFiles, find_rewritten, read_row_files
from tenantferry.validation.running import (
    AGAIN_SLOT_TIMEOUT_SECONDS,
    TenantComparison,
    compare_tenant,
)

logger = logging.getLogger(__name__)


def compare_rewritten(move: Move, source: connection, target: connection, grace: Grace) -> RowFiles:
    """
    Compare the tables that came to the source, or were rewritten there, since it was right.

    One that has its rows is not compared again. In a grace that began before the files were written
    down, what was rewritten before this call is not noticed.

    :param source: session in autocommit; only read.
    :param target: the step's session, outside a transaction; commits.
    :return: which files hold the rows, for `check_not_rewritten`.
    :raises PermanentError: if rows differ.
    :raises TransientError: if it could not be told.
    """
    files = read_row_files(source, move.tenant)
    with target:
        known = read_source_files(target, grace.id)
    labels = find_rewritten(known, files) if known is not None else []
    rewritten = [t for t in read_tables(source, move.tenant) if t.label in labels]
    found = _compare(move, rewritten) if rewritten else None
    differing = {chunk.label for chunk in found.differing} if found is not None else set()
    wrong = (set(labels) - {table.label for table in rewritten}) | differing
    right = {label: names for label, names in files.items() if label not in wrong}
    with target:
        record_source_files(target, grace.id, {**(known or {}), **right})
    if found is not None and differing:
        raise PermanentError(
            f'the source of tenant "{move.tenant.key}" does not have the rows of the target',
            detail="Came since the tenant went live, or was truncated, rewritten or made again"
            f" there: {_name(sorted(differing))}. {' '.join(map(str, found.differences))}",
            hint="The target is right, clients work there. Mend these rows of the source, as its"
            " owner with default_transaction_read_only = off, and clear this task; or keep the"
            " tenant where it is.",
        )
    return right


def check_not_rewritten(source: connection, tenant: Tenant, files: RowFiles) -> None:
    """
    Check that the rows are where they were when they were known to be right.

    :param source: session in autocommit; only read.
    :param files: of `compare_rewritten`.
    :raises TransientError: if not.
    """
    changed = find_rewritten(files, read_row_files(source, tenant))
    if changed:
        raise TransientError(
            f'could not tell whether tenant "{tenant.key}" has its rows on its source',
            detail="Truncated, rewritten or made again while the tenant was to go back:"
            f" {_name(changed)}.",
            hint="The retry compares them. Keep such statements away from the source meanwhile.",
        )


def _compare(move: Move, tables: Sequence[Table]) -> TenantComparison:
    logger.info("compares what was rewritten in grace: %s", _name(t.label for t in tables))
    return compare_tenant(
        move.source,
        move.target,
        move.tenant,
        tables,
        direction=Direction.REVERSE,
        slot_timeout_seconds=AGAIN_SLOT_TIMEOUT_SECONDS,
        # What else may be wrong with the target is no reason to stay there.
        only_rows=True,
    )


def _name(labels: Iterable[str]) -> str:
    return ", ".join(f'"{label}"' for label in labels)
