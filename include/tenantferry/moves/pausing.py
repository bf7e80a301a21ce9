"""
The write pause that a cutover and a rollback have in common: opened, recorded, brought to its end.

What is done within it, and what it means, stands in `cutover` and `rollback`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import psycopg2
from psycopg2.extensions import connection

from tenantferry.connections import open_connection
from tenantferry.control.direction import Direction
from tenantferry.control.pauses import (
    PauseStep,
    WritePause,
    begin_pause,
    hold_pause,
    record_step,
)
from tenantferry.control.phases import Phase
from tenantferry.control.registry import change_phase
from tenantferry.errors import TenantferryError, TransientError
from tenantferry.moves.former import make_attempt
from tenantferry.moves.move import Move
from tenantferry.stream.handshake import advance
from tenantferry.traffic.fence import Fence
from tenantferry.traffic.guard import Guard, start_guard
from tenantferry.traffic.router import OpenRouter, PauseTimeoutError
from tenantferry.traffic.settlement import STEP_NAMES, settle, undo_without_target

logger = logging.getLogger(__name__)

# A stream that holds is released by nobody before the decision.
_LEASE_MARGIN_SECONDS = 60.0

OnStep = Callable[[str], None]


class Pause:
    """
    One attempt, from PAUSE to RESUME, and its end whatever happens.

    :ivar router: its instances.
    :ivar id: of the attempt; 0 before it is recorded.
    """

    def __init__(
        self,
        move: Move,
        direction: Direction,
        *,
        source: connection,
        target: connection,
        router: OpenRouter,
        guard: Guard,
        fence: Fence,
        on_step: OnStep,
    ) -> None:
        self._move, self._tenant, self._direction = move, move.tenant, direction
        self._source, self._target = source, target
        self._guard, self._fence, self._on_step = guard, fence, on_step
        # Closed sessions do not tell.
        self._source_pid = source.info.backend_pid
        self._deadline = 0.0
        self._is_flipping = False
        self.router = router
        self.id = 0

    def begin(self, phase: Phase, *, taken: dict[str, Any]) -> None:
        """
        Record the attempt before anything is paused, and arm the guard.

        :param taken: what is to be given back, as JSON.
        """
        seconds = self._tenant.max_write_pause_seconds
        with self._target:
            self.id = begin_pause(
                self._target,
                self._tenant.key,
                run_id=self._move.run_id,
                seconds=seconds,
                fence=taken,
                source_pid=self._source_pid,
                direction=self._direction,
            )
            self.change_phase(phase)
        self._deadline = time.monotonic() + seconds
        self._guard.arm(self.id, seconds=seconds)
        self._on_step("begun")

    def hold_clients(self, describe: Callable[[], list[str]]) -> None:
        """
        Pause all instances.

        :param describe: tells who is in a transaction on the side that clients are to leave.
        :raises PauseTimeoutError: if clients do not finish in time.
        """
        try:
            self.router.pause(timeout_seconds=self.remaining())
        except PauseTimeoutError as error:
            sessions = "; ".join(describe()) or "none"
            raise PauseTimeoutError(
                error.message,
                detail=f"In a transaction: {sessions}. {error.detail}".strip(),
                hint=error.hint,
            ) from None
        self.record(PauseStep.PAUSED)

    def drain(self, lsn: int) -> None:
        """Wait until the stream has applied everything before *lsn*, and holds."""
        advance(
            self._move.target,
            self._tenant.key,
            lsn,
            timeout_seconds=self.remaining(),
            lease_seconds=self.remaining() + _LEASE_MARGIN_SECONDS,
            exact=False,
            direction=self._direction,
        )
        self.record(PauseStep.DRAINED, final_lsn=lsn)

    @contextmanager
    def deciding(self) -> Iterator[None]:
        """
        Open the transaction in the target whose commit is the decision.

        The attempt's row is taken first, and ``flipped_at`` set last.

        :raises TransientError: if the time is over, or somebody undoes the attempt.
        """
        self.remaining()
        with self._target:
            hold_pause(self._target, self.id)
            yield
            record_step(self._target, self.id, PauseStep.FLIPPED)
            self._is_flipping = True
            self._guard.say_flipping()
        self._on_step("flipped")

    def change_phase(self, phase: Phase, *, lsn: int | None = None) -> None:
        """Move the tenant to another phase, within a transaction of the caller."""
        change_phase(
            self._target,
            self._tenant.key,
            phase,
            run_id=self._move.run_id,
            lsn=lsn,
            reason=f"{STEP_NAMES[self._direction]} attempt {self.id}",
        )

    def record(
        self,
        step: PauseStep,
        *,
        final_lsn: int | None = None,
        sequences: dict[str, int] | None = None,
    ) -> None:
        """Record a step that is done."""
        with self._target, self._target.cursor() as cursor:
            # For people to read: no step depends on it, so the pause does not wait for a disk.
            cursor.execute("SET LOCAL synchronous_commit = off")
            record_step(self._target, self.id, step, final_lsn=final_lsn, sequences=sequences)
        self._on_step(step.removesuffix("_at"))

    def remaining(self) -> float:
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

    def settle(self, failure: BaseException) -> bool:
        """
        Bring the failed attempt to its end.

        :return: whether the tenant belongs to the side that the attempt goes to.
        :raises TransientError: if that failed; guard or next try go on.
        """
        if not self.id:
            return False
        attempt = make_attempt(
            self._move, self.id, direction=self._direction, source_pid=self._source_pid
        )
        reason = str(failure).partition("\n")[0] or type(failure).__name__
        logger.warning("settling %s after: %s", attempt.name, reason)
        try:
            # Its transaction may hold the row; where it is broken, the server lets the row go.
            self._target.close()
            self._source.close()
            with closing(open_connection(self._move.target, purpose="settle")) as target:
                return settle(attempt, target, reason=reason)
        except TransientError:
            # The target may be gone. Nobody else can decide for it, if we had not begun to.
            if not self._is_flipping:
                undo_without_target(attempt, self._fence)
            raise


@contextmanager
def write_pause(
    move: Move,
    direction: Direction,
    *,
    source: connection,
    target: connection,
    fence: Fence,
    on_step: OnStep,
) -> Iterator[Pause]:
    """
    Keep a guard, and sessions with all router instances, for one attempt; settle it if it fails.

    A failure after the decision ends here: the attempt was brought to its end. The caller's
    sessions are closed then.

    :param source: session in autocommit.
    :param target: the step's session, outside a transaction.
    :param fence: of the source.
    """
    _bound_statements(source, move.tenant.max_write_pause_seconds)
    source_pid = source.info.backend_pid
    with (
        move.router.open(move.tenant.alias) as router,
        start_guard(
            make_attempt(move, 0, direction=direction, source_pid=source_pid),
            fence=fence,
            target_pid=target.info.backend_pid,
        ) as guard,
    ):
        on_step("prepared")
        pause = Pause(
            move,
            direction,
            source=source,
            target=target,
            router=router,
            guard=guard,
            fence=fence,
            on_step=on_step,
        )
        try:
            yield pause
        except BaseException as failure:
            has_moved = pause.settle(failure)
            guard.disarm()
            if isinstance(failure, psycopg2.Error) and not has_moved:
                name = STEP_NAMES[direction]
                raise TransientError(
                    f'{name} of tenant "{move.tenant.key}" failed and was undone',
                    detail=" ".join(str(failure).split()),
                ) from None
            if not has_moved or not isinstance(failure, TenantferryError | psycopg2.Error):
                raise
        else:
            guard.disarm()


def measure_steps(recorded: WritePause) -> tuple[float, dict[str, float]]:
    """Return the milliseconds of a whole write pause, and of each of its steps in order."""
    steps: dict[str, float] = {}
    before = recorded.began_at
    for step, reached_at in sorted(recorded.reached.items(), key=lambda item: item[1]):
        steps[step.removesuffix("_at")] = (reached_at - before).total_seconds() * 1000
        before = reached_at
    return (before - recorded.began_at).total_seconds() * 1000, steps


def ignore(_: str) -> None:
    """Listen to no step."""


def _bound_statements(source: connection, seconds: float) -> None:
    """Let no statement on the source take longer than the whole pause may."""
    with source.cursor() as cursor:
        cursor.execute(
            "SELECT set_config('statement_timeout', %s, false)", (f"{seconds * 1000:.0f}",)
        )
