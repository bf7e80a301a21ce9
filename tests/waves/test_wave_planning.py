from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from tenantferry.control.phases import Phase
from tenantferry.control.waves import Standing
from tenantferry.fleet.operation import Waves
from tenantferry.waves.facts import Attempt, History, StageFacts, TenantFacts
from tenantferry.waves.planning import WavePlan, plan_wave
from tenantferry.waves.showing import render_plan, write_markdown
from tenantferry.waves.standings import RunLook
from wave_fleet import NOW, UNTIL, everything, facts_of, fleet_of

FAILED = Attempt(3, Standing.FAILED, NOW - timedelta(hours=20), 'task "preflight" failed', False)


def plan(
    *tenants: TenantFacts, settings: Waves | None = None, stage: StageFacts | None = None
) -> WavePlan:
    return plan_wave(
        fleet_of(*tenants, stage=stage), settings or everything(), now=NOW, until=UNTIL
    )


def picked(made: WavePlan) -> list[str]:
    return [line.tenant for line in made.picked]


def held_back(history: History, **fields: object) -> str:
    made = plan(facts_of("acme", history=history, **fields))  # type: ignore[arg-type]  # typed there

    assert picked(made) == []
    (line,) = made.held_back
    return line.reason


def test_plan_wave_takes_the_least_critical_first_then_the_smallest() -> None:
    made = plan(
        facts_of("vip", criticality="high", size_bytes=1),
        facts_of("medium", size_bytes=20),
        facts_of("small", size_bytes=10),
        facts_of("trial", criticality="low", size_bytes=30),
    )

    assert picked(made) == ["trial", "small", "medium", "vip"]


def test_plan_wave_puts_those_that_must_be_alone_last_however_little_critical() -> None:
    made = plan(
        facts_of("declared", size_class="large", criticality="low", size_bytes=5),
        facts_of("measured", criticality="low", size_bytes=1000),
        facts_of("vip", criticality="high", size_bytes=999),
        settings=everything(alone_bytes=1000),
    )

    assert [(line.tenant, line.is_alone) for line in made.picked] == [
        ("vip", False),
        ("declared", True),
        ("measured", True),
    ]


@pytest.mark.parametrize(
    ("remaining", "size"), [(1, 1), (99, 1), (199, 1), (200, 2), (1000, 10)], ids=str
)
def test_a_stage_has_its_share_of_the_tenants_that_remain_and_one_at_least(
    remaining: int, size: int
) -> None:
    made = plan(*(facts_of(f"t{n}") for n in range(remaining)), settings=Waves())

    assert (made.stage.number, made.stage.size, len(made.picked)) == (1, size, size)


def test_the_next_stage_counts_those_that_remain_then() -> None:
    live = [facts_of(f"live{n}", history=History(Phase.LIVE)) for n in range(10)]
    rest = [facts_of(f"t{n:03}") for n in range(200)]
    ended = StageFacts(1, wave=1, size=10, live=10, last_live_at=NOW - timedelta(days=2))

    made = plan(*live, *rest, settings=Waves(), stage=ended)

    assert (made.stage.number, made.stage.percent, made.stage.size) == (2, 5, 10)
    assert len(made.picked) == 10
    assert len(made.finished) == 10


def test_a_stage_goes_on_until_as_many_are_live_as_it_has() -> None:
    half = StageFacts(2, wave=4, size=10, live=7, last_live_at=NOW - timedelta(days=1))

    made = plan(*(facts_of(f"t{n}") for n in range(50)), settings=Waves(), stage=half)

    assert (made.stage.number, made.stage.wave, len(made.picked)) == (2, 4, 3)


def test_a_failed_tenant_does_not_fill_its_stage_and_another_takes_its_place() -> None:
    nobody_live = StageFacts(1, wave=3, size=1, live=0, last_live_at=None)

    made = plan(
        facts_of("aaa", history=History(attempt=FAILED)),
        facts_of("bbb"),
        facts_of("ccc"),
        settings=Waves(),
        stage=nobody_live,
    )

    assert picked(made) == ["bbb"]
    assert [line.tenant for line in made.held_back] == ["aaa"]


def test_a_stage_begins_only_after_the_one_before_has_soaked() -> None:
    ended = StageFacts(1, wave=1, size=1, live=1, last_live_at=NOW - timedelta(hours=19))
    tenants = [facts_of(f"t{n}") for n in range(5)]

    too_soon = plan(*tenants, settings=Waves(soak_hours=27), stage=ended)
    in_time = plan(*tenants, settings=Waves(soak_hours=19), stage=ended)

    assert picked(too_soon) == []
    assert "stage 2 of 4 may begin 2026-11-21 06:00 UTC" in too_soon.sentence
    assert {line.reason for line in too_soon.waiting} == {"stage 2 may begin 2026-11-21 06:00 UTC"}
    assert picked(in_time) == ["t0"]


