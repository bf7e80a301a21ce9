"""Stream one tenant from its source into the target, until told to stop."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass

import psycopg2
from psycopg2.extensions import connection

from tenantferry.backfill.chunk import TEXT_SETTINGS
from tenantferry.connections import ConnectionParams, open_connection
from tenantferry.control.chunks import take_back_chunks
from tenantferry.control.streams import (
    StreamCommand,
    StreamRecord,
    StreamState,
    record_failure,
    record_timeline,
    require_stream,
)
from tenantferry.errors import CopyAgainError, TenantferryError
from tenantferry.fleet.declaration import Tenant
from tenantferry.lsn import format_lsn
from tenantferry.schema.model import Table
from tenantferry.stream.answers import Answers, Order
from tenantferry.stream.applier import APPLY_SETTINGS, Applier
from tenantferry.stream.copyboth import NoPublicationError
from tenantferry.stream.draining import apply_before
from tenantferry.stream.drift import DriftError
from tenantferry.stream.failures import RefusedValueError, explain
from tenantferry.stream.heartbeat import Heartbeat
from tenantferry.stream.labels import check_labels
from tenantferry.stream.loop import Loop
from tenantferry.stream.partial import CopiedPart, settle_part
from tenantferry.stream.planned import read_planned_tables, tell_unsent
from tenantferry.stream.progress import TargetProgress
from tenantferry.stream.reading import Reader
from tenantferry.stream.relations import Relations, can_send_binary
from tenantferry.stream.remembering import Memory
from tenantferry.stream.scope import forward_scope
from tenantferry.stream.standing import find_standing
from tenantferry.stream.takeover import (
    LostChangesError,
    settle_origin,
    take_slot,
    take_target,
)
from tenantferry.stream.walsender import Walsender
from tenantferry.stream.worker import Worker
from tenantferry.throttle.throttle import UNTHROTTLED, Throttle

logger = logging.getLogger(__name__)

# About what a batch takes in memory. Another one is collected while it is applied, so a stream
# needs a few times this.
BATCH_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class StreamResult:
    """
    How a stream ended.

    :ivar changes: applied since the tenant was copied, over all starts.
    :ivar transactions: the same.
    :ivar position: P, an LSN of the source.
    :ivar reason: one sentence.
    """

    changes: int
    transactions: int
    position: int
    reason: str


def run_stream(
    source_params: ConnectionParams,
    target_params: ConnectionParams,
    tenant: Tenant,
    tables: Sequence[Table],
    *,
    stop: threading.Event,
    batch_bytes: int = BATCH_BYTES,
    while_copying: bool = False,
    throttle: Throttle = UNTHROTTLED,
) -> StreamResult:
    """
    Apply the source's changes to the target until told to stop, or until *stop* is set.

    A session that still streams this tenant is ended first: the newest start wins. Whatever
    happens, also to this process, the next start goes on exactly where the target stands.

    :param tables: those of the move, as the source describes them now.
    :param batch_bytes: about how much memory a batch may take.
    :param while_copying: write to the copied chunks of a backfill that is not done, see `catch_up`.
    :param throttle: slows it down, unless somebody waits for a position.
    :raises TransientError: if a server was lost, or the tenant is not copied yet; the next start
        goes on.
    :raises PermanentError: if the stream cannot go on without a person: the tables have changed,
        the slot was lost, the target does not hold what it should. Nothing more was applied.
    """

    def start(before: int | None = None) -> StreamResult:
        with ExitStack() as stack:
            return _stream(
                stack, source_params, target_params, tenant, tables, stop=stop,
                batch_bytes=batch_bytes, while_copying=while_copying, throttle=throttle,
                before=before,
            )  # fmt: skip

    def apply_until(drift: DriftError) -> None:
        # Once the target has the new shape, rows of the old one do not fit any more.
        if drift.commit_lsn is not None:
            try:
                start(before=drift.commit_lsn)
            except DriftError as earlier:
                if earlier.commit_lsn is not None and earlier.commit_lsn < drift.commit_lsn:
                    start(before=earlier.commit_lsn)
                raise

    has_drifted = False
    try:
        try:
            return start()
        except DriftError as drift:
            has_drifted = True
            apply_until(drift)
            raise
    except NoPublicationError as error:
        lost = LostChangesError(
            f'changes of tenant "{tenant.key}" were written while its publication was not there',
            detail=error.detail,
            hint='Clear the task "preflight" and those after it: the tenant is copied again.',
        )
        record_failure(target_params, tenant.key, str(lost))
        raise lost from None
    except TenantferryError as error:
        record_failure(target_params, tenant.key, str(error), compare_all=has_drifted)
        raise
    except psycopg2.Error as error:
        explained = explain(error, f'stream tenant "{tenant.key}"')
        record_failure(target_params, tenant.key, str(explained), compare_all=has_drifted)
        raise explained from None


def _stream(
    stack: ExitStack,
    source_params: ConnectionParams,
    target_params: ConnectionParams,
    tenant: Tenant,
    tables: Sequence[Table],
    *,
    stop: threading.Event,
    batch_bytes: int,
    while_copying: bool,
    throttle: Throttle,
    before: int | None,
) -> StreamResult:
    purpose = f"stream {tenant.key}"

    def open_target(what: str, **settings: str) -> connection:
        opened = open_connection(
            target_params, purpose=f"{purpose}{what}", autocommit=True, settings=settings
        )
        return stack.enter_context(closing(opened))

    # Keys are remembered as text, spelled as whoever compares them spells it.
    applying = open_target("", **{**TEXT_SETTINGS, **APPLY_SETTINGS})
    progress = take_target(applying, tenant)
    control = open_target(" control")
    # Only now: the session that was ended may have moved the position until its end.
    record = require_stream(control, tenant.key)
    answers = Answers(control, tenant.key)
    if record.command is StreamCommand.STOP and record.position >= (record.command_lsn or 0):
        if while_copying:
            # The next snapshot is of that server.
            find_standing(source_params, control, record)
        answers.acknowledge(_order_of(record), StreamState.STOPPED)
        return _result(record, StreamState.STOPPED)
    settle_origin(applying, tenant, progress=progress, position=record.position)
    source = stack.enter_context(
        closing(
            open_connection(source_params, purpose=purpose, autocommit=True, settings=TEXT_SETTINGS)
        )
    )
    standing = find_standing(source_params, control, record)
    take_slot(source, tenant, standing)
    record_timeline(control, tenant.key, timeline=standing.timeline, confirmed=standing.confirmed)
    if while_copying:
        # P is about to move. From here on nobody copies a chunk.
        take_back_chunks(applying, tenant.key)
    # Before it looks for pending chunks: a table that is planned in between is left out.
    planned = read_planned_tables(source, applying, tenant, tables)
    if planned.unsent and before is None:
        raise tell_unsent(source, tenant, planned.unsent)
    copied = settle_part(source, applying, tenant, tables, while_copying=while_copying)
    answers.end(StreamState.STARTING, None)
    walsender = stack.enter_context(
        Walsender(
            source_params,
            slot=tenant.slot,
            purpose=purpose,
            position=record.position,
            binary=can_send_binary(source, [table.qualified for table in tables]),
            timeline=standing.timeline,
        )
    )
    logger.info("stream starts tenant=%s position=%s", tenant.key, format_lsn(record.position))
    applying.autocommit = False
    applier = _make_applier(applying, tenant, record, copied)
    relations = Relations(source, control, tables, planned)
    reader = Reader(walsender, relations, position=record.position)
    if before is not None:
        apply_before(before, walsender, reader, applier, batch_bytes=batch_bytes, stop=stop)
        return _result(require_stream(control, tenant.key), StreamState.INTERRUPTED)
    loop = Loop(
        walsender=walsender,
        reader=reader,
        worker=stack.enter_context(closing(Worker(applier, applying))),
        answers=answers,
        heartbeat=Heartbeat(source, tenant.key),
        position=record.position,
        confirmed=standing.confirmed,
        byte_limit=batch_bytes,
        turns=throttle.turns(),
    )
    try:
        state = loop.run(stop)
    except RefusedValueError:
        check_labels(source, control)
        raise
    except CopyAgainError:
        planned = read_planned_tables(source, control, tenant, tables)
        if planned.unsent:
            # Rows are missing for that reason, and of these tables only.
            raise tell_unsent(source, tenant, planned.unsent) from None
        raise
    answers.end(state, None)
    result = _result(require_stream(control, tenant.key), state)
    logger.info("stream ends tenant=%s reason=%s", tenant.key, result.reason)
    return result


def _make_applier(
    target: connection, tenant: Tenant, record: StreamRecord, copied: CopiedPart | None
) -> Applier:
    return Applier(
        target,
        forward_scope(tenant.id),
        TargetProgress(tenant),
        position=record.position,
        copied=copied,
        memory=Memory(tenant.key, is_on=record.touched_since is not None),
    )


def _order_of(record: StreamRecord) -> Order:
    return Order(record.command, record.command_lsn or 0, record.command_id, has_expired=False)


def _result(record: StreamRecord, state: StreamState) -> StreamResult:
    return StreamResult(
        changes=record.changes,
        transactions=record.transactions,
        position=record.position,
        reason=f"{state} at {format_lsn(record.position)}",
    )
