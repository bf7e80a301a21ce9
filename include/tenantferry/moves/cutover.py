"""
Step eight: hand the tenant over to the target, or undo the attempt as a whole.

Invariant: clients reach exactly one of source and target, and every write that was acknowledged is
in what they reach next. It holds at every moment, so also where any process is killed between two
steps:

1. The attempt is recorded, with what the fence will take away, before anything is paused.
2. All router instances pause, and the fence goes up: from here on nobody reaches either side.
3. The stream applies all up to a marker that was written behind the fence: both sides are equal.
   To know that, what was written since the last comparison is compared again.
4. Still paused, one transaction in the target takes the attempt's row, the alias files are
   rewritten and loaded, and ``flipped_at``, the phase and the right of the tenant's role to log in
   are committed. **That commit is the decision.** Before it nobody gets into the target as the
   tenant, wherever an alias points, and the tenant belongs to the source: whoever finds the attempt
   lowers the fence, puts the files back and resumes. After it the tenant belongs to the target:
   whoever finds it loads the files and resumes. Whoever undoes takes the same row first, so no
   attempt is both. And whoever undoes has made sure that the cutover is gone: by its lock, or as
   its guard by killing it.
5. Clients resume, at the target. The fence stays: a pooler that nobody told us about must not write
   to the source any more. The tenant's time of grace begins with the same commit: the reverse
   stream takes to the source whatever comes after it, so the forward stream is told to stop there.

Clients resume only after the decision, and at the source only after the files are back.
"""

from __future__ import annotations

from dataclasses import dataclass

from psycopg2.extensions import connection

from tenantferry.control.direction import Direction
from tenantferry.control.graces import begin_grace, record_source_files
from tenantferry.control.pauses import PauseStep, WritePause, read_flipped_pause
from tenantferry.control.phases import AT_TARGET, Phase
from tenantferry.control.registry import (
    check_owner,
    ensure_control_schema,
    require_registration,
)
from tenantferry.control.streams import StreamCommand, command
from tenantferry.errors import PermanentError
from tenantferry.lsn import format_lsn
from tenantferry.moves.completion import complete
from tenantferry.moves.former import settle_former
from tenantferry.moves.move import Move
from tenantferry.moves.pausing import OnStep, Pause, ignore, measure_steps, write_pause
from tenantferry.moves.readiness import Readiness, get_ready
from tenantferry.moves.recheck import ready_to_recheck, recheck
from tenantferry.moves.sessions import exclusive_step, open_source
from tenantferry.moves.unchanged import check_not_contradicted, check_unchanged
from tenantferry.reverse.marker import emit_grace
from tenantferry.reverse.slot import check_reverse_slot
from tenantferry.schema.roles import set_role_login
from tenantferry.schema.sequences import carry_sequences
from tenantferry.schema.table_states import RowFiles
from tenantferry.stream.marker import emit_marker
from tenantferry.traffic.fence import check_alone, describe_transactions, raise_fence
from tenantferry.validation.touched import Recheck


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
            registration = require_registration(target, tenant.key)
        with target:
            ensure_control_schema(target)
        if registration.phase not in AT_TARGET:
            check_owner(registration, move.run_id)
            _hand_over(move, target, on_step or ignore)
        if not target.closed:
            return _complete(move, target, on_step or ignore)
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
    with open_source(move.source, purpose=f"cutover {move.tenant.key}") as source:
        readiness = get_ready(move, source, target)
        with (
            ready_to_recheck(move, readiness) as ready,
            write_pause(
                move,
                Direction.FORWARD,
                source=source,
                target=target,
                fence=readiness.fence,
                on_step=on_step,
            ) as pause,
        ):
            cut = _Cutover(move, pause, source=source, target=target, readiness=readiness)
            cut.run(ready, on_step)


class _Cutover:
    """What is done while clients wait."""

    def __init__(
        self,
        move: Move,
        pause: Pause,
        *,
        source: connection,
        target: connection,
        readiness: Readiness,
    ) -> None:
        self._move, self._tenant = move, move.tenant
        self._pause, self._readiness = pause, readiness
        self._source, self._target = source, target

    def run(self, ready: Recheck, on_step: OnStep) -> None:
        """
        Pause, move, resume.

        :param ready: compares what was written last.
        """
        pause, source = self._pause, self._source
        pause.begin(Phase.CUTTING_OVER, taken=self._readiness.fence.to_json())
        pause.hold_clients(lambda: describe_transactions(source))
        raise_fence(source, self._readiness.fence, timeout_seconds=pause.remaining())
        pause.record(PauseStep.FENCED)
        final_lsn = emit_marker(source, self._tenant, content="final")
        pause.drain(final_lsn)
        states = recheck(self._move, source, self._target, ready, self._readiness)
        pause.record(PauseStep.COMPARED)
        with self._target:
            sequences = carry_sequences(source, self._target, self._tenant)
        pause.record(PauseStep.SEQUENCES, sequences=sequences)
        # As late as possible: nobody got through since the marker.
        check_alone(source)
        files = check_unchanged(source, self._tenant, states)
        self._flip(final_lsn, files, on_step)
        pause.router.resume()
        pause.record(PauseStep.RESUMED)

    def _flip(self, final_lsn: int, files: RowFiles, on_step: OnStep) -> None:
        with self._pause.deciding():
            check_not_contradicted(self._target, self._tenant)
            self._pause.router.flip(self._readiness.changes, attempt=self._pause.id)
            on_step("files")
            set_role_login(self._target, self._tenant.role, allowed=True)
            self._begin_grace(final_lsn, files)
            self._pause.change_phase(Phase.LIVE, lsn=final_lsn)

    def _begin_grace(self, final_lsn: int, files: RowFiles) -> None:
        """Turn the direction: from this commit on changes travel to the source, and only there."""
        target, key = self._target, self._tenant.key
        # It would take back to the target what the reverse stream takes to the source.
        command(target, key, StreamCommand.STOP, lsn=final_lsn)
        check_reverse_slot(target)
        grace = begin_grace(
            target,
            key,
            attempt=self._pause.id,
            start_lsn=emit_grace(target, key),
            hours=self._tenant.grace_hours,
        )
        record_source_files(target, grace, files)


def _summarize(recorded: WritePause) -> CutoverSummary:
    milliseconds, steps = measure_steps(recorded)
    return CutoverSummary(
        write_pause_ms=milliseconds,
        steps=steps,
        final_lsn=format_lsn(recorded.final_lsn or 0),
        sequences=recorded.sequences,
    )
