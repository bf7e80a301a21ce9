"""
Bring an attempt of a cutover to its end: undo it, or finish it.

Used by the cutover itself when it fails, by its guard when it dies, and by the next try of the
task. All three may come at the same time, so each takes the row of the attempt first, and whoever
comes second finds nothing left to do.
"""

from __future__ import annotations

import logging
import time
from contextlib import closing
from dataclasses import dataclass, replace

import psycopg2
from psycopg2.extensions import connection

from tenantferry.connections import ConnectionParams, open_connection
from tenantferry.control.pauses import (
    PauseStep,
    claim_undo,
    keep_latest,
    lock_pause,
    record_step,
    record_undone,
)
from tenantferry.control.phases import Phase
from tenantferry.control.registry import change_phase
from tenantferry.control.streams import StreamCommand, command, read_stream
from tenantferry.errors import TenantferryError, TransientError
from tenantferry.traffic.fence import Fence, lower_fence
from tenantferry.traffic.router import Router

logger = logging.getLogger(__name__)

# Our statements on the source are short. One that takes longer must not keep clients waiting.
_SOURCE_SETTINGS = {"statement_timeout": "5s", "lock_timeout": "3s"}
_CONNECT_TIMEOUT_SECONDS = "3"
_END_SESSION = (
    "SELECT pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity"
    " WHERE pid = %s AND usename = current_user AND application_name = %s"
)
_END_TIMEOUT_SECONDS = 5.0
_RECHECK_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Attempt:
    """
    What it takes to settle one attempt.

    :ivar tenant: key.
    :ivar source_pid: of the cutover's session on the source, where it is known.
    :ivar run_id: for the audit trail.
    """

    id: int
    tenant: str
    alias: str
    source: ConnectionParams
    target: ConnectionParams
    router: Router
    run_id: str | None
    source_pid: int | None = None


def settle(attempt: Attempt, target: connection, *, reason: str) -> bool:
    """
    Undo an attempt that is not flipped; finish one that is. Commits.

    :param target: session outside a transaction.
    :return: whether the tenant belongs to the target.
    :raises TransientError: if something could not be brought to its end; call it again.
    """
    try:
        with target:
            is_undone = claim_undo(target, attempt.id, reason=reason)
        if is_undone:
            _undo(attempt, target, reason)
        else:
            _finish(attempt, target)
    except psycopg2.Error as error:
        raise TransientError(
            f"could not settle cutover attempt {attempt.id}",
            detail=" ".join(str(error).split()),
        ) from None
    return not is_undone


def undo_traffic(attempt: Attempt, fence: Fence | None) -> None:
    """
    Let everybody back to the source, as far as they were kept away. Records nothing.

    Only for an attempt that nobody can flip. What its session on the source was still about to do
    is ended first, or the fence could go up after it was lowered.

    :raises TransientError: if one part failed; the others are done.
    """
    failures: list[str] = []
    # The fence first: a client that is resumed before would be refused.
    if fence is not None:
        try:
            _lower(attempt, fence)
        except (TenantferryError, psycopg2.Error) as failure:
            failures.append(" ".join(str(failure).split()))
    try:
        attempt.router.restore(attempt.alias, attempt=attempt.id)
    except TenantferryError as failure:
        failures.append(" ".join(str(failure).split()))
    if failures:
        raise TransientError(
            f"could not undo all of cutover attempt {attempt.id}",
            detail=" ".join(failures),
            hint="Clear the task: it goes on undoing where this ended.",
        )


def _undo(attempt: Attempt, target: connection, reason: str) -> None:
    with target:
        recorded = lock_pause(target, attempt.id)
        attempt = replace(attempt, source_pid=recorded.source_pid)
        fence = Fence.from_json(recorded.fence) if recorded.fence else None
        if recorded.undone_at is not None:
            # Whoever lived on may have gone a step further since. A later attempt is not ours.
            if keep_latest(target, attempt.tenant, attempt.id):
                undo_traffic(attempt, fence)
            return
        undo_traffic(attempt, fence)
        if read_stream(target, attempt.tenant) is not None:
            command(target, attempt.tenant, StreamCommand.RUN)
        record_undone(target, attempt.id)
        change_phase(
            target, attempt.tenant, Phase.VALIDATED, run_id=attempt.run_id,
            reason=f"cutover attempt {attempt.id} was undone: {reason}",
        )  # fmt: skip
    logger.warning("undid cutover attempt=%s tenant=%s", attempt.id, attempt.tenant)


def _finish(attempt: Attempt, target: connection) -> None:
    with target:
        recorded = lock_pause(target, attempt.id)
        if PauseStep.RESUMED in recorded.reached:
            return
        attempt.router.finish(attempt.alias)
        record_step(target, attempt.id, PauseStep.RESUMED)
    logger.info("finished cutover attempt=%s tenant=%s", attempt.id, attempt.tenant)


def _lower(attempt: Attempt, fence: Fence) -> None:
    options = {"connect_timeout": _CONNECT_TIMEOUT_SECONDS, **attempt.source.options}
    params = replace(attempt.source, options=options)
    with closing(
        open_connection(
            params, purpose=f"undo {attempt.tenant}", autocommit=True, settings=_SOURCE_SETTINGS
        )
    ) as source:
        if attempt.source_pid is not None:
            end_session(source, attempt.source_pid, tenant=attempt.tenant)
        lower_fence(source, fence)


def end_session(server: connection, pid: int, *, tenant: str) -> None:
    """
    End a session of a cutover, so that nothing it was told still happens.

    One that is gone stays so.

    :param server: another session of our role, outside a transaction or in autocommit.
    :raises TransientError: if it does not end in time.
    """
    deadline = time.monotonic() + _END_TIMEOUT_SECONDS
    while True:
        with server, server.cursor() as cursor:
            # Process ids are used again; a name hardly is.
            cursor.execute(_END_SESSION, (pid, cutover_application(tenant)))
            if not cursor.rowcount:
                return
        if time.monotonic() > deadline:
            raise TransientError(
                f"could not end the session with pid {pid} of a cutover that is over",
                detail=f"It is still there after {_END_TIMEOUT_SECONDS:g} s.",
                hint="SELECT pg_terminate_backend of it as a superuser, then clear the task.",
            )
        time.sleep(_RECHECK_SECONDS)  # a session's end can only be asked for


def cutover_application(tenant: str) -> str:
    """Return the application_name of a cutover's sessions."""
    return f"tenantferry cutover {tenant}"[:63]
