"""
A cutover the other way: hand a live tenant back to its source, or undo the attempt as a whole.

Invariant: clients reach exactly one of source and target, and every write that was acknowledged is
in what they reach next. It holds at every moment, so also where any process is killed between two
steps:

1. The attempt is recorded, with what will be taken away, before anything is paused.
2. All router instances pause, and the tenant's role loses its login and its sessions in the target.
   The source is fenced since the cutover. From here on nobody reaches either side.
3. The reverse stream applies all up to a marker that was written behind that, and its position on
   the source is closed: both sides are equal, and nobody but the next owner changes the source.
   Tables of it that a person has rewritten meanwhile were compared before.
4. The next forward stream begins at P, the end of the source's log now. The reverse stream's own
   changes lie before it, so none of them is taken for one of the clients.
5. Still paused, one transaction in the target takes the attempt's row, the alias files are put
   back and loaded, and ``flipped_at``, the phase, the end of the grace and the forward stream's
   position are committed. **That commit is the decision.** Before it nobody gets into the source,
   wherever an alias points, and the tenant belongs to the target: whoever finds the attempt gives
   the role its login back, puts the files back and resumes. After it the tenant belongs to the
   source: whoever finds it lowers the fence, loads the files and resumes. Whoever undoes takes the
   same row first, so no attempt is both. And whoever undoes has made sure that the rollback is
   gone: by its lock, or as its guard by killing it.
6. The fence of the source is lowered, and clients resume there. The role stays without a login.

Clients resume at the source only behind the fence that is down, and at the target only after the
role may log in.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import psycopg2
from psycopg2.extensions import connection

from tenantferry.control.direction import Direction
from tenantferry.control.graces import GraceEnd, end_grace
from tenantferry.control.pauses import PauseStep, WritePause, read_flipped_pause
from tenantferry.control.phases import IllegalPhaseError, Phase
from tenantferry.control.registry import (
    ensure_control_schema,
    require_registration,
    take_over,
)
from tenantferry.control.streams import reset_stream
from tenantferry.errors import TenantferryError, TransientError
from tenantferry.lsn import format_lsn, parse_lsn
from tenantferry.moves.former import settle_former
from tenantferry.moves.move import Move
from tenantferry.moves.pausing import OnStep, Pause, ignore, measure_steps, write_pause
from tenantferry.moves.probe import probe
from tenantferry.moves.rewritten import check_not_rewritten
from tenantferry.moves.rollback_readiness import (
    WayBack,
    check_followed,
    get_ready_to_go_back,
    slot_for_next_stream,
)
from tenantferry.moves.sessions import exclusive_step, open_source
from tenantferry.reverse.marker import emit_grace_over
from tenantferry.reverse.positions import close_position
from tenantferry.reverse.slot import drop_reverse_slot
from tenantferry.schema.sequences import carry_sequences_back
from tenantferry.stream.marker import emit_marker
from tenantferry.timelines import Timeline
from tenantferry.traffic.fence import check_fenced, lower_fence
from tenantferry.traffic.role_fence import (
    check_role_alone,
    describe_role_transactions,
    raise_role_fence,
)
from tenantferry.traffic.settlement import forget_former

logger = logging.getLogger(__name__)

# The name of a log file begins with the timeline, in hexadecimal digits.
_START = """
SELECT
    pg_current_wal_insert_lsn()::text, confirmed_flush_lsn <= pg_current_wal_insert_lsn(),
    ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::integer
