"""Step six: prove that both sides hold the same rows at one position."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from psycopg2.extensions import connection

from tenantferry.backfill.chunk import Chunk
from tenantferry.backfill.finished import check_all_copied
from tenantferry.control.phases import AT_TARGET, IllegalPhaseError, Phase
from tenantferry.control.registry import change_phase, check_owner, require_registration
from tenantferry.control.streams import mark_copy_again
from tenantferry.control.touched import forget_touched, read_touched
from tenantferry.control.validations import (
    read_latest_validation,
    read_validated_tables,
    record_tables,
)
from tenantferry.errors import CopyAgainError, PermanentError, TransientError
from tenantferry.moves.backfill import copy_in_step
from tenantferry.moves.former import settle_former
from tenantferry.moves.move import Move
from tenantferry.moves.repair import repair_in_step
from tenantferry.moves.sessions import exclusive_step, open_source
from tenantferry.moves.witnessing import call_witness, tell_trespass
from tenantferry.schema.catalog import read_tables
from tenantferry.schema.left_behind import check_nothing_left_behind
from tenantferry.schema.model import Table
from tenantferry.schema.publication import check_published
from tenantferry.schema.table_states import TableState, find_changes, read_table_states
from tenantferry.validation.running import (
    TenantComparison,
    ValidationResult,
    compare_again,
    compare_tenant,
    record_comparison,
)

logger = logging.getLogger(__name__)

# Comparing so many rows takes some ten milliseconds of a write pause.
MAX_LAST_KEYS = 1_000

_COPIED = frozenset({Phase.STREAMING, Phase.VALIDATED})
# Others leave these by themselves: a backfill that goes on, a cutover that is settled.
_PASSING = frozenset({Phase.BACKFILLING, Phase.CUTTING_OVER})


class MismatchError(CopyAgainError):
    """Source and target do not hold the same rows. Nothing was changed."""


def validate(move: Move, *, repair: bool = False) -> ValidationResult:
    """
    Compare every row of the tenant at one position, while writes flow.

    :param repair: copy chunks whose rows differ once more, then compare again.
    :raises MismatchError: if anything differs; the message names the rows.
    :raises TrespassError: if nothing differs, but the move has changed rows of other tenants.
    :raises SupersededError: if another run has the tenant.
    """
    with exclusive_step(move.target, tenant=move.tenant.key, step="validate") as target:
        settle_former(move, target)
        registration = require_registration(target, move.tenant.key)
        target.commit()
        phase = registration.phase
        if phase in AT_TARGET:
            return _recorded(target, move)
        check_owner(registration, move.run_id)
        if phase is Phase.BACKFILLING and repair:  # a repair that died
            with open_source(move.source, purpose=f"validate {move.tenant.key}") as source:
                copy_in_step(target, move, read_tables(source, move.tenant))
        elif phase in _PASSING:
            raise TransientError(
                f'tenant "{move.tenant.key}" cannot be validated while its phase is "{phase}"',
                hint="Another step is on its way, or its leftovers are being settled.",
            )
        elif phase not in _COPIED:
            raise IllegalPhaseError(
                f'tenant "{move.tenant.key}" cannot be validated in phase "{phase}"',
                hint='Clear the task "backfill" and those after it.',
            )
        return validate_in_step(target, move, repair=repair)


def validate_in_step(target: connection, move: Move, *, repair: bool = False) -> ValidationResult:
    """
    Compare, within a step that already keeps other steps of this tenant away.

    :param target: the step's session, outside a transaction; this commits the phase.
    :param repair: copy chunks whose rows differ once more, then compare again.
    :raises MismatchError: if anything differs.
    """
    tenant = move.tenant
    with open_source(move.source, purpose=f"validate {tenant.key}") as source:
        # First: what changes from here on is not validated.
        states = read_table_states(source, tenant)
        tables = read_tables(source, tenant)
        check_published(source, tenant, tables)
        with target:
            check_nothing_left_behind(target, tenant, tables)
            check_all_copied(source, target, tenant, tables)
    found = _compare(target, move, tables)
    if repair and found.differing:
        with target:
            record_comparison(target, tenant, found, run_id=move.run_id)
        repair_in_step(target, move, tables, found.differing)
        found = _compare(target, move, tables)
    return _conclude(target, move, found, states)


def revalidate_in_step(
    source: connection,
    target: connection,
    move: Move,
    tables: Sequence[Table],
    chunks: Sequence[tuple[Chunk, Table]],
) -> ValidationResult:
    """
    Compare what was written since a validated tenant was compared; all, where nobody knows.

    So few rows that they can be compared within a write pause are left to it.

    :param source: session in autocommit; only read.
    :param target: the step's session, outside a transaction; this commits.
    :raises MismatchError: if anything differs.
    """
    tenant = move.tenant
    states = read_table_states(source, tenant)
    with target:
        latest = read_latest_validation(target, tenant.key)
        seen = {} if latest is None else read_validated_tables(target, latest.validation_id)
        touched = read_touched(target, tenant.key, since=latest.position if latest else 0)
    changes = find_changes(seen, states)
    if latest is None or latest.mismatches or touched is None or changes.reshaped:
        return validate_in_step(target, move)
    rewritten = [table for table in tables if table.label in changes.rewritten]
    if not rewritten and sum(found.size for found in touched) <= MAX_LAST_KEYS:
        return latest
    found = compare_again(
        move.source,
        move.target,
        tenant,
        tables,
        chunks,
        since=latest.position,
        rewritten=rewritten,
    )
    if found is None:
        return validate_in_step(target, move)
    return _conclude(target, move, found, states)


def _conclude(
    target: connection, move: Move, found: TenantComparison, states: Mapping[str, TableState]
) -> ValidationResult:
    tenant = move.tenant
    differ = found.mismatches > 0
    found = call_witness(move, found)
    matches = found.mismatches == 0
    with target:
        result = record_comparison(target, tenant, found, run_id=move.run_id)
        if found.since is None or not matches:
            _change_phase(target, move, result)
            # What was done to others is not mended by copying the tenant again.
            # A repair compares everything first, also where only single rows were compared here.
            repairable = bool(found.differing) or found.since is not None
            mark_copy_again(target, tenant.key, needed=differ, repairable=repairable)
        record_tables(target, result.validation_id, states)
        if matches:
            forget_touched(target, tenant.key, before=result.position)
    if not matches and not differ:
        detail = " ".join(str(difference) for difference in result.differences)
        raise tell_trespass(move, detail=f"{result.witnessed}. {detail}")
    if not matches:
        raise MismatchError(
            f'source and target differ for tenant "{tenant.key}" in {result.mismatches} place(s)',
            detail=" ".join(str(difference) for difference in result.differences),
            hint="The rows are listed in tenantferry.mismatches with"
            f" validation_id {result.validation_id}. The tenant stays on its source. Mark this run"
            ' as failed and trigger it again with "repair", which copies the chunks of these rows'
            ' once more; or mend the rows and clear "validate".',
        )
    return result


def _change_phase(target: connection, move: Move, result: ValidationResult) -> None:
    change_phase(
        target,
        move.tenant.key,
        Phase.STREAMING if result.mismatches else Phase.VALIDATED,
        run_id=move.run_id,
        lsn=result.position,
        reason=f"validation {result.validation_id}: {result.rows} rows of"
        f" {result.tables} tables, {result.mismatches} mismatches"
        f"{f'; {result.witnessed}' if result.witnessed else ''}",
    )


def _compare(target: connection, move: Move, tables: Sequence[Table]) -> TenantComparison:
    try:
        return compare_tenant(move.source, move.target, move.tenant, tables)
    except CopyAgainError:
        with target:
            mark_copy_again(target, move.tenant.key, needed=True)
        raise


def _recorded(target: connection, move: Move) -> ValidationResult:
    recorded = read_latest_validation(target, move.tenant.key)
    if recorded is None:
        raise PermanentError(f'tenant "{move.tenant.key}" is live but was never validated')
    return recorded
