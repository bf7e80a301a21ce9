"""Step six: prove that both sides hold the same rows at one position."""

from __future__ import annotations

import logging

from psycopg2.extensions import connection

from tenantferry.control.phases import AT_TARGET, IllegalPhaseError, Phase
from tenantferry.control.registry import change_phase, check_owner, require_registration
from tenantferry.control.streams import mark_copy_again
from tenantferry.control.validations import read_latest_validation, record_partitions
from tenantferry.errors import CopyAgainError, PermanentError, TransientError
from tenantferry.moves.former import settle_former
from tenantferry.moves.move import Move
from tenantferry.moves.sessions import exclusive_step, open_source
from tenantferry.schema.catalog import read_tables
from tenantferry.schema.partitions import read_partition_state
from tenantferry.validation.running import ValidationResult, validate_tenant

logger = logging.getLogger(__name__)

_COPIED = frozenset({Phase.STREAMING, Phase.VALIDATED})
# Others leave these by themselves: a backfill that goes on, a cutover that is settled.
_PASSING = frozenset({Phase.BACKFILLING, Phase.CUTTING_OVER})


class MismatchError(CopyAgainError):
    """Source and target do not hold the same rows. Nothing was changed."""


def validate(move: Move) -> ValidationResult:
    """
    Compare every row of the tenant at one position, while writes flow.

    :raises MismatchError: if anything differs; the message names the rows.
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
        if phase in _PASSING:
            raise TransientError(
                f'tenant "{move.tenant.key}" cannot be validated while its phase is "{phase}"',
                hint="Another step is on its way, or its leftovers are being settled.",
            )
        if phase not in _COPIED:
            raise IllegalPhaseError(
                f'tenant "{move.tenant.key}" cannot be validated in phase "{phase}"',
                hint='Clear the task "backfill" and those after it.',
            )
        return validate_in_step(target, move)


def validate_in_step(target: connection, move: Move) -> ValidationResult:
    """
    Compare, within a step that already keeps other steps of this tenant away.

    :param target: the step's session, outside a transaction; this commits the phase.
    :raises MismatchError: if anything differs.
    """
    tenant = move.tenant
    with open_source(move.source, purpose=f"validate {tenant.key}") as source:
        tables = read_tables(source, tenant)
        # Before: what changes while rows are compared is not validated.
        partitions = read_partition_state(source, tables)
    try:
        result = validate_tenant(move.source, move.target, tenant, tables, run_id=move.run_id)
    except CopyAgainError:
        with target:
            mark_copy_again(target, tenant.key, needed=True)
        raise
    matches = result.mismatches == 0
    with target:
        change_phase(
            target,
            tenant.key,
            Phase.VALIDATED if matches else Phase.STREAMING,
            run_id=move.run_id,
            lsn=result.position,
            reason=f"validation {result.validation_id}: {result.rows} rows of"
            f" {result.tables} tables, {result.mismatches} mismatches",
        )
        mark_copy_again(target, tenant.key, needed=not matches)
        record_partitions(target, result.validation_id, partitions)
    if not matches:
        raise MismatchError(
            f'source and target differ for tenant "{tenant.key}" in {result.mismatches} place(s)',
            detail=" ".join(str(difference) for difference in result.differences),
            hint="The rows are listed in tenantferry.mismatches with"
            f" validation_id {result.validation_id}. The tenant stays on its source. Mend the rows"
            ' and clear "validate", or clear "backfill" and those after it to copy all again.',
        )
    return result


def _recorded(target: connection, move: Move) -> ValidationResult:
    recorded = read_latest_validation(target, move.tenant.key)
    if recorded is None:
        raise PermanentError(f'tenant "{move.tenant.key}" is live but was never validated')
    return recorded
