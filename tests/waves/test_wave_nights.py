"""Whole fleets, night after night, by the pure decisions alone: a clock and no databases."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import pytest

from tenantferry.control.phases import Phase
from tenantferry.control.waves import Member, Standing, Wave
from tenantferry.fleet.operation import Criticality, Waves
from tenantferry.waves.facts import Attempt, History, StageFacts, TenantFacts
from tenantferry.waves.planning import WavePlan, plan_wave
from tenantferry.waves.starting import Supply, next_starts
from tenantferry.waves.windows import is_open
from wave_fleet import NOW, facts_of, fleet_of, view_of

SERVERS = [f"db{number}:5432" for number in range(1, 7)]
NIGHTLY = {"from": "23:00", "to": "04:00"}
MOST_NIGHTS = 120
SLOTS = 7


@dataclass
class World:
    """A fleet whose moves take random times, and some of which fail."""

    tenants: dict[str, TenantFacts]
    settings: Waves
    chance: random.Random
    failure_rate: float = 0.0
    now: datetime = NOW
    started: Counter[str] = field(default_factory=Counter)
    order: list[str] = field(default_factory=list)
    stages: list[tuple[int, int]] = field(default_factory=list)
    stage: StageFacts | None = None
    soaked_at: datetime = NOW
    budgets: dict[int, int] = field(default_factory=dict)
    stopped: int = 0
    wave_number: int = 0

    def live(self) -> set[str]:
        return {key for key, facts in self.tenants.items() if facts.history.is_finished}

    def plan(self) -> WavePlan:
        facts = fleet_of(*self.tenants.values(), stage=self.stage)
        until = self.now + timedelta(hours=self.settings.hours)
        return plan_wave(facts, self.settings, now=self.now, until=until)

    def spend_night(self) -> None:
        """Plan one wave and play it to its end."""
        plan = self.plan()
        assert len(plan.picked) <= self.settings.most_tenants
        self.wave_number += 1
        if plan.picked:
            self._enter(plan)
            members = [
                Member(p.tenant, n, f"wave__{p.tenant}", p.is_alone)
                for n, p in enumerate(plan.picked, start=1)
            ]
            until = self.now + timedelta(hours=self.settings.hours)
            number, stage = self.wave_number, plan.stage
            self.budgets[number] = min(self.settings.error_budget, stage.size - 1)
            self._play(
                Wave(
                    number, stage.number, stage.size, stage.begins_at, until, None, None,
                    tuple(members),
                )
            )  # fmt: skip

    def _enter(self, plan: WavePlan) -> None:
        if plan.stage.wave is None:
            if self.stage is not None:
                assert self.stage.live >= self.stage.size
                assert self.stage.last_live_at is not None
                soak = timedelta(hours=self.settings.soak_hours)
                self.soaked_at = self.stage.last_live_at + soak
            self.stages.append((plan.stage.number, plan.stage.size))
            self.stage = StageFacts(plan.stage.number, self.wave_number, plan.stage.size, 0, None)
        assert self.stage is not None
        assert len(plan.picked) <= self.stage.size - self.stage.live

    def _play(self, wave: Wave) -> None:
        ends: dict[str, datetime] = {}
        while True:
            wave = self._land(wave, ends)
            # A move takes its first slot only a minute after its start.
            view = view_of(
                wave,
                *(facts.tenant for facts in self.tenants.values()),
                servers={key: facts.server for key, facts in self.tenants.items()},
                supplies={s: (Supply("slots", SLOTS, 2),) for s in SERVERS},
            )
            decision = next_starts(view, self.settings, self.now)
            if decision.stop_reason is not None and wave.stop_reason is None:
                self.stopped += 1
            wave = replace(wave, stop_reason=decision.stop_reason)
            for key in decision.starts:
                self._start(key, wave)
                ends[key] = self.now + timedelta(minutes=self.chance.randint(5, 120))
                wave = self._set(wave, key, started_at=self.now, standing=Standing.RUNNING)
            if decision.is_over:
                return
            moments = [*ends.values(), *([decision.wake_at] if decision.wake_at else [])]
            self.now = max(self.now, min(moments))

    def _start(self, key: str, wave: Wave) -> None:
        facts = self.tenants[key]
        assert key not in self.live()
        assert wave.stop_reason is None
        assert self.soaked_at <= self.now < wave.starts_until
        if facts.tenant.window is not None:
            assert is_open(facts.tenant.window, self.now, timezone=self.settings.timezone)
        self.started[key] += 1
        self.order.append(key)

    def _land(self, wave: Wave, ends: dict[str, datetime]) -> Wave:
        self._check_limits(wave)
        for key, end in list(ends.items()):
            if end <= self.now:
                del ends[key]
                has_failed = self.chance.random() < self.failure_rate
                standing = Standing.FAILED if has_failed else Standing.LIVE
                wave = self._set(wave, key, standing=standing, detail="its run failed")
                self._remember(wave, key, standing)
        return wave

    def _set(self, wave: Wave, key: str, **changes: object) -> Wave:
        members = [
            replace(m, since=self.now, **changes) if m.tenant == key else m  # type: ignore[arg-type]  # typed at the caller
            for m in wave.members
        ]
        return replace(wave, members=tuple(members))

    def _remember(self, wave: Wave, key: str, standing: Standing) -> None:
        attempt = Attempt(wave.number, standing, self.now, "its run failed", False)
        is_live = standing is Standing.LIVE
        history = History(Phase.LIVE if is_live else None, self.now, attempt=attempt)
        self.tenants[key] = replace(self.tenants[key], history=history)
        if is_live and self.stage is not None:
            self.stage = replace(self.stage, live=self.stage.live + 1, last_live_at=self.now)

    def _check_limits(self, wave: Wave) -> None:
        in_flight = [m for m in wave.members if m.standing is Standing.RUNNING]
        assert len(in_flight) <= self.settings.most_in_flight
        assert len(in_flight) == 1 or not any(m.is_alone for m in in_flight)
        beside = Counter(self.tenants[m.tenant].server for m in in_flight)
        assert all(n <= self.settings.most_in_flight_per_source for n in beside.values())
        assert all(2 * n <= SLOTS for n in beside.values())


def make_fleet(count: int, chance: random.Random) -> dict[str, TenantFacts]:
    made = {}
    for number in range(count):
        key = f"t{number:04}"
        made[key] = facts_of(
            key,
            server=chance.choice(SERVERS),
            size_bytes=chance.randrange(10**6, 10**9) * (200 if chance.random() < 0.01 else 1),
            criticality=chance.choice(list(Criticality)),
            window=NIGHTLY if chance.random() < 0.3 else None,
        )
    return made


def run_nights(world: World) -> int:
    """Spend nights until one has nothing to do that a later night would not change either."""
    for night in range(MOST_NIGHTS):
        world.now = max(world.now, NOW + timedelta(days=night))
        if len(world.live()) == len(world.tenants):
            return night
        world.spend_night()
    return MOST_NIGHTS


def test_a_thousand_tenants_are_moved_in_stages_each_once_and_in_order() -> None:
    chance = random.Random(7)
    settings = Waves(most_in_flight_per_source=4, most_in_flight=12)
    world = World(make_fleet(1000, chance), settings, chance)

    nights = run_nights(world)

    assert len(world.live()) == 1000
    assert set(world.started.values()) == {1}
    # 1 %, 5 %, 25 % and all of what remained then.
    assert world.stages == [(1, 10), (2, 49), (3, 235), (4, 706)]
    # 10, 49, five nights for 235, fifteen for 706, and the end of a night that was too short.
    assert nights in (1 + 1 + 5 + 15, 1 + 1 + 5 + 16)
    # Those that must be alone wait until hardly anybody else is left.
    is_large = [(world.tenants[key].size_bytes or 0) >= 100 * 2**30 for key in world.order]
    assert is_large.index(True) > 900


def test_the_least_critical_of_a_fleet_are_live_before_any_other_is_begun() -> None:
    chance = random.Random(3)
    settings = Waves(most_in_flight_per_source=4, alone_bytes=10**15)
    tenants = {k: replace(f, tenant=f.tenant.model_copy(update={"window": None}))
               for k, f in make_fleet(120, chance).items()}  # fmt: skip
    world = World(tenants, settings, chance)

    nightly: list[list[str]] = []
    for night in range(20):
        world.now = max(world.now, NOW + timedelta(days=night))
        nightly.append([line.tenant for line in world.plan().picked])
        world.spend_night()

    assert len(world.live()) == 120
    ranks = [
        (list(Criticality).index(tenants[key].tenant.criticality), tenants[key].size_bytes)
        for night in nightly
        for key in night
    ]
    assert ranks == sorted(ranks, key=lambda rank: (rank[0], rank[1] or 0))


@pytest.mark.parametrize("seed", range(6))
def test_a_fleet_with_failures_never_passes_its_budget_and_holds_back_what_failed(
    seed: int,
) -> None:
    chance = random.Random(seed)
    settings = Waves(
        error_budget=chance.randrange(3),
        most_in_flight=chance.randint(1, 9),
        most_in_flight_per_source=chance.randint(1, 3),
        most_tenants=chance.randint(5, 60),
        soak_hours=chance.choice([0, 20, 40]),
    )
    world = World(make_fleet(150, chance), settings, chance, failure_rate=0.05)

    run_nights(world)

    failed = {
        key
        for key, facts in world.tenants.items()
        if facts.history.attempt and facts.history.attempt.standing is Standing.FAILED
    }
    assert failed
    assert world.live() | failed == set(world.tenants)
    assert set(world.started.values()) == {1}
    # What is in flight when the budget is spent may fail as well; nothing is started after.
    by_wave = Counter(
        facts.history.attempt.wave
        for key, facts in world.tenants.items()
        if key in failed and facts.history.attempt
    )
    beyond = [count - world.budgets[wave] for wave, count in by_wave.items()]
    assert max(beyond) <= settings.most_in_flight
    assert world.stopped == sum(count > 0 for count in beyond)


def test_failed_tenants_are_tried_again_where_that_was_declared() -> None:
    chance = random.Random(11)
    settings = Waves(retry_after_hours=23, error_budget=100, most_in_flight_per_source=3)
    world = World(make_fleet(60, chance), settings, chance, failure_rate=0.3)

    run_nights(world)

    assert len(world.live()) == 60
    assert max(world.started.values()) > 1
