"""
The second half of a night: start what was picked, one step at a time, until the wave is over.

All that a wave knows stands in the control schema. That a member is being started is recorded
before its run is, under an id that tells wave and tenant; its standing only after. Whoever goes on
after a crash in between finds a run of that id, or finds none: then the member is as if it had
never been tried. Where there is a standing there was a run; one that is gone is not started again.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime

from psycopg2.extensions import connection

from tenantferry.control.registry import ensure_control_schema
from tenantferry.control.waves import (
    Member,
    Standing,
    Wave,
    end_wave,
    read_clock,
    read_wave,
    record_blocker,
    record_skip,
    record_standing,
    record_start,
    record_undone_start,
    stop_wave,
)
from tenantferry.errors import TransientError
from tenantferry.waves.facts import History
from tenantferry.waves.nightly import open_target
from tenantferry.waves.reading import Databases, read_histories
from tenantferry.waves.runs import Runs, Wait, Watched
from tenantferry.waves.standings import RunLook
from tenantferry.waves.starting import Decision, next_starts
from tenantferry.waves.summary import WaveSummary, check_wave, summarize
from tenantferry.waves.surroundings import Surroundings, build_view, look_around

logger = logging.getLogger(__name__)

_ENDED = frozenset({Standing.LIVE, Standing.FAILED, Standing.DECLINED})


@dataclass(frozen=True, slots=True)
class _Night:
    """What one step works with."""

    target: connection
    databases: Databases
    runs: Runs
    run_id: str

    def reread_wave(self) -> Wave:
        wave = read_wave(self.target, self.run_id)
        if wave is None:
            raise _lost()
        return wave


def advance_wave(databases: Databases, runs: Runs, *, run_id: str) -> Wait | WaveSummary:
    """
    Look at what is in flight, and start what can be started now.

    :param run_id: of ``nightly_wave``.
    :return: what to wait for, or how the wave ended.
    :raises WaveStoppedError: if the wave is over and was stopped.
    :raises WaveIdleError: if it is over and could start nobody.
    """
    with closing(open_target(databases)) as target:
        with target:  # a newer version may go on with a wave of an older one
            ensure_control_schema(target)
        wave = read_wave(target, run_id)
        if wave is None:
            return WaveSummary()
        return _advance(_Night(target, databases, runs, run_id), wave)


def _advance(night: _Night, wave: Wave) -> Wait | WaveSummary:
    found = {m.tenant: night.runs.look(m.tenant, m.run_id) for m in wave.members if m.started_at}
    # After these looks: a tenant whose run has ended well is live by then.
    histories = read_histories(night.target)
    looks = _record_looks(night, wave, found, histories)
    _skip_taken(night, wave, histories)
    wave = night.reread_wave()
    around = look_around(
        night.target, night.databases, night.runs, wave, histories=histories, looks=looks
    )
    while True:
        decision, now = _decide(night, wave, looks, around)
        looks |= _start_members(night, wave, decision.starts)
        wave = night.reread_wave()
        if not decision.starts:
            break
    if decision.is_over:
        end_wave(night.target, wave.number)
        summary = summarize(wave, night.databases.fleet.waves, now)
        check_wave(wave, summary)
        return summary
    seconds = None if decision.wake_at is None else (decision.wake_at - now).total_seconds()
    return Wait(_watch(wave, looks), seconds)


def _decide(
    night: _Night, wave: Wave, looks: Mapping[str, RunLook], around: Surroundings
) -> tuple[Decision, datetime]:
    """Decide what to do at this moment, and record it where the wave stops."""
    view = build_view(night.target, night.databases, wave, looks=looks, around=around)
    now = read_clock(night.target)
    decision = next_starts(view, night.databases.fleet.waves, now)
    if decision.stop_reason is not None and wave.stop_reason is None:
        logger.error("wave %s starts nobody more: %s", wave.number, decision.stop_reason)
        stop_wave(night.target, wave.number, reason=decision.stop_reason)
    for tenant, blocker in decision.blockers.items():
        record_blocker(night.target, wave.number, tenant, detail=blocker)
    return decision, now


def _record_looks(
    night: _Night,
    wave: Wave,
    found: Mapping[str, RunLook | None],
    histories: Mapping[str, History],
) -> dict[str, RunLook]:
    """
    Record how the started members stand, and take back each start that was recorded and not done.

    :return: the looks at runs that there are.
    """
    looks: dict[str, RunLook] = {}
    for member in wave.members:
        if member.tenant not in found:
            continue
        look = found[member.tenant]
        if look is None and member.standing is None:
            logger.info("tenant %s: its run was not started", member.tenant)
            record_undone_start(night.target, wave.number, member.tenant)
            continue
        judged = _correct(look or _judge_deleted(member), histories.get(member.tenant, History()))
        if look is not None:
            looks[member.tenant] = judged
        if (judged.standing, judged.detail) != (member.standing, member.detail):
            logger.info("tenant %s: %s", member.tenant, judged.detail or judged.standing)
            record_standing(
                night.target, wave.number, member.tenant, judged.standing, detail=judged.detail
            )
    return looks


def _judge_deleted(member: Member) -> RunLook:
    """Tell how a member stands whose run somebody has deleted: as it ended, if it had."""
    if member.standing is None or member.standing not in _ENDED:
        return RunLook(Standing.FAILED, is_open=False, detail="its run was deleted")
    return RunLook(member.standing, is_open=False, detail=member.detail)


def _correct(look: RunLook, history: History) -> RunLook:
    """Believe the phase where a run has ended: another run may have gone on."""
    if history.is_finished and not look.is_open:
        return RunLook(Standing.LIVE, is_open=False)
    if history.is_finished or look.standing is not Standing.LIVE:
        return look
    detail = f"its run ended, and its phase is {history.phase or 'none'}"
    return RunLook(Standing.FAILED, is_open=False, detail=detail)


def _skip_taken(night: _Night, wave: Wave, histories: Mapping[str, History]) -> None:
    """Leave out the members that others have moved, or begun to move, since the plan was made."""
    for member in wave.members:
        history = histories.get(member.tenant, History())
        attempt = history.attempt
        detail = "it is live already" if history.is_finished else ""
        if attempt is not None and attempt.wave > wave.number:
            detail = detail or f"wave {attempt.wave} has started it"
        if detail and member.started_at is None and member.standing is None:
            record_skip(night.target, wave.number, member.tenant, detail=detail)


def _start_members(night: _Night, wave: Wave, tenants: Sequence[str]) -> dict[str, RunLook]:
    """Start the runs of members; one that cannot be started is left to a later wave."""
    looks = {}
    for member in wave.members:
        if member.tenant not in tenants:
            continue
        refusal = _start(night, wave, member)
        if refusal:
            logger.warning("tenant %s is not started: %s", member.tenant, refusal)
            record_skip(night.target, wave.number, member.tenant, detail=refusal)
        else:
            logger.info("tenant %s is started: run %s", member.tenant, member.run_id)
            looks[member.tenant] = RunLook(Standing.RUNNING)
    return looks


def _start(night: _Night, wave: Wave, member: Member) -> str:
    if night.runs.find_open(member.tenant) is not None:
        return "another run of its Dag is under way"
    if not record_start(night.target, wave.number, member.tenant):
        raise _lost()
    note = f"Wave {wave.number}, stage {wave.stage}"
    refusal = night.runs.start(member.tenant, member.run_id, note=note)
    if not refusal:
        record_standing(night.target, wave.number, member.tenant, Standing.RUNNING, detail="")
    return refusal


def _watch(wave: Wave, looks: Mapping[str, RunLook]) -> tuple[Watched, ...]:
    # Also those that failed: a person may clear what failed, and they go on.
    return tuple(
        Watched(member.tenant, member.run_id, look)
        for member in wave.members
        if (look := looks.get(member.tenant)) and look.standing is not Standing.LIVE
    )


def _lost() -> TransientError:
    return TransientError(
        "the wave was planned anew while it took a step",
        hint="It goes on with the new plan when it is run again.",
    )