def test_a_stage_whose_soak_ends_tonight_is_begun_then() -> None:
    ended = StageFacts(1, wave=1, size=1, live=1, last_live_at=NOW - timedelta(hours=19))
    until_one = {"from": "22:00", "to": "22:59"}
    from_one = {"from": "01:00", "to": "05:00"}

    made = plan(
        facts_of("at_once"),
        facts_of("closed", window=until_one),
        facts_of("later", window=from_one),
        settings=Waves(soak_hours=20, stages=(1, 100)),
        stage=ended,
    )

    assert {line.tenant: line.reason for line in made.picked} == {
        "at_once": "its turn has come; not before 2026-11-20 23:00 UTC",
        "later": "its turn has come; not before 2026-11-21 01:00 UTC",
    }
    assert [line.tenant for line in made.waiting] == ["closed"]
    assert made.stage.begins_at == NOW + timedelta(hours=1)
    assert made.sentence.endswith("; it may begin 2026-11-20 23:00 UTC")


def test_tenants_that_come_after_the_last_stage_belong_to_it() -> None:
    ended = StageFacts(4, wave=9, size=3, live=3, last_live_at=NOW - timedelta(days=30))

    made = plan(facts_of("late_1"), facts_of("late_2"), settings=Waves(), stage=ended)

    assert (made.stage.number, made.stage.wave, made.stage.size) == (4, None, 2)
    assert picked(made) == ["late_1", "late_2"]


def test_a_stage_that_is_not_declared_any_more_becomes_the_last_one() -> None:
    former = StageFacts(4, wave=9, size=3, live=1, last_live_at=None)

    made = plan(facts_of("acme"), settings=Waves(stages=(10, 100)), stage=former)

    assert (made.stage.number, picked(made)) == (2, ["acme"])


def test_plan_wave_picks_no_more_than_a_night_may_have() -> None:
    made = plan(*(facts_of(f"t{n}") for n in range(5)), settings=everything(most_tenants=2))

    assert picked(made) == ["t0", "t1"]
    assert {line.reason for line in made.waiting} == {"its turn comes later"}


def test_a_tenant_of_a_region_that_the_target_does_not_serve_is_refused() -> None:
    made = plan(facts_of("acme", region="us"), facts_of("globex"), facts_of("hooli", region=None))

    assert picked(made) == ["globex"]
    assert [(line.tenant, line.reason) for line in made.refused] == [
        ("acme", "its region is us; the target holds eu"),
        ("hooli", "its region is not declared; the target holds eu"),
    ]


def test_a_target_without_regions_serves_all_of_them() -> None:
    facts = fleet_of(facts_of("acme", region="us"), regions=())

    made = plan_wave(facts, everything(), now=NOW, until=UNTIL)

    assert picked(made) == ["acme"]


def test_a_tenant_whose_declaration_cannot_be_used_is_refused() -> None:
    facts = replace(fleet_of(facts_of("acme")), broken={"hooli": "id: not a UUID\nDETAIL: …"})

    made = plan_wave(facts, everything(), now=NOW, until=UNTIL)

    assert [(line.tenant, line.reason) for line in made.refused] == [("hooli", "id: not a UUID")]


def test_a_tenant_whose_size_nobody_knows_waits() -> None:
    made = plan(
        facts_of("acme", size_bytes=None, unknown="db1 does not answer"), facts_of("globex")
    )

    assert picked(made) == ["globex"]
    assert made.waiting[0].reason == "unknown: db1 does not answer"


@pytest.mark.parametrize(
    ("window", "is_picked", "told"),
    [
        ({"from": "22:00", "to": "05:00"}, True, "its turn has come"),
        (
            {"from": "05:59", "to": "07:00"},
            True,
            "its turn has come; not before 2026-11-21 05:59 UTC",
        ),
        (
            {"from": "06:00", "to": "07:00"},
            False,
            "its window does not open before 2026-11-21 06:00 UTC",
        ),
        (
            {"from": "22:00", "to": "05:00", "days": ["mon"]},
            False,
            "its window does not open before 2026-11-23 22:00 UTC",
        ),
    ],
    ids=["open", "opens tonight", "opens when the wave starts nobody more", "another day"],
)
def test_a_tenant_is_picked_only_if_its_window_opens_while_the_wave_starts_tenants(
    window: dict[str, object], is_picked: bool, told: str
) -> None:
    made = plan(facts_of("acme", window=window))

    assert bool(made.picked) is is_picked
    assert [line.reason for line in (*made.picked, *made.waiting)] == [told]


