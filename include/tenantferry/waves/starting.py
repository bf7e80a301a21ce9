"""
The next step of a wave that runs: start somebody, wait, or stop. Pure decisions.

A tenant is *in flight* while its run works at it: from its start until it is live, has failed, or
waits for a person for longer than ``approval_hours``. A run that takes too long is a failure and
stays in flight; nobody ends it.

Invariant: nothing is started beside a tenant that must be alone, above a limit, outside a window,
after the wave's time, or once the wave is stopped; and whatever is in flight is left alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from tenantferry.control.waves import Member, Standing, Wave
from tenantferry.fleet import Tenant
from tenantferry.fleet.operation import Waves
from tenantferry.waves.windows import find_opening

TARGET = "the target"

_END_OF_TIME = datetime.max.replace(tzinfo=UTC)

# When something is short that others use too, nobody tells when it is free again.
RECHECK = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Supply:
    """
    Something of which there is only so much, e.g. replication slots of one server.

    :ivar free: now.
    :ivar need: what one tenant in flight takes of it at most.
    :ivar holders: tenants that have taken one of theirs already; it is not free any more.
    """

    name: str
    free: int
    need: int
    holders: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class WaveView:
    """
    A wave at one moment, and the room around it.

    :ivar tenants: the declared ones, by key.
    :ivar servers: source server of each of them.
    :ivar bystanders: tenants in flight that are not of this wave, and whether each must be alone.
    :ivar supplies: what there is of each place: a source server, `TARGET`, a stream pool. Of a
        place that is missing nothing is known: nobody is started there.
    :ivar cutting_over: members that failed while their cutover is not done, or not undone, yet.
    """

    wave: Wave
    tenants: Mapping[str, Tenant]
    servers: Mapping[str, str]
    bystanders: Mapping[str, bool] = field(default_factory=dict)
    supplies: Mapping[str, tuple[Supply, ...]] = field(default_factory=dict)
    cutting_over: frozenset[str] = frozenset()

    def places(self, tenant: str) -> tuple[str, ...]:
        """Return where a tenant in flight takes something."""
        declared = self.tenants.get(tenant)
        pool = () if declared is None else (declared.stream_pool,)
        return (self.servers.get(tenant, ""), TARGET, *pool)


@dataclass(frozen=True, slots=True)
class _Blocker:
    """
    What keeps a tenant from being started.

    :ivar is_outside: nobody tells when it is gone: it is not, or not only, of this wave.
    """

    reason: str
    is_outside: bool


@dataclass(frozen=True, slots=True)
class Decision:
    """
    What a wave does next.

    :ivar starts: tenants to start now.
    :ivar wake_at: when to decide again, if nothing happens before; ``None``: only then.
    :ivar stop_reason: it starts no tenant any more, and why.
    :ivar blockers: what keeps tenants whose windows are open from being started now.
    :ivar is_over: nobody is to be started, and nobody is waited for.
    """

    starts: tuple[str, ...]
    blockers: Mapping[str, str]
    wake_at: datetime | None
    stop_reason: str | None
    is_over: bool


def next_starts(view: WaveView, settings: Waves, now: datetime) -> Decision:
    """Decide whom to start now, how long to wait, and whether to stop."""
    wave = view.wave
    stop_reason = wave.stop_reason or _find_stop(wave, settings, now)
    may_start = stop_reason is None and now < wave.starts_until
    pending = _find_openings(view, settings, now) if may_start else {}
    starts, blockers = _choose_starts(view, settings, now, pending)
    waited = [m for m in wave.members if _is_waited_for(m, view, settings, now)]
    moments = [_deadline(member, settings) for member in waited if _has_deadline(member)]
    if pending:
        moments += [wave.starts_until, *(at for at in pending.values() if at > now)]
    if any(blocker.is_outside for blocker in blockers.values()):
        moments.append(now + RECHECK)
    return Decision(
        starts=starts,
        blockers={tenant: blocker.reason for tenant, blocker in blockers.items()},
        wake_at=min(moments, default=None),
        stop_reason=stop_reason,
        is_over=not waited and not pending,
    )


def is_overdue(member: Member, settings: Waves, now: datetime) -> bool:
    """Tell whether a member's run works for too long. The time of an approval does not count."""
    return member.standing is Standing.RUNNING and now >= _deadline(member, settings)


def is_left(member: Member, settings: Waves, now: datetime) -> bool:
    """Tell whether a member has waited for a person for so long that nobody waits for it."""
    return member.standing is Standing.ASKING and now >= _deadline(member, settings)


def has_failed(member: Member, settings: Waves, now: datetime) -> bool:
    """Tell whether a member counts against the error budget."""
    return member.standing is Standing.FAILED or is_overdue(member, settings, now)


def explain_failure(member: Member, settings: Waves) -> str:
    """Name a member that counts against the error budget, and why."""
    if member.standing is Standing.FAILED:
        return f"{member.tenant} ({member.detail})"
    return f"{member.tenant} (not finished after {settings.deadline_hours:g} h; its run goes on)"


