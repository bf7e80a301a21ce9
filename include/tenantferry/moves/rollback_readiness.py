"""All that a rollback checks and prepares while clients still work at the target."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg2
from psycopg2.extensions import connection

from tenantferry.backfill.snapshot import drop_slot, exported_snapshot
from tenantferry.connections import ConnectionParams, open_client_connection
from tenantferry.control.chunks import record_published
from tenantferry.control.direction import Direction
from tenantferry.control.graces import REVERSE_SLOT, Grace, require_way_back
from tenantferry.control.pauses import read_flipped_pause
from tenantferry.control.streams import check_origin_room, lock_stream
from tenantferry.errors import PermanentError, TenantferryError, TransientError
from tenantferry.moves.move import Move
from tenantferry.moves.readiness import check_schema, trial_alias
from tenantferry.moves.rewritten import compare_rewritten
from tenantferry.reverse.positions import reopen_position
from tenantferry.reverse.slot import ensure_reverse
from tenantferry.schema.catalog import read_tables
from tenantferry.schema.isolation import ensure_isolation
from tenantferry.schema.publication import ensure_publication, read_entries
from tenantferry.schema.reverse_publication import has_unpublished_tables
from tenantferry.schema.sequences import check_sequences_can_go_back
from tenantferry.schema.table_states import RowFiles
from tenantferry.stream.handshake import advance, release
from tenantferry.stream.marker import emit_marker
from tenantferry.traffic.fence import Fence, check_fenced
from tenantferry.traffic.instances import Instance
from tenantferry.traffic.role_fence import RoleFence, plan_role_fence

logger = logging.getLogger(__name__)

# The name of the slot, and whether the next stream can begin with it.
_SLOT = """
SELECT slot.database = current_database() AND slot.plugin = 'pgoutput' AND NOT slot.active
    AND slot.wal_status IS DISTINCT FROM 'lost' AND slot.confirmed_flush_lsn IS NOT NULL
    AND pg_catalog.to_jsonb(slot) ->> 'invalidation_reason' IS NULL
FROM pg_catalog.pg_replication_slots AS slot WHERE slot.slot_name = %s
"""
# What a server says to somebody whom it knows and the fence keeps out, where it speaks English. A
# refused login comes as text alone, without an SQLSTATE.
_FENCED = "permission denied for database"
_ALIKE = "Both sides must describe the tenant's tables alike again before it can go back."
_LANGUAGE = "SELECT lower(split_part(split_part(current_setting('lc_messages'), '.', 1), '_', 1))"
_ENGLISH = frozenset({"", "c", "posix", "en", "english"})


@dataclass(frozen=True, slots=True)
class WayBack:
    """
    What was prepared.

    :ivar grace: that ends; it names the cutover that is rolled back.
    :ivar fence: what the source's fence took away, to be given back.
    :ivar role_fence: what the fence of the tenant's role takes away.
    :ivar files: of the source's tables; as long as they hold its rows, these are the target's.
    """

    grace: Grace
    fence: Fence
    role_fence: RoleFence
    files: RowFiles

    @property
    def taken(self) -> dict[str, Any]:
        """What whoever settles the attempt gives back, as JSON."""
        return {**self.fence.to_json(), "role": self.role_fence.to_json()}


def get_ready_to_go_back(move: Move, source: connection, target: connection) -> WayBack:
    """
    Check everything that could fail during the pause, and do everything slow.

    :param source: session in autocommit.
    :param target: the step's session, outside a transaction; commits.
    :raises PermanentError: if the tenant cannot be rolled back.
    :raises TransientError: if it cannot be rolled back now.
    """
    tenant = move.tenant
    with target:
        # The fence of the role rests on what it says of roles without a login.
        ensure_isolation(target)
    grace, fence = _read_way_back(move, target)
    role_fence = plan_role_fence(target, tenant.role)
    check_fenced(source, fence)
    with target:
        check_origin_room(target, tenant.key)
    move.router.check(tenant.alias, max_write_pause_seconds=tenant.max_write_pause_seconds)
    check_schema(move, source, target, hint=_ALIKE)
    check_sequences_can_go_back(source, tenant)
    _rehearse(move, grace, is_english=speaks_english(source))
    # An attempt that was undone while the source was away may have left it closed.
    reopen_position(source, grace)
    # Also what the reverse stream would publish only at its next look.
    ensure_reverse(move.target)
    check_followed(target, tenant.key)
    files = compare_rewritten(move, source, target, grace)
    # Again: comparing may have taken hours.
    check_schema(move, source, target, hint=_ALIKE)
    _check_lag(move, target)
    with target, target.cursor() as cursor:
        # What may be left of the forward stream: its end is not waited for in the pause.
        lock_stream(cursor, tenant.key, for_session=False)
    ensure_publication(source, tenant, read_tables(source, tenant))
    with target:
        # No stream looks at it while the tenant is live.
        record_published(target, tenant.key, read_entries(source, tenant))
    return WayBack(grace, fence, role_fence, files)


@contextmanager
def slot_for_next_stream(move: Move, source: connection) -> Iterator[None]:
    """
    Make sure that the source keeps what is written from now on, for the next forward stream.

    Where the block fails before an attempt is recorded, nobody else would drop the slot, and the
    source would keep its log: then it goes again.

    :param source: session in autocommit; settling an attempt closes it.
    :raises TransientError: if the slot could not be had in time.
    """
    _ensure_slot(move, source)
    try:
        yield
    except BaseException:
        if not source.closed:
            _drop_slot(move, source)
        raise


def check_followed(target: connection, tenant: str) -> None:
    """
    Check that nothing the tenant has written is missing in what its source gets.

    :param target: session outside a transaction.
    :raises TransientError: if a table is not published yet; the retry does it.
    :raises PermanentError: if the tenant has lost its way back.
    """
    with target:
        # In this order: whoever publishes a table that the tenant has written to records the loss
        # in the same transaction.
        has_unpublished = has_unpublished_tables(target, REVERSE_SLOT)
        require_way_back(target, tenant)
    if has_unpublished:
        raise TransientError(
            f'a table of the target is not followed for tenant "{tenant}"',
            detail="It was created while the rollback was under way.",
            hint="The retry publishes it first.",
        )


def _read_way_back(move: Move, target: connection) -> tuple[Grace, Fence]:
    with target:
        grace = require_way_back(target, move.tenant.key)
        recorded = read_flipped_pause(target, move.tenant.key)
    if recorded is None or recorded.id != grace.attempt:
        raise PermanentError(
            f'tenant "{move.tenant.key}" cannot go back',
            detail=f"Its grace began with cutover attempt {grace.attempt}, not with its latest.",
        )
    return grace, Fence.from_json(recorded.fence)


def speaks_english(source: connection) -> bool:
    """Tell whether a server's messages can be compared with ours; only reads."""
    with source.cursor() as cursor:
        cursor.execute(_LANGUAGE)
        (language,) = cursor.fetchone() or ("",)
    return language in _ENGLISH