def test_a_tenant_that_waits_for_its_window_leaves_its_place_to_the_next() -> None:
    monday = {"from": "22:00", "to": "05:00", "days": ["mon"]}

    made = plan(facts_of("aaa", window=monday), facts_of("bbb"), settings=Waves())

    assert picked(made) == ["bbb"]
    assert made.waiting[0].reason == "its window does not open before 2026-11-23 22:00 UTC"


@pytest.mark.parametrize("phase", [Phase.LIVE, Phase.RETIRING, Phase.RETIRED])
def test_a_tenant_that_is_there_is_finished(phase: Phase) -> None:
    made = plan(facts_of("acme", history=History(phase, attempt=FAILED)))

    assert [line.tenant for line in made.finished] == ["acme"]
    assert made.sentence == "no tenant is left to move"


def test_a_failed_tenant_is_held_back_and_says_where_it_failed() -> None:
    reason = held_back(History(attempt=FAILED))

    assert reason == (
        'wave 3, 2026-11-20 02:00 UTC: task "preflight" failed; start its Dag by hand to go on'
    )


def test_a_failed_tenant_is_picked_again_after_the_time_that_was_declared() -> None:
    failed = facts_of("acme", history=History(attempt=FAILED))

    too_soon = plan(failed, settings=everything(retry_after_hours=21))
    in_time = plan(failed, settings=everything(retry_after_hours=20))

    assert picked(too_soon) == []
    assert picked(in_time) == ["acme"]
    assert in_time.picked[0].reason.startswith("again after 20 h; wave 3")


@pytest.mark.parametrize("standing", [Standing.RUNNING, Standing.ASKING, Standing.LIVE])
def test_a_run_that_ended_unseen_and_left_the_tenant_behind_holds_it_back(
    standing: Standing,
) -> None:
    attempt = replace(FAILED, standing=standing, detail="it waits for an approval")

    assert "its run ended without success" in held_back(History(attempt=attempt))


def test_a_tenant_that_was_rolled_back_is_not_moved_again_by_the_clock() -> None:
    history = History(Phase.STREAMING, NOW, rolled_back_at=NOW)

    assert "it was rolled back on 2026-11-20 22:00 UTC" in held_back(history)
    made = plan(facts_of("acme", history=history), settings=everything(retry_after_hours=0.001))
    assert picked(made) == []


def test_a_tenant_that_was_given_up_is_not_moved_again_by_the_clock() -> None:
    history = History(Phase.REGISTERED, NOW, given_up_at=NOW)

    assert "it was given up on 2026-11-20 22:00 UTC" in held_back(history)


@pytest.mark.parametrize("phase", [Phase.ROLLING_BACK, Phase.ABORTING])
def test_a_tenant_that_is_on_its_way_back_is_held_back(phase: Phase) -> None:
    assert f"its phase is {phase}" in held_back(History(phase, NOW))


def test_a_move_that_was_begun_by_hand_is_left_to_that_hand() -> None:
    reason = held_back(History(Phase.BACKFILLING, NOW))

    assert "begun by hand, in phase backfilling since 2026-11-20 22:00 UTC" in reason


def test_a_failed_tenant_whose_stream_goes_on_is_held_back_and_says_so() -> None:
    look = RunLook(Standing.FAILED, detail='task "validate" failed')

    reason = held_back(History(Phase.STREAMING, NOW, attempt=FAILED), open_run=look)

    assert reason == 'task "validate" failed, and its run is still open: clear what failed there'


@pytest.mark.parametrize("standing", [Standing.RUNNING, Standing.ASKING])
def test_a_tenant_with_an_open_run_is_under_way(standing: Standing) -> None:
    made = plan(facts_of("acme", open_run=RunLook(standing)), facts_of("globex"))

    assert picked(made) == ["globex"]
    assert [line.tenant for line in made.under_way] == ["acme"]


def test_a_plan_shows_every_tenant_that_is_not_finished_with_its_reason() -> None:
    made = plan(
        facts_of("acme", size_bytes=5_000_000),
        facts_of("globex", region="us"),
        facts_of("hooli", history=History(attempt=FAILED)),
        facts_of("initech", history=History(Phase.LIVE)),
        facts_of("umbrella", size_bytes=None, unknown="gone"),
    )

    table, markdown = render_plan(made), write_markdown(made)
    for text in (table, markdown):
        assert "Stage 1 of 1 (100 % of the tenants that remained)" in text
        assert "Finished: 1." in text
        assert "4.8 MB" in text
        for word in ("acme", "globex", "region", "hooli", "preflight", "umbrella", "gone"):
            assert word in text
    assert "initech" not in table