FROM pg_catalog.pg_replication_slots WHERE slot_name = %s AND database = current_database()
"""


@dataclass(frozen=True, slots=True)
class RollbackSummary:
    """
    How the tenant was handed back.

    :ivar write_pause_ms: from just before PAUSE to the last RESUME.
    :ivar steps: milliseconds that each step of the pause took, in order.
    :ivar final_lsn: of the target; everything before it is in the source, and nothing came after.
    :ivar sequences: what each sequence of the tenant hands out next.
    """

    write_pause_ms: float
    steps: dict[str, float]
    final_lsn: str
    sequences: dict[str, int]


def rollback(move: Move, *, on_step: OnStep | None = None) -> RollbackSummary:
    """
    Hand a live tenant back to its source; nothing that was written since is lost.

    A tenant that is back already stays so. A forward stream is ready to begin: the next move needs
    no new backfill. This run has the tenant then.

    :param on_step: called with the name of each step when it is done.
    :raises PermanentError: if the tenant cannot go back; nothing was changed.
    :raises TransientError: if an attempt failed; it was undone, or will be by its guard or by the
        next call.
    """
    with exclusive_step(move.target, tenant=move.tenant.key, step="rollback") as target:
        settle_former(move, target)
        with target:
            phase = require_registration(target, move.tenant.key).phase
        with target:
            ensure_control_schema(target)
        if phase is Phase.LIVE:
            _hand_back(move, target, on_step or ignore)
        if not target.closed:
            return _complete(move, target, phase)
    # It went back, but this session was lost with the answer to the decision.
    return rollback(move, on_step=on_step)


def _complete(move: Move, target: connection, phase: Phase) -> RollbackSummary:
    with target:
        recorded = read_flipped_pause(target, move.tenant.key, direction=Direction.REVERSE)
        went_live = read_flipped_pause(target, move.tenant.key)
    if recorded is None or went_live is None or recorded.id < went_live.id:
        raise IllegalPhaseError(
            f'tenant "{move.tenant.key}" cannot be rolled back in phase "{phase}"',
            hint="Only a live tenant can go back to its source.",
        )
    if recorded.probed_at is None:
        _look(move)
    _give_up_reverse(move)
    return _summarize(recorded)


def _look(move: Move) -> None:
    """Look as the application does. The tenant is back whatever it sees, and is to be streamed."""
    try:
        probe(move)
    except TenantferryError as failure:
        logger.warning("tenant=%s is back, but: %s", move.tenant.key, failure)


def _give_up_reverse(move: Move) -> None:
    """Drop what no tenant can go back by any more. If that fails, whoever comes next does it."""
    try:
        drop_reverse_slot(move.target)
    except (TenantferryError, psycopg2.Error) as failure:
        logger.warning("the slot of the reverse streams is left: %s", failure)


def _hand_back(move: Move, target: connection, on_step: OnStep) -> None:
    with open_source(move.source, purpose=f"rollback {move.tenant.key}") as source:
        way = get_ready_to_go_back(move, source, target)
        with (
            # Last: until the stream reads it, it keeps the source's log.
            slot_for_next_stream(move, source),
            write_pause(
                move,
                Direction.REVERSE,
                source=source,
                target=target,
                fence=way.fence,
                on_step=on_step,
            ) as pause,
        ):
            _Rollback(move, pause, source=source, target=target, way=way).run(on_step)


class _Rollback:
    """What is done while clients wait."""

    def __init__(
        self, move: Move, pause: Pause, *, source: connection, target: connection, way: WayBack
    ) -> None:
        self._move, self._tenant, self._pause, self._way = move, move.tenant, pause, way
        self._source, self._target = source, target

    def run(self, on_step: OnStep) -> None:
        """Pause, move, resume."""
        pause, source, target = self._pause, self._source, self._target
        pause.begin(Phase.ROLLING_BACK, taken=self._way.taken)
        pause.hold_clients(lambda: describe_role_transactions(target, self._tenant.role))
        raise_role_fence(target, self._way.role_fence, timeout_seconds=pause.remaining())
        pause.record(PauseStep.FENCED)
        check_followed(target, self._tenant.key)
        with target:
            final_lsn = emit_marker(target, self._tenant, content="final")
        pause.drain(final_lsn)
        self._close(final_lsn)
        with target:
            sequences = carry_sequences_back(source, target, self._tenant)
        pause.record(PauseStep.SEQUENCES, sequences=sequences)
        # As late as possible: nobody got through on either side.
        check_fenced(source, self._way.fence)
        check_not_rewritten(source, self._tenant, self._way.files)
        check_role_alone(target, self._way.role_fence)
        self._flip(self._read_start(), final_lsn, on_step)
        lower_fence(source, self._way.fence)
        on_step("lowered")
        pause.router.resume()
        pause.record(PauseStep.RESUMED)
        forget_former(self._move.router, self._tenant.alias)

    def _close(self, final_lsn: int) -> None:
        """Let no reverse stream change the source any more, whichever process it may be in."""
        position = close_position(self._source, self._way.grace)
        if position < final_lsn:
            raise TransientError(
                f'the source of tenant "{self._tenant.key}" does not hold all that was written',
                detail=f"It holds what was written before {format_lsn(position)}; the final marker"
                f" is at {format_lsn(final_lsn)}.",
                hint='Look at the Dag "reverse_stream".',
            )

    def _read_start(self) -> tuple[int, Timeline]:
        """
        Return where the next forward stream begins: what lies before came from the target.

        :return: P, and the timeline of the source that it is a position of.
        """
        with self._source.cursor() as cursor:
            cursor.execute(_START, (self._tenant.slot,))
            row = cursor.fetchone()
        if row is None or not row[1]:
            raise TransientError(
                f'replication slot "{self._tenant.slot}" is not what was prepared',
                detail="It was dropped, invalidated or consumed in the write pause.",
                hint="The retry creates it again.",
            )
        # Durable up to P, for the marker's commit flushes the log: a crash of the source would
        # else leave P beyond the end of its log, and the tenant would have to be copied again.
        emit_marker(self._source, self._tenant, content="start")
        # Where it began, the next stream reads: an ordinary session cannot.
        return parse_lsn(row[0]), Timeline(row[2], None)

    def _flip(self, start: tuple[int, Timeline], final_lsn: int, on_step: OnStep) -> None:
        target, key = self._target, self._tenant.key
        with self._pause.deciding():
            self._pause.router.flip_back(former=self._way.grace.attempt, attempt=self._pause.id)
            on_step("files")
            position, timeline = start
            reset_stream(target, key, position, timeline=timeline)
            end_grace(target, key, why=GraceEnd.ROLLED_BACK)
            emit_grace_over(target, key)
            take_over(target, key, run_id=self._move.run_id)
            self._pause.change_phase(Phase.STREAMING, lsn=final_lsn)


def _summarize(recorded: WritePause) -> RollbackSummary:
    milliseconds, steps = measure_steps(recorded)
    return RollbackSummary(
        write_pause_ms=milliseconds,
        steps=steps,
        final_lsn=format_lsn(recorded.final_lsn or 0),
        sequences=recorded.sequences,
    )