def _find_stop(wave: Wave, settings: Waves, now: datetime) -> str | None:
    failures = [member for member in wave.members if has_failed(member, settings, now)]
    # A stage in which everybody fails has told what it is there to tell, however few they are.
    budget = min(settings.error_budget, wave.stage_size - 1)
    if len(failures) <= budget:
        return None
    count = f"{len(failures)} failure{'s exceed' if len(failures) > 1 else ' exceeds'}"
    whose = f" of a stage of {wave.stage_size}" if budget < settings.error_budget else ""
    names = ", ".join(explain_failure(member, settings) for member in failures)
    return f"{count} error budget {budget}{whose}: {names}"


def _is_waited_for(member: Member, view: WaveView, settings: Waves, now: datetime) -> bool:
    if member.standing is Standing.RUNNING:
        return not is_overdue(member, settings, now)
    if member.standing is Standing.ASKING:
        return not is_left(member, settings, now)
    return member.tenant in view.cutting_over


def _has_deadline(member: Member) -> bool:
    return member.standing in (Standing.RUNNING, Standing.ASKING)


def _deadline(member: Member, settings: Waves) -> datetime:
    is_asking = member.standing is Standing.ASKING
    hours = settings.approval_hours if is_asking else settings.deadline_hours
    return _END_OF_TIME if member.since is None else member.since + timedelta(hours=hours)


def _find_openings(view: WaveView, settings: Waves, now: datetime) -> dict[str, datetime]:
    """Return the members that can still be started tonight, in their order, and from when on."""
    begin = max(now, view.wave.starts_from or now)
    openings = {}
    for member in view.wave.members:
        tenant = view.tenants.get(member.tenant)
        if tenant is None or member.started_at is not None or member.standing is not None:
            continue
        opening = find_opening(tenant.window, begin, timezone=settings.timezone)
        if opening is not None and opening < view.wave.starts_until:
            openings[member.tenant] = opening
    return openings


def _find_in_flight(view: WaveView, settings: Waves, now: datetime) -> dict[str, bool]:
    """Return the tenants in flight, and whether each must be alone."""
    ours = {
        member.tenant: member.is_alone
        for member in view.wave.members
        if _is_waited_for(member, view, settings, now) or is_overdue(member, settings, now)
    }
    return {**view.bystanders, **ours}


def _choose_starts(
    view: WaveView, settings: Waves, now: datetime, pending: Mapping[str, datetime]
) -> tuple[tuple[str, ...], dict[str, _Blocker]]:
    """Return whom to start, and what keeps the others whose windows are open."""
    alone = {member.tenant: member.is_alone for member in view.wave.members}
    in_flight = _find_in_flight(view, settings, now)
    starts: list[str] = []
    blockers: dict[str, _Blocker] = {}
    crowd: _Blocker | None = None
    for tenant in (key for key, opening in pending.items() if opening <= now):
        # Nobody overtakes a tenant that has to be alone, or it might never be.
        crowd = crowd or _find_crowd(view, settings, in_flight, is_alone=alone[tenant])
        blocker = crowd or _find_shortage(tenant, view, settings, in_flight)
        if blocker is not None:
            blockers[tenant] = blocker
        else:
            starts.append(tenant)
            in_flight[tenant] = alone[tenant]
    return tuple(starts), blockers


def _find_crowd(
    view: WaveView, settings: Waves, in_flight: Mapping[str, bool], *, is_alone: bool
) -> _Blocker | None:
    """Find what keeps everybody from being started: who is in flight."""
    names = ", ".join(sorted(in_flight))
    is_outside = bool(view.bystanders)
    if any(in_flight.values()):
        large = ", ".join(sorted(key for key, must_be_alone in in_flight.items() if must_be_alone))
        return _Blocker(f"nothing starts beside {large}", is_outside)
    if len(in_flight) >= settings.most_in_flight:
        return _Blocker(f"most_in_flight is {settings.most_in_flight}: {names}", is_outside)
    if is_alone and in_flight:
        return _Blocker(f"it has to be alone; in flight: {names}", is_outside)
    return None


def _find_shortage(
    tenant: str, view: WaveView, settings: Waves, in_flight: Mapping[str, bool]
) -> _Blocker | None:
    """Find what one tenant lacks where it would take something."""
    server = view.servers.get(tenant, "")
    beside = sorted(key for key in in_flight if view.servers.get(key) == server)
    most = settings.most_in_flight_per_source
    if len(beside) >= most:
        reason = f"most_in_flight_per_source is {most}: {', '.join(beside)}"
        return _Blocker(reason, is_outside=True)
    lacks = (_find_lack(tenant, place, view, in_flight) for place in view.places(tenant))
    reason = next((lack for lack in lacks if lack), "")
    return _Blocker(reason, is_outside=True) if reason else None


def _find_lack(tenant: str, place: str, view: WaveView, in_flight: Mapping[str, bool]) -> str:
    """Tell what a place lacks for one more; empty: nothing."""
    supplies = view.supplies.get(place)
    if supplies is None:
        return f"nothing is known of {place or 'its source server'}"
    users = [key for key in in_flight if place in view.places(key)]
    for supply in supplies:
        if supply.free < sum(_shares(supply, [*users, tenant])):  # what those in flight still take
            return f"{place} has no {supply.name} left"
    return ""


def _shares(supply: Supply, users: list[str]) -> Iterator[int]:
    return (supply.need - (user in supply.holders) for user in users)
