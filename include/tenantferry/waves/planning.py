"""
Tonight's plan: which tenants a wave moves, and why not the others.

Invariant: a tenant is picked only while nobody has begun it, or as a repetition that was asked
for. A stage is left only when as many of its tenants are live as it was declared to have; what
fails, waits for a person or was rolled back does not count, and others fill the stage in its place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from tenantferry.control.phases import Phase
from tenantferry.control.waves import Standing
from tenantferry.fleet import Tenant
from tenantferry.fleet.operation import Criticality, Waves
from tenantferry.waves.facts import FleetFacts, StageFacts, TenantFacts, must_be_alone
from tenantferry.waves.windows import find_opening, show_time

_RANKS: Mapping[Criticality, int] = {each: rank for rank, each in enumerate(Criticality)}


class Place(StrEnum):
    """What a plan does with a tenant."""

    PICKED = "picked"
    WAITING = "waiting"
    UNDER_WAY = "under way"
    HELD_BACK = "held back"
    REFUSED = "refused"
    FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class PlannedTenant:
    """
    One line of a plan.

    :ivar reason: why it is there.
    :ivar is_alone: never in flight beside another.
    """

    tenant: str
    place: Place
    reason: str
    criticality: Criticality | None = None
    size_bytes: int | None = None
    is_alone: bool = False


@dataclass(frozen=True, slots=True)
class Stage:
    """
    The stage that a wave serves.

    :ivar percent: of the tenants that remained when it began.
    :ivar size: tenants that have to be live for it to end.
    :ivar live: tenants of it that are.
    :ivar wave: that it began with; ``None``: the one that is planned.
    :ivar begins_at: not before it may begin; ``None``: it may.
    """

    number: int
    percent: int
    size: int
    live: int = 0
    wave: int | None = None
    begins_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class WavePlan:
    """
    What a wave does.

    :ivar picked: in the order in which they are started.
    :ivar sentence: the plan in one sentence.
    """

    stage: Stage
    picked: tuple[PlannedTenant, ...]
    waiting: tuple[PlannedTenant, ...]
    under_way: tuple[PlannedTenant, ...]
    held_back: tuple[PlannedTenant, ...]
    refused: tuple[PlannedTenant, ...]
    finished: tuple[PlannedTenant, ...]
    sentence: str


def plan_wave(facts: FleetFacts, settings: Waves, *, now: datetime, until: datetime) -> WavePlan:
    """
    Decide which tenants a wave moves, and say of each other one why not.

    :param until: from then on the wave starts no tenant.
    """
    judged = [(each, *_judge(each, facts.regions, settings, now)) for each in facts.tenants]
    lines = [_line(each, settings, place, reason) for each, place, reason in judged]
    broken = [
        PlannedTenant(key, Place.REFUSED, _first_line(text))
        for key, text in sorted(facts.broken.items())
    ]
    remaining = sum(place not in (Place.REFUSED, Place.FINISHED) for _, place, _ in judged)
    stage = _choose_stage(facts.stage, settings, remaining, now)
    candidates = sorted(
        (each for each, place, _ in judged if place is Place.PICKED),
        key=lambda each: _order(each, settings),
    )
    chosen = _choose(candidates, stage, settings, now=now, until=until)
    return WavePlan(
        stage=stage,
        picked=_only(chosen, Place.PICKED),
        waiting=_only(chosen, Place.WAITING),
        under_way=_only(lines, Place.UNDER_WAY),
        held_back=_only(lines, Place.HELD_BACK),
        refused=(*_only(lines, Place.REFUSED), *broken),
        finished=_only(lines, Place.FINISHED),
        sentence=_summarize(stage, chosen, remaining, settings, now=now, until=until),
    )


def _judge(
    facts: TenantFacts, regions: frozenset[str], settings: Waves, now: datetime
) -> tuple[Place, str]:
    """Return what is to be done with a tenant, whatever the stage; ``PICKED``: it may be moved."""
    history = facts.history
    if history.is_finished:
        return Place.FINISHED, f"its phase is {history.phase}"
    if regions and facts.tenant.region not in regions:
        region, served = facts.tenant.region or "not declared", ", ".join(sorted(regions))
        return Place.REFUSED, f"its region is {region}; the target holds {served}"
    if facts.open_run is not None:
        return _judge_open_run(facts)
    if reason := _find_way_back(facts, settings):
        return Place.HELD_BACK, reason
    return _judge_former(facts, settings, now)


def _find_way_back(facts: TenantFacts, settings: Waves) -> str:
    """Return why a person does not want the tenant moved; empty: nobody said so."""
    history = facts.history
    by_hand = "start its Dag by hand to move it again"
    if history.phase in (Phase.ROLLING_BACK, Phase.ABORTING):
        return f"its phase is {history.phase}"
    if history.rolled_back_at is not None:
        return f"it was rolled back on {_show(history.rolled_back_at, settings)}; {by_hand}"
    if history.given_up_at is not None and history.phase is Phase.REGISTERED:
        return f"it was given up on {_show(history.given_up_at, settings)}; {by_hand}"
    return ""


def _judge_open_run(facts: TenantFacts) -> tuple[Place, str]:
    look = facts.open_run
    if look is not None and look.standing in (Standing.FAILED, Standing.DECLINED):
        return Place.HELD_BACK, f"{look.detail}, and its run is still open: clear what failed there"
    return Place.UNDER_WAY, (look.detail if look is not None else "") or "its run is under way"


def _judge_former(facts: TenantFacts, settings: Waves, now: datetime) -> tuple[Place, str]:
    """Judge a tenant that has no open run by what became of its last one."""
    history, attempt = facts.history, facts.history.attempt
    if attempt is not None:
        ended = attempt.standing in (Standing.FAILED, Standing.DECLINED)
        detail = attempt.detail if ended else "its run ended without success"
        since: datetime | None = attempt.since
        reason = f"wave {attempt.wave}, {_show(attempt.since, settings)}: {detail}"
    elif history.phase is not None:
        since = history.since
        reason = f"begun by hand, in phase {history.phase} since {_show(since, settings)}"
    else:
        return Place.PICKED, "its turn has come"
    retry_hours = settings.retry_after_hours
    if since is None or retry_hours is None or now < since + timedelta(hours=retry_hours):
        return Place.HELD_BACK, f"{reason}; start its Dag by hand to go on"
    return Place.PICKED, f"again after {retry_hours:g} h; {reason}"


def _choose_stage(
    former: StageFacts | None, settings: Waves, remaining: int, now: datetime
) -> Stage:
    stages = settings.stages
    if former is not None and former.live < former.size:
        number = min(former.number, len(stages))
        return Stage(number, stages[number - 1], former.size, former.live, former.wave)
    number = 1 if former is None else min(former.number + 1, len(stages))
    percent = stages[number - 1]
    begins_at = None
    if former is not None and former.last_live_at is not None:
        soaked_at = former.last_live_at + timedelta(hours=settings.soak_hours)
        begins_at = soaked_at if soaked_at > now else None
    return Stage(number, percent, max(1, remaining * percent // 100), begins_at=begins_at)


def _choose(
    candidates: Sequence[TenantFacts],
    stage: Stage,
    settings: Waves,
    *,
    now: datetime,
    until: datetime,
) -> list[PlannedTenant]:
    begin = max(now, stage.begins_at or now)
    room = min(stage.size - stage.live, settings.most_tenants)
    chosen: list[PlannedTenant] = []
    for each in candidates:
        reason = _find_wait(each, stage, settings, begin=begin, until=until)
        if not reason and room == 0:
            reason = "its turn comes later"
        if reason:
            chosen.append(_line(each, settings, Place.WAITING, reason))
        else:
            room -= 1
            opening = find_opening(each.tenant.window, begin, timezone=settings.timezone)
            _, because = _judge_former(each, settings, now)
            if opening is not None and opening > now:
                because = f"{because}; not before {_show(opening, settings)}"
            chosen.append(_line(each, settings, Place.PICKED, because))
    return chosen


def _find_wait(
    facts: TenantFacts, stage: Stage, settings: Waves, *, begin: datetime, until: datetime
) -> str:
    """
    Return why a tenant cannot be moved tonight; empty: it can.

    :param begin: from then on the wave may start somebody.
    """
    if facts.size_bytes is None:
        return f"unknown: {facts.unknown}"
    if stage.begins_at is not None and stage.begins_at >= until:
        return f"stage {stage.number} may begin {_show(stage.begins_at, settings)}"
    if begin >= until:
        return "the time of this wave is over"
    opening = find_opening(facts.tenant.window, begin, timezone=settings.timezone)
    if opening is None or opening >= until:
        when = "within a week" if opening is None else f"before {_show(opening, settings)}"
        return f"its window does not open {when}"
    return ""


def _order(facts: TenantFacts, settings: Waves) -> tuple[bool, int, int, str]:
    # Who is never in flight beside another comes last: nobody else then has to wait for that.
    tenant: Tenant = facts.tenant
    is_alone = must_be_alone(tenant, facts.size_bytes, settings)
    return is_alone, _RANKS[tenant.criticality], facts.size_bytes or 0, tenant.key


def _line(facts: TenantFacts, settings: Waves, place: Place, reason: str) -> PlannedTenant:
    return PlannedTenant(
        tenant=facts.tenant.key,
        place=place,
        reason=reason,
        criticality=facts.tenant.criticality,
        size_bytes=facts.size_bytes,
        is_alone=must_be_alone(facts.tenant, facts.size_bytes, settings),
    )


def _only(lines: Sequence[PlannedTenant], place: Place) -> tuple[PlannedTenant, ...]:
    return tuple(line for line in lines if line.place is place)


def _summarize(
    stage: Stage,
    chosen: Sequence[PlannedTenant],
    remaining: int,
    settings: Waves,
    *,
    now: datetime,
    until: datetime,
) -> str:
    if not remaining:
        return "no tenant is left to move"
    name = f"stage {stage.number} of {len(settings.stages)}"
    begins = "" if stage.begins_at is None else f" may begin {_show(stage.begins_at, settings)}"
    if stage.begins_at is not None and stage.begins_at >= until:
        return f"{name}{begins}; nothing starts before"
    if now >= until:
        return f"the time of this wave is over; {name} goes on with the next one"
    picked = len(_only(chosen, Place.PICKED))
    return (
        f"{name} ({stage.percent} % of the tenants that remained):"
        f" {stage.live} of {stage.size} live, {picked} picked, {remaining} remain in all"
        + (f"; it{begins}" if begins else "")
    )


def _first_line(text: str) -> str:
    return text.partition("\n")[0]


def _show(moment: datetime | None, settings: Waves) -> str:
    return show_time(moment, timezone=settings.timezone)
