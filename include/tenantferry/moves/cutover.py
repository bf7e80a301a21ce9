"""
Step eight: hand the tenant over to the target, or undo the attempt as a whole.

Invariant: clients reach exactly one of source and target, and every write that was acknowledged is
in what they reach next. It holds at every moment, so also where any process is killed between two
steps:

1. The attempt is recorded, with what the fence will take away, before anything is paused.
2. All router instances pause, and the fence goes up: from here on nobody reaches either side.
3. The stream applies all up to a marker that was written behind the fence: both sides are equal.
4. Still paused, one transaction in the target takes the attempt's row, the alias files are
   rewritten and loaded, and ``flipped_at``, the phase and the right of the tenant's role to log in
   are committed. **That commit is the decision.** Before it nobody gets into the target as the
   tenant, wherever an alias points, and the tenant belongs to the source: whoever finds the attempt
   lowers the fence, puts the files back and resumes. After it the tenant belongs to the target:
   whoever finds it loads the files and resumes. Whoever undoes takes the same row first, so no
   attempt is both. And whoever undoes has made sure that the cutover is gone: by its lock, or as
   its guard by killing it.
5. Clients resume, at the target. The fence stays: a pooler that nobody told us about must not write
   to the source any more.

Clients resume only after the decision, and at the source only after the files are back.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

import psycopg2
from psycopg2.extensions import connection

from tenantferry.connections import open_connection
from tenantferry.control.pauses import (
    PauseStep,
    WritePause,
    begin_pause,
    hold_pause,
    read_flipped_pause,
    record_step,
)
from tenantferry.control.phases import Phase
from tenantferry.control.registry import change_phase, require_registration
from tenantferry.errors import PermanentError, TenantferryError, TransientError
from tenantferry.lsn import format_lsn
from tenantferry.moves.completion import complete
from tenantferry.moves.former import make_attempt, settle_former
from tenantferry.moves.move import Move
from tenantferry.moves.readiness import Readiness, get_ready
from tenantferry.moves.sessions import exclusive_step, open_source
from tenantferry.schema.roles import set_role_login
from tenantferry.schema.sequences import carry_sequences
from tenantferry.stream.handshake import advance
from tenantferry.stream.marker import emit_marker
from tenantferry.traffic.fence import check_alone, describe_transactions, raise_fence
from tenantferry.traffic.guard import Guard, start_guard
from tenantferry.traffic.router import OpenRouter, PauseTimeoutError
from tenantferry.traffic.settlement import settle, undo_traffic

logger = logging.getLogger(__name__)

_SETTLE_SETTINGS = {"lock_timeout": "5s"}

OnStep = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class CutoverSummary:
    """
    How the tenant was handed over.

    :ivar write_pause_ms: from just before PAUSE to the last RESUME.
    :ivar steps: milliseconds that each step of the pause took, in order.
    :ivar final_lsn: of the source; everything before it is in the target, and nothing came after.
    :ivar sequences: what each sequence of the tenant hands out next.
    """

    write_pause_ms: float
    steps: dict[str, float]
    final_lsn: str
    sequences: dict[str, int]


def cutover(move: Move, *, on_step: OnStep | None = None) -> CutoverSummary:
    """
    Hand the tenant over to the target. A live tenant stays so.

    :param on_step: called with the name of each step when it is done.
    :raises PermanentError: if the tenant cannot be cut over; nothing was changed.
    :raises TransientError: if an attempt failed; it was undone, or will be by its guard or by the
        next call.
    """
    tenant = move.tenant
    with exclusive_step(move.target, tenant=tenant.key, step="cutover") as target:
        settle_former(move, target)
        with target:
            phase = require_registration(target, tenant.key).phase
        if phase is not Phase.LIVE:
            _hand_over(move, target, on_step or _ignore)
        if not target.closed:
            return _complete(move, target, on_step or _ignore)
    # It went live, but this session was lost with the answer to the decision.
    return cutover(move, on_step=on_step)


def _complete(move: Move, target: connection, on_step: OnStep) -> CutoverSummary:
    with target:
        recorded = read_flipped_pause(target, move.tenant.key)
    if recorded is None:
        raise PermanentError(f'tenant "{move.tenant.key}" is live but was never cut over')
    complete(move, target, recorded, on_step)
    return _summarize(recorded)


def _hand_over(move: Move, target: connection, on_step: OnStep) -> None:
    tenant = move.tenant
    purpose = f"cutover {tenant.key}"
    with open_source(move.source, purpose=purpose) as source:
        readiness = get_ready(move, source, target)
        _bound_statements(source, tenant.max_write_pause_seconds)
        with (
            move.router.open(tenant.alias) as router,
            start_guard(
                make_attempt(move, 0, source_pid=source.info.backend_pid),
                fence=readiness.fence,
                target_pid=target.info.backend_pid,
            ) as guard,
        ):
            on_step("prepared")
            pause = _Pause(
                move,
                source=source,
                target=target,
                router=router,
                guard=guard,
                readiness=readiness,
                on_step=on_step,
            )
            try:
                pause.run()
            except BaseException as failure:
                is_live = pause.settle(failure)
                guard.disarm()
                if isinstance(failure, psycopg2.Error) and not is_live:
                    raise TransientError(
                        f'cutover of tenant "{tenant.key}" failed and was undone',
                        detail=" ".join(str(failure).split()),
                    ) from None
                if not is_live or not isinstance(failure, TenantferryError | psycopg2.Error):
                    raise
            else:
                guard.disarm()


class _Pause:
    """The write pause, and its end whatever happens."""

    def __init__(
        self,
        move: Move,
        *,
        source: connection,
        target: connection,
        router: OpenRouter,
        guard: Guard,
        readiness: Readiness,
        on_step: OnStep,
    ) -> None:
        self._move, self._tenant = move, move.tenant
        self._source, self._target = source, target
        self._router, self._guard = router, guard
        self._readiness, self._on_step = readiness, on_step
        # Closed sessions do not tell.
        self._source_pid = source.info.backend_pid
        self._deadline = 0.0
        self._id = 0
        self._is_flipping = False

    def run(self) -> None:
        """Pause, move, resume."""
        self._begin()
        self._pause()
        self._record(PauseStep.PAUSED)
        raise_fence(self._source, self._readiness.fence, timeout_seconds=self._remaining())
        self._record(PauseStep.FENCED)
        final_lsn = self._drain()
        self._record(PauseStep.DRAINED, final_lsn=final_lsn)
        with self._target:
            sequences = carry_sequences(self._source, self._target, self._tenant)
        self._record(PauseStep.SEQUENCES, sequences=sequences)
        # As late as possible: nobody got through since the marker.
        check_alone(self._source)
        self._flip(final_lsn)
        self._router.resume()
        self._record(PauseStep.RESUMED)

    def settle(self, failure: BaseException) -> bool:
        """
        Bring the failed attempt to its end.

        :return: whether the tenant belongs to the target.
        :raises TransientError: if that failed; guard or next try go on.
        """
        if not self._id:
            return False
        attempt = make_attempt(self._move, self._id, source_pid=self._source_pid)
        reason = str(failure).partition("\n")[0] or type(failure).__name__
        logger.warning("settling cutover attempt=%s after: %s", self._id, reason)
        try:
            # Its transaction may hold the row; where it is broken, the server lets the row go.
            self._target.close()
            self._source.close()
            with closing(
                open_connection(self._move.target, purpose="settle", settings=_SETTLE_SETTINGS)
            ) as target:
                return settle(attempt, target, reason=reason)
        except TransientError:
            # The target may be gone. Nobody else can decide for it, if we had not begun to.
            if not self._is_flipping:
                undo_traffic(attempt, self._readiness.fence)
            raise

    def _begin(self) -> None:
        seconds = self._tenant.max_write_pause_seconds
        with self._target:
            self._id = begin_pause(
                self._target,
                self._tenant.key,
                run_id=self._move.run_id,
                seconds=seconds,
                fence=self._readiness.fence.to_json(),
                source_pid=self._source_pid,
            )
            change_phase(
                self._target,
                self._tenant.key,
                Phase.CUTTING_OVER,
                run_id=self._move.run_id,
                reason=f"cutover attempt {self._id}",
            )
        self._deadline = time.monotonic() + seconds
        self._guard.arm(self._id, seconds=seconds)
        self._on_step("begun")

    def _pause(self) -> None:
        try:
            self._router.pause(timeout_seconds=self._remaining())
        except PauseTimeoutError as error:
            sessions = "; ".join(describe_transactions(self._source)) or "none"
            raise PauseTimeoutError(
                error.message,
                detail=f"In a transaction on the source: {sessions}. {error.detail}".strip(),
                hint=error.hint,
            ) from None

    def _drain(self) -> int:
        """Wait until the stream has applied everything, and holds. Return the final position."""
        lsn = emit_marker(self._source, self._tenant, content="final")
        advance(
            self._move.target,
            self._tenant.key,
            lsn,
            timeout_seconds=self._remaining(),
            exact=False,
        )
        return lsn

    def _flip(self, final_lsn: int) -> None:
        self._remaining()
        with self._target:
            hold_pause(self._target, self._id)
            self._router.flip(self._readiness.changes, attempt=self._id)
            self._on_step("files")
            record_step(self._target, self._id, PauseStep.FLIPPED)
            set_role_login(self._target, self._tenant.role, allowed=True)
            change_phase(
                self._target,
                self._tenant.key,
                Phase.LIVE,
                run_id=self._move.run_id,
                lsn=final_lsn,
                reason=f"cutover attempt {self._id}",
            )
            self._is_flipping = True
            self._guard.say_flipping()
        self._on_step("flipped")

    def _record(
        self,
        step: PauseStep,
        *,
        final_lsn: int | None = None,
        sequences: dict[str, int] | None = None,
    ) -> None:
        with self._target, self._target.cursor() as cursor:
            # For people to read: no step depends on it, so the pause does not wait for a disk.
            cursor.execute("SET LOCAL synchronous_commit = off")
            record_step(self._target, self._id, step, final_lsn=final_lsn, sequences=sequences)
        self._on_step(step.removesuffix("_at"))

    def _remaining(self) -> float:
        """
        Return the seconds that are left of the pause.

        :raises TransientError: if there are none.
        """
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise TransientError(
                f'the write pause of tenant "{self._tenant.key}" took too long',
                detail=f"max_write_pause_seconds is {self._tenant.max_write_pause_seconds:g}.",
                hint="See tenantferry.write_pauses in the target for how far it came.",
            )
        return remaining


def _bound_statements(source: connection, seconds: float) -> None:
    """Let no statement on the source take longer than the whole pause may."""
    with source.cursor() as cursor:
        cursor.execute(
            "SELECT set_config('statement_timeout', %s, false)", (f"{seconds * 1000:.0f}",)
        )


def _summarize(recorded: WritePause) -> CutoverSummary:
    steps: dict[str, float] = {}
    before = recorded.began_at
    for step, reached_at in sorted(recorded.reached.items(), key=lambda item: item[1]):
        steps[step.removesuffix("_at")] = (reached_at - before).total_seconds() * 1000
        before = reached_at
    return CutoverSummary(
        write_pause_ms=(before - recorded.began_at).total_seconds() * 1000,
        steps=steps,
        final_lsn=format_lsn(recorded.final_lsn or 0),
        sequences=recorded.sequences,
    )


def _ignore(_: str) -> None:
    """Nobody listens."""
