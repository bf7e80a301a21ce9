"""
Bring an attempt of a cutover or a rollback to its end: undo it, or finish it.

Used by the step itself when it fails, by its guard when it dies, and by the next try of the task.
All three may come at the same time, so each takes the row of the attempt first, and whoever comes
second finds nothing left to do.

Clients are let back only to a side that takes them: the fence of the source is lowered, and the
tenant's role may log in to the target again, before anybody is resumed there.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace

import psycopg2
from psycopg2.extensions import connection

from tenantferry.backfill.snapshot import drop_slot
from tenantferry.connections import ConnectionParams, open_connection
from tenantferry.control.direction import Direction
from tenantferry.control.graces import Grace, read_grace
from tenantferry.control.pauses import (
    PauseStep,
    WritePause,
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
from tenantferry.reverse.positions import reopen_position
from tenantferry.traffic.fence import Fence, lower_fence
from tenantferry.traffic.role_fence import RoleFence, lower_role_fence
from tenantferry.traffic.router import Router

logger = logging.getLogger(__name__)

# What people call an attempt of each direction; also a part of its sessions' names.
STEP_NAMES = {Direction.FORWARD: "cutover", Direction.REVERSE: "rollback"}
# Where an undone attempt leaves the tenant.
_UNDONE = {Direction.FORWARD: Phase.VALIDATED, Direction.REVERSE: Phase.LIVE}

# Our statements on the source are short. One that takes longer must not keep clients waiting.
_SOURCE_SETTINGS = {"statement_timeout": "5s", "lock_timeout": "3s"}
_CONNECT_TIMEOUT_SECONDS = "3"
_END_SESSION = (
    "SELECT pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity"
    " WHERE pid = %s AND usename = current_user AND application_name = %s"
)
# Whoever has the row of an attempt is settling it, or is dead: the caller tries again.
_LOCK_TIMEOUT = "5s"
_END_TIMEOUT_SECONDS = 5.0
_RECHECK_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Attempt:
    """
    What it takes to settle one attempt.

    :ivar direction: forward is a cutover, reverse a rollback.
    :ivar tenant: key.
    :ivar slot: the tenant's durable slot on the source.
    :ivar source_pid: of the attempt's session on the source, where it is known.
    :ivar run_id: for the audit trail.
    """

    id: int
    direction: Direction
    tenant: str
    alias: str
    slot: str
    source: ConnectionParams
    target: ConnectionParams
    router: Router
    run_id: str | None
    source_pid: int | None = None

    @property
    def name(self) -> str:
        """What people call it, e.g. ``rollback attempt 7``."""
        return f"{STEP_NAMES[self.direction]} attempt {self.id}"


def settle(attempt: Attempt, target: connection, *, reason: str) -> bool:
    """
    Undo an attempt that is not flipped; finish one that is. Commits.

    :param target: session outside a transaction.
    :return: whether the tenant belongs to the side that the attempt goes to.
    :raises TransientError: if something could not be brought to its end, or somebody else is just
        about that; call it again.
    """
    try:
        with _bounded(target):
            is_undone = claim_undo(target, attempt.id, reason=reason)
        if is_undone:
            _undo(attempt, target, reason)
        else:
            _finish(attempt, target)
    except psycopg2.errors.LockNotAvailable as error:
        raise TransientError(
            f"could not settle {attempt.name}",
            detail=f"Another session has held its record for more than {_LOCK_TIMEOUT}:"
            f" {' '.join((error.diag.context or '').split())}.",
            hint="Its guard, or another task, may be settling it just now; it shows in"
            " pg_stat_activity of the target. The next try waits again.",
        ) from None
    except psycopg2.Error as error:
        raise TransientError(
            f"could not settle {attempt.name}", detail=" ".join(str(error).split())
        ) from None
    return not is_undone


@contextmanager
def _bounded(target: connection) -> Iterator[None]:
    """Open a transaction that waits for no lock for long, and commit it."""
    with target:
        with target.cursor() as cursor:
            cursor.execute("SELECT set_config('lock_timeout', %s, true)", (_LOCK_TIMEOUT,))
        yield


def undo_without_target(attempt: Attempt, fence: Fence) -> None:
    """
    Let everybody back to the source of a cutover, where the target cannot be asked.

    Only for an attempt that nobody can have flipped. Of a rollback nothing can be undone then: its
    clients go back to the target, and wait for it.

    :raises TransientError: if one part failed; the others are done.
    """
    if attempt.direction is Direction.FORWARD:
        _undo_traffic(attempt, fence)


def forget_former(router: Router, alias: str) -> None:
    """Tidy the alias files up behind a rollback; clients are back already, whatever comes of it."""
    try:
        router.forget_former(alias)
    except TenantferryError as failure:
        logger.warning("comments of a cutover are left in an alias file: %s", failure)


def _undo_traffic(attempt: Attempt, fence: Fence | None, *, grace: Grace | None = None) -> None:
    """
    Let everybody back to where they were. Records nothing.

    :param fence: of the source, which a cutover raised.
    :param grace: that a rollback was about to end.
    :raises TransientError: if one part failed; the others are done.
    """

    def restore() -> None:
        attempt.router.restore(attempt.alias, attempt=attempt.id)

    parts: list[Callable[[], None]] = [restore]
    if attempt.direction is Direction.REVERSE:
        parts.append(lambda: _release_source(attempt, grace))
    elif fence is not None:
        # Before: a client that is resumed first would be refused.
        parts.insert(0, lambda: _lower(attempt, fence))
    failures: list[str] = []
    for part in parts:
        try:
            part()
        except (TenantferryError, psycopg2.Error) as failure:
            failures.append(" ".join(str(failure).split()))
    if failures:
        raise TransientError(
            f"could not undo all of {attempt.name}",
            detail=" ".join(failures),
            hint="Clear the task: it goes on undoing where this ended.",
        )


def _release_source(attempt: Attempt, grace: Grace | None) -> None:
    """Let the reverse stream go on, and drop the slot that was made for the time after it."""
    with closing(_open_source(attempt)) as source:
        _end_source_session(attempt, source)
        if grace is not None:
            reopen_position(source, grace)
        drop_slot(source, attempt.slot)


def _undo(attempt: Attempt, target: connection, reason: str) -> None:
    if attempt.direction is Direction.REVERSE:
        _let_role_in(attempt, target)
    with _bounded(target):
        recorded = lock_pause(target, attempt.id)
        attempt = replace(attempt, source_pid=recorded.source_pid)
        fence = Fence.from_json(recorded.fence) if recorded.fence else None
        if not _may_undo(target, recorded):
            return
        _undo_traffic(attempt, fence, grace=read_grace(target, attempt.tenant))
        if recorded.undone_at is not None:
            return
        if read_stream(target, attempt.tenant, direction=attempt.direction) is not None:
            command(target, attempt.tenant, StreamCommand.RUN, direction=attempt.direction)
        record_undone(target, attempt.id)
        change_phase(
            target, attempt.tenant, _UNDONE[attempt.direction], run_id=attempt.run_id,
            reason=f"{attempt.name} was undone: {reason}",
        )  # fmt: skip
    logger.warning("undid %s tenant=%s", attempt.name, attempt.tenant)


def _may_undo(target: connection, recorded: WritePause) -> bool:
    # Whoever lived on may have gone a step further since it was undone. A later one is not ours.
    return recorded.undone_at is None or keep_latest(target, recorded.tenant, recorded.id)


def _let_role_in(attempt: Attempt, target: connection) -> None:
    """Give the tenant's role its login back, durable before anybody is resumed."""
    with _bounded(target):
        recorded = lock_pause(target, attempt.id)
        if recorded.fence and _may_undo(target, recorded):
            lower_role_fence(target, RoleFence.from_json(recorded.fence["role"]))


