"""All that a cutover checks and prepares while clients still work."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from psycopg2.extensions import connection

from tenantferry.backfill.chunk import Chunk
from tenantferry.backfill.finished import check_all_copied
from tenantferry.connections import ConnectionParams
from tenantferry.control.pauses import read_stored_fence
from tenantferry.control.phases import IllegalPhaseError, Phase
from tenantferry.control.registry import require_registration
from tenantferry.control.validations import read_validated_tables
from tenantferry.errors import PermanentError, TransientError
from tenantferry.moves.lag import measure_lag
from tenantferry.moves.last_rows import compare_last_rows
from tenantferry.moves.move import Move
from tenantferry.moves.probe import look
from tenantferry.moves.unchanged import require_same_shape
from tenantferry.moves.validate import validate_in_step
from tenantferry.reverse.slot import ensure_reverse
from tenantferry.schema.catalog import read_catalog, read_tables
from tenantferry.schema.left_behind import check_nothing_left_behind
from tenantferry.schema.model import Table
from tenantferry.schema.publication import check_published
from tenantferry.schema.retrofit import plan_retrofit
from tenantferry.schema.roles import set_role_login, set_role_password
from tenantferry.schema.sequences import ensure_tenant_sequences
from tenantferry.schema.table_states import find_changes, read_table_states
from tenantferry.traffic.fence import Fence, check_fenceable, lower_fence, plan_fence
from tenantferry.traffic.instances import Instance
from tenantferry.validation.running import load_chunks

logger = logging.getLogger(__name__)

_VALIDATED = """
SELECT finished_at > clock_timestamp() - make_interval(secs => %s)
FROM tenantferry.validations WHERE tenant = %s AND direction = 'forward' AND since IS NULL
ORDER BY id DESC LIMIT 1
"""


@dataclass(frozen=True, slots=True)
class Readiness:
    """
    What was prepared.

    :ivar fence: what the fence will take away.
    :ivar changes: what the alias will say; holds a password.
    :ivar tables: those that move.
    :ivar chunks: of these tables.
    :ivar compared_at_lsn: P at which both sides are known to be equal ...
    :ivar states: ... for as long as the source's tables are these.
    """

    fence: Fence
    changes: dict[str, str]
    tables: tuple[Table, ...]
    chunks: tuple[tuple[Chunk, Table], ...]
    compared_at_lsn: int
    states: Mapping[str, tuple[str, str]]


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
    seen = read_table_states(source, tenant)
    check_schema(move, source, target)
    with target:
        # A table may have been prepared after the others were copied, and a sequence made.
        tables = read_tables(source, tenant)
        check_published(source, tenant, tables)
        check_nothing_left_behind(target, tenant, tables)
        check_all_copied(source, target, tenant, tables)
        chunks = tuple(load_chunks(source, target, tenant, tables))
        ensure_tenant_sequences(source, target, tenant)
    if not _is_validated(move, target):
        validate_in_step(target, move)
    ensure_reverse(move.target)
    changes = _make_changes(move, target)
    try:
        rehearse(move, changes)
    finally:
        # From here to the decision nobody gets into the target as this tenant: a pooler that is
        # restarted in between reads alias files that point there already.
        with target:
            set_role_login(target, tenant.role, allowed=False)
    compared = compare_last_rows(source, target, move, tables, chunks)
    _check_lag(move)
    # Again: comparing may have taken hours.
    fence = _plan_fence(move, source, target)
    check_schema(move, source, target)
    with target:
        states = read_validated_tables(target, compared.validation_id)
    require_same_shape(find_changes(seen, states), tenant)
    return Readiness(fence, changes, tables, chunks, compared.position, states)


def check_schema(
    move: Move,
    source: connection,
    target: connection,
    *,
    hint: str = 'Clear the task "preflight" and those after it.',
) -> None:
    """
    Check that the source's schema is still the one that was prepared for.

    :param hint: what to do if it is not.
    :raises PermanentError: if it is not.
    """
    with target, target.cursor() as cursor:
        # Many statements read a catalog, and another tenant may be prepared meanwhile.
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        plan = plan_retrofit(read_catalog(source), read_catalog(target), move.tenant)
    if plan.changes:
        raise PermanentError(
            f'the schema of tenant "{move.tenant.key}" changed since it was prepared',
            detail=" ".join(plan.changes),
            hint=hint,
        )


def rehearse(move: Move, changes: dict[str, str]) -> None:
    """
    Log in as the application through every instance to where its alias will point.

    A wrong address, a refused login, or a pooler that cannot log in for its clients shows so before
    anybody is paused.

    :raises PermanentError: if the application would not reach the target.
    """
    with trial_alias(move, [changes for _ in move.router.instances]) as trials:
        for instance, params in trials:
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


@contextmanager
def trial_alias(
    move: Move, entries: Sequence[Mapping[str, str]]
) -> Iterator[list[tuple[Instance, ConnectionParams]]]:
    """
    Let the application log in through each instance by an alias of our own, within the block.

    :param entries: the parameters of each instance.
    :return: how it logs in.
    """
    alias = f"tenantferry_{move.tenant.key}"
    try:
        move.router.set_extra_alias(alias, entries)
        yield [
            (i, replace(move.probe, host=i.admin.host, port=i.admin.port, database=alias))
            for i in move.router.instances
        ]
    finally:
        move.router.remove_extra_alias(alias)


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
