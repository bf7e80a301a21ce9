"""All that a cutover checks and prepares while clients still work."""

from __future__ import annotations

import logging
import secrets
from contextlib import ExitStack
from dataclasses import dataclass, replace

from psycopg2.extensions import connection

from tenantferry.control.pauses import read_stored_fence
from tenantferry.control.phases import IllegalPhaseError, Phase
from tenantferry.control.registry import require_registration
from tenantferry.errors import PermanentError, TransientError
from tenantferry.moves.lag import measure_lag
from tenantferry.moves.move import Move
from tenantferry.moves.probe import look
from tenantferry.moves.validate import validate_in_step
from tenantferry.schema.catalog import read_catalog, read_tables
from tenantferry.schema.findings import Verdict
from tenantferry.schema.retrofit import plan_retrofit
from tenantferry.schema.roles import set_role_login, set_role_password
from tenantferry.schema.sequences import ensure_tenant_sequences
from tenantferry.traffic.fence import Fence, check_fenceable, lower_fence, plan_fence
from tenantferry.validation.running import load_chunks

logger = logging.getLogger(__name__)

_VALIDATED = """
SELECT mismatches = 0 AND finished_at > clock_timestamp() - make_interval(secs => %s)
FROM tenantferry.validations WHERE tenant = %s ORDER BY id DESC LIMIT 1
"""


@dataclass(frozen=True, slots=True)
class Readiness:
    """
    What was prepared.

    :ivar fence: what the fence will take away.
    :ivar changes: what the alias will say; holds a password.
    """

    fence: Fence
    changes: dict[str, str]


def get_ready(move: Move, source: connection, target: connection) -> Readiness:
    """
    Check everything that could fail during the pause, and do everything slow.

    :param source: session in autocommit.
    :param target: the step's session, outside a transaction; commits.
    :raises PermanentError: if the tenant cannot be cut over.
    :raises TransientError: if it cannot be cut over now.
    """
    tenant = move.tenant
    with target:
        phase = require_registration(target, tenant.key).phase
    if phase is not Phase.VALIDATED:
        raise IllegalPhaseError(
            f'tenant "{tenant.key}" cannot be cut over in phase "{phase}"',
            hint='Clear the task "validate" and those after it.',
        )
    _plan_fence(move, source, target)
    move.router.check(tenant.alias, max_write_pause_seconds=tenant.max_write_pause_seconds)
    check_fenceable(source)
    check_schema(move, source, target)
    with target:
        # A table may have been prepared after the others were copied, and a sequence made.
        load_chunks(source, target, tenant, read_tables(source, tenant))
        ensure_tenant_sequences(source, target, tenant)
    if not _is_validated(move, target):
        validate_in_step(target, move)
    changes = _make_changes(move, target)
    try:
        rehearse(move, changes)
    finally:
        # From here to the decision nobody gets into the target as this tenant: a pooler that is
        # restarted in between reads alias files that point there already.
        with target:
            set_role_login(target, tenant.role, allowed=False)
    _check_lag(move)
    # Again: somebody may have been granted something meanwhile.
    return Readiness(_plan_fence(move, source, target), changes)


def check_schema(move: Move, source: connection, target: connection) -> None:
    """
    Check that the source's schema is still the one that was prepared for.

    :raises PermanentError: if it is not.
    """
    with target:
        plan = plan_retrofit(read_catalog(source), read_catalog(target), move.tenant)
    drift = [
        f"{finding.subject}: {finding.detail}"
        for finding in plan.drift
        if finding.verdict is Verdict.ERROR
    ]
    if drift or plan.statements:
        raise PermanentError(
            f'the schema of tenant "{move.tenant.key}" changed since it was prepared',
            detail=" ".join([*drift, *plan.statements]),
            hint='Clear the task "preflight" and those after it.',
        )


def rehearse(move: Move, changes: dict[str, str]) -> None:
    """
    Log in as the application through every instance to where its alias will point.

    An alias of our own is made for it, so that a wrong address, a refused login, or a pooler that
    cannot log in for its clients shows before anybody is paused.

    :raises PermanentError: if the application would not reach the target.
    """
    alias = f"tenantferry_{move.tenant.key}"
    with ExitStack() as stack:
        stack.callback(move.router.remove_extra_alias, alias)
        move.router.set_extra_alias(alias, changes)
        for instance in move.router.instances:
            params = replace(
                move.probe, host=instance.admin.host, port=instance.admin.port, database=alias
            )
            try:
                # Twice: PgBouncer (its issue 1461) may mix up what it learnt at the first login.
                for _ in range(2):
                    look(params, move.tenant, database=move.target_address[2])
            except PermanentError as error:
                raise PermanentError(
                    f'PgBouncer instance "{instance.name}" cannot take the application of tenant'
                    f' "{move.tenant.key}" to the target',
                    detail=str(error),
                    hint="If the password is refused: until the fix of its issue 1461, PgBouncer"
                    " needs clients' passwords in its auth_file in clear, not as SCRAM secrets.",
                ) from None


def _plan_fence(move: Move, source: connection, target: connection) -> Fence:
    """Plan the fence; one that an undone attempt left behind is lowered first."""
    fence = plan_fence(source)
    if not fence.is_raised:
        return fence
    with target:
        stored = read_stored_fence(target, move.tenant.key)
    if stored is None or Fence.from_json(stored).is_raised:
        raise PermanentError(
            f'database "{fence.database}" is fenced already, and not by a cutover of tenant'
            f' "{move.tenant.key}"',
            detail="Nobody but our role may connect, and it is read-only.",
            hint=f'GRANT CONNECT ON DATABASE "{fence.database}" to whom it belongs, and ALTER'
            f' DATABASE "{fence.database}" RESET default_transaction_read_only.',
        )
    logger.warning("lowering a fence that was left behind on database %s", fence.database)
    lower_fence(source, Fence.from_json(stored))
    return plan_fence(source)


def _is_validated(move: Move, target: connection) -> bool:
    with target, target.cursor() as cursor:
        cursor.execute(_VALIDATED, (move.tenant.validation_max_age_seconds, move.tenant.key))
        return cursor.fetchone() == (True,)


def _make_changes(move: Move, target: connection) -> dict[str, str]:
    """Give the tenant's role a login, whose password will stand in the alias file alone."""
    host, port, database = move.target_address
    password = secrets.token_urlsafe(32)
    with target:
        set_role_password(target, move.tenant.role, password)
        set_role_login(target, move.tenant.role, allowed=True)
    return {
        "host": host,
        "port": str(port),
        "dbname": database,
        "user": move.tenant.role,
        "password": password,
    }


def _check_lag(move: Move) -> None:
    threshold = move.tenant.lag_threshold_seconds
    seconds = measure_lag(move, timeout_seconds=max(threshold, move.tenant.max_write_pause_seconds))
    if seconds > threshold:
        raise TransientError(
            f'stream of tenant "{move.tenant.key}" is {seconds:.1f} s behind',
            detail=f"The pause would take that long; lag_threshold_seconds is {threshold:g}.",
            hint="Wait until it has caught up.",
        )