def _finish(attempt: Attempt, target: connection) -> None:
    with _bounded(target):
        recorded = lock_pause(target, attempt.id)
        is_resumed = PauseStep.RESUMED in recorded.reached
        if not is_resumed and attempt.direction is Direction.REVERSE:
            # A client that is resumed before would be refused.
            attempt = replace(attempt, source_pid=recorded.source_pid)
            _lower(attempt, Fence.from_json(recorded.fence))
        if not is_resumed:
            attempt.router.finish(attempt.alias)
            record_step(target, attempt.id, PauseStep.RESUMED)
        if attempt.direction is Direction.REVERSE and keep_latest(
            target, attempt.tenant, attempt.id
        ):
            forget_former(attempt.router, attempt.alias)
    if not is_resumed:
        logger.info("finished %s tenant=%s", attempt.name, attempt.tenant)


def _lower(attempt: Attempt, fence: Fence) -> None:
    with closing(_open_source(attempt)) as source:
        _end_source_session(attempt, source)
        lower_fence(source, fence)


def _end_source_session(attempt: Attempt, source: connection) -> None:
    if (pid := attempt.source_pid) is not None:
        end_session(source, pid, tenant=attempt.tenant, direction=attempt.direction)


def _open_source(attempt: Attempt) -> connection:
    options = {"connect_timeout": _CONNECT_TIMEOUT_SECONDS, **attempt.source.options}
    return open_connection(
        replace(attempt.source, options=options),
        purpose=f"undo {attempt.tenant}",
        autocommit=True,
        settings=_SOURCE_SETTINGS,
    )


def end_session(
    server: connection, pid: int, *, tenant: str, direction: Direction = Direction.FORWARD
) -> None:
    """
    End a session of an attempt, so that nothing it was told still happens.

    One that is gone stays so.

    :param server: another session of our role, outside a transaction or in autocommit.
    :raises TransientError: if it does not end in time.
    """
    # Process ids are used again; a name hardly is. Postgres cuts it at 63 bytes.
    application = f"tenantferry {STEP_NAMES[direction]} {tenant}"[:63]
    deadline = time.monotonic() + _END_TIMEOUT_SECONDS
    while True:
        with server, server.cursor() as cursor:
            cursor.execute(_END_SESSION, (pid, application))
            if not cursor.rowcount:
                return
        if time.monotonic() > deadline:
            raise TransientError(
                f"could not end the session with pid {pid} of an attempt that is over",
                detail=f"It is still there after {_END_TIMEOUT_SECONDS:g} s.",
                hint="SELECT pg_terminate_backend of it as a superuser, then clear the task.",
            )
        time.sleep(_RECHECK_SECONDS)  # a session's end can only be asked for