def _rehearse(move: Move, grace: Grace, *, is_english: bool) -> None:
    """
    Log in as the application through every instance to where its alias will point again.

    The source knows the login and refuses it for its fence: so a changed password or address shows
    before anybody is paused.

    :raises PermanentError: if the application would not reach its source.
    """
    entries = move.router.read_former(move.tenant.alias, attempt=grace.attempt)
    with trial_alias(move, entries) as trials:
        for instance, params in trials:
            _try_source(move, instance, params, is_english=is_english)


def _try_source(
    move: Move, instance: Instance, params: ConnectionParams, *, is_english: bool
) -> None:
    try:
        open_client_connection(params, purpose=f"probe {move.tenant.key}").close()
    except TenantferryError as error:
        if _FENCED in error.detail:
            return
        if not is_english and isinstance(error, TransientError):
            # The fence was checked otherwise; that alone must not make the way back impossible.
            logger.warning(
                "whether the source of tenant=%s still knows the application's login cannot be"
                " told from its answer: %s", move.tenant.key, error.detail,
            )  # fmt: skip
            return
        raise type(error)(
            f'PgBouncer instance "{instance.name}" cannot take the application of tenant'
            f' "{move.tenant.key}" back to its source',
            detail=str(error),
            hint="The comment above the alias in the alias file tells host and login that the"
            " source had at the cutover. Mend it there, or the login on the source.",
        ) from None
    raise PermanentError(
        f'the source of tenant "{move.tenant.key}" lets the application in',
        detail=f'It came in through PgBouncer instance "{instance.name}".',
        hint="Its alias pointed at another database before the cutover, or the fence is down.",
    )


def _check_lag(move: Move, target: connection) -> None:
    """Drain as the pause will, and let go: only what the source says proves the whole way."""
    tenant = move.tenant
    threshold = tenant.lag_threshold_seconds
    started = time.monotonic()
    with target:
        lsn = emit_marker(target, tenant)
    advance(
        move.target,
        tenant.key,
        lsn,
        timeout_seconds=max(threshold, tenant.max_write_pause_seconds),
        exact=False,
        direction=Direction.REVERSE,
    )
    seconds = time.monotonic() - started
    release(move.target, tenant.key, direction=Direction.REVERSE)
    if seconds > threshold:
        raise TransientError(
            f'reverse stream of tenant "{tenant.key}" is {seconds:.1f} s behind',
            detail=f"The pause would take that long; lag_threshold_seconds is {threshold:g}.",
            hint="Wait until it has caught up.",
        )


def _drop_slot(move: Move, source: connection) -> None:
    try:
        drop_slot(source, move.tenant.slot)
    except (psycopg2.Error, TransientError) as error:  # why the rollback failed is the news
        logger.warning("replication slot %s is left on the source: %s", move.tenant.slot, error)


def _ensure_slot(move: Move, source: connection) -> None:
    slot = move.tenant.slot
    with source.cursor() as cursor:
        cursor.execute(_SLOT, (slot,))
        is_usable = cursor.fetchone() == (True,)
    if is_usable:
        return
    drop_slot(source, slot)
    with exported_snapshot(
        move.source,
        slot=slot,
        temporary=False,
        timeout_seconds=move.tenant.slot_timeout_seconds,
        failover=True,
    ):
        logger.info("created replication slot %s on the source", slot)
