from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from tenantferry.control.waves import Standing
from tenantferry.waves.starting import RECHECK, TARGET, Supply, next_starts
from wave_fleet import NOW, POOL, UNTIL, everything, member, tenant, view_of, wave_of

RUNNING, ASKING, FAILED = Standing.RUNNING, Standing.ASKING, Standing.FAILED
LATE = NOW + timedelta(hours=3)


def test_next_starts_starts_in_order_up_to_the_limit() -> None:
    wave = wave_of(member("a", 1, standing=RUNNING), member("b", 2), member("c", 3), member("d", 4))
    settings = everything(most_in_flight=3, most_in_flight_per_source=9)

    decision = next_starts(view_of(wave), settings, NOW)

    assert decision.starts == ("b", "c")
    assert not decision.is_over


def test_next_starts_starts_no_more_per_source_server_and_goes_on_with_another() -> None:
    wave = wave_of(member("a"), member("b", 2), member("c", 3))
    view = view_of(wave, servers={"c": "db2:5432"})

    decision = next_starts(view, everything(most_in_flight_per_source=1), NOW)

    assert decision.starts == ("a", "c")


def test_next_starts_counts_who_is_in_flight_beside_the_wave() -> None:
    view = view_of(wave_of(member("a")), bystanders={"x": False, "y": False})

    in_all = next_starts(view, everything(most_in_flight=2), NOW)
    of_its_source = next_starts(view, everything(most_in_flight_per_source=2), NOW)
    assert (in_all.starts, in_all.blockers) == ((), {"a": "most_in_flight is 2: x, y"})
    assert of_its_source.starts == ()
    assert of_its_source.blockers == {"a": "most_in_flight_per_source is 2: x, y"}
    roomy = everything(most_in_flight=3, most_in_flight_per_source=3)
    assert next_starts(view, roomy, NOW).starts == ("a",)


def test_next_starts_looks_again_where_nobody_tells_that_there_is_room() -> None:
    view = view_of(wave_of(member("a")), bystanders={"x": False, "y": False})

    decision = next_starts(view, everything(most_in_flight=2), NOW)

    assert decision.wake_at == NOW + RECHECK
    assert not decision.is_over


def test_a_tenant_that_must_be_alone_is_never_started_beside_another() -> None:
    large = member("large", 2, is_alone=True)

    beside = next_starts(view_of(wave_of(member("a", standing=RUNNING), large)), everything(), NOW)
    with_another = next_starts(view_of(wave_of(member("a"), large)), everything(), NOW)
    outside = next_starts(view_of(wave_of(large), bystanders={"x": False}), everything(), NOW)
    alone = next_starts(view_of(wave_of(large)), everything(), NOW)

    assert beside.starts == ()
    assert beside.blockers == {"large": "it has to be alone; in flight: a"}
    assert with_another.starts == ("a",)
    assert outside.starts == ()
    assert alone.starts == ("large",)


@pytest.mark.parametrize("other", ["member", "bystander"])
def test_nobody_is_started_beside_a_tenant_that_must_be_alone(other: str) -> None:
    if other == "member":
        view = view_of(wave_of(member("large", is_alone=True, standing=RUNNING), member("b", 2)))
    else:
        view = view_of(wave_of(member("b")), bystanders={"large": True})

    decision = next_starts(view, everything(), NOW)

    assert (decision.starts, decision.blockers) == ((), {"b": "nothing starts beside large"})


def test_nobody_overtakes_a_tenant_that_waits_to_be_alone() -> None:
    wave = wave_of(
        member("a", 1, standing=RUNNING), member("large", 2, is_alone=True), member("b", 3)
    )

    assert next_starts(view_of(wave), everything(), NOW).starts == ()


def test_a_tenant_starts_only_within_its_window_and_the_wave_wakes_for_it() -> None:
    later = tenant("a", window={"from": "01:00", "to": "05:00"})
    view = view_of(wave_of(member("a"), member("b", 2)), later)

    decision = next_starts(view, everything(), NOW)
    at_one = next_starts(view_of(wave_of(member("a")), later), everything(), LATE)

    assert decision.starts == ("b",)
    assert decision.wake_at == LATE
    assert at_one.starts == ("a",)


def test_a_tenant_whose_window_has_closed_does_not_keep_the_wave_open() -> None:
    early = tenant("a", window={"from": "20:00", "to": "22:00"})

    decision = next_starts(view_of(wave_of(member("a")), early), everything(), NOW)

    assert (decision.starts, decision.is_over) == ((), True)


def test_a_wave_starts_nobody_when_its_time_is_over_and_waits_for_those_in_flight() -> None:
    wave = wave_of(member("a", standing=RUNNING), member("b", 2))

    in_flight = next_starts(view_of(wave), everything(), UNTIL)
    landed = next_starts(
        view_of(wave_of(member("a", standing=Standing.LIVE), member("b", 2))), everything(), UNTIL
    )

    assert (in_flight.starts, in_flight.is_over) == ((), False)
    assert (landed.starts, landed.is_over) == ((), True)


@pytest.mark.parametrize(
    ("supply", "starts"),
    [
        (Supply("slots", 1, 2), ()),
        (Supply("slots", 2, 2), ("a",)),
        (Supply("slots", 4, 2), ("a", "b")),
        (Supply("slots", 3, 2, frozenset({"a"})), ("a", "b")),
        (Supply("slots", 2, 2, frozenset({"a"})), ("a",)),
    ],
    ids=["too few", "for one", "for two", "one holds its first", "its second is missing"],
)
def test_next_starts_starts_no_more_than_a_source_server_has_slots_for(
    supply: Supply, starts: tuple[str, ...]
) -> None:
    view = view_of(wave_of(member("a"), member("b", 2)), supplies={"db1:5432": (supply,)})

    assert next_starts(view, everything(), NOW).starts == starts


def test_a_tenant_in_flight_keeps_the_slot_that_it_has_not_taken_yet() -> None:
    wave = wave_of(member("a", standing=RUNNING), member("b", 2))

    just_started = view_of(wave, supplies={"db1:5432": (Supply("slots", 3, 2),)})
    with_slot = view_of(wave, supplies={"db1:5432": (Supply("slots", 3, 2, frozenset({"a"})),)})

    assert next_starts(just_started, everything(), NOW).starts == ()
    assert next_starts(with_slot, everything(), NOW).starts == ("b",)


@pytest.mark.parametrize("place", [TARGET, POOL])
def test_next_starts_heeds_the_target_and_the_stream_pool(place: str) -> None:
    view = view_of(wave_of(member("a"), member("b", 2)), supplies={place: (Supply("x", 1, 1),)})

    decision = next_starts(view, everything(), NOW)

    assert decision.starts == ("a",)
    assert decision.blockers == {"b": f"{place} has no x left"}


def test_nobody_is_started_from_a_server_that_does_not_answer() -> None:
    view = view_of(wave_of(member("a"), member("b", 2)), servers={"a": "db2:5432"})
    known = {place: found for place, found in view.supplies.items() if place != "db2:5432"}

    decision = next_starts(replace(view, supplies=known), everything(), NOW)

    assert decision.starts == ("b",)
    assert decision.blockers == {"a": "nothing is known of db2:5432"}
    assert decision.wake_at == NOW + RECHECK


def test_a_wave_stops_when_more_fail_than_the_budget_allows() -> None:
    wave = wave_of(
        member("a", 1, standing=FAILED, detail='task "validate" failed'),
        member("b", 2, standing=FAILED, detail="its run failed"),
        member("c", 3, standing=RUNNING),
        member("d", 4),
    )

    within = next_starts(view_of(wave), everything(error_budget=2), NOW)
    beyond = next_starts(view_of(wave), everything(error_budget=1), NOW)

    assert (within.starts, within.stop_reason) == (("d",), None)
    assert beyond.starts == ()
    assert beyond.stop_reason == (
        '2 failures exceed error budget 1: a (task "validate" failed), b (its run failed)'
    )
    assert not beyond.is_over  # c finishes first


@pytest.mark.parametrize("size", [1, 2])
def test_a_small_stage_stops_the_wave_when_all_of_it_fail_whatever_the_budget(size: int) -> None:
    failed = [member(f"f{n}", n, standing=FAILED, detail="its run failed") for n in range(size)]

    all_failed = next_starts(
        view_of(wave_of(*failed, stage_size=size)), everything(error_budget=2), NOW
    )
    all_but_one = next_starts(
        view_of(wave_of(*failed, stage_size=size + 1)), everything(error_budget=2), NOW
    )

    assert all_failed.stop_reason is not None
    assert f"error budget {size - 1} of a stage of {size}: f0" in all_failed.stop_reason
    assert all_but_one.stop_reason is None


def test_a_wave_starts_nobody_before_its_stage_may_begin() -> None:
    early = next_starts(view_of(wave_of(member("a"), begin=LATE)), everything(), NOW)
    in_time = next_starts(view_of(wave_of(member("a"), begin=LATE)), everything(), LATE)

    assert (early.starts, early.wake_at, early.is_over) == ((), LATE, False)
    assert in_time.starts == ("a",)


def test_a_stopped_wave_is_over_when_nobody_is_in_flight() -> None:
    failed = member("a", standing=FAILED, detail="its run failed")

    decision = next_starts(
        view_of(wave_of(failed, member("b", 2))), everything(error_budget=0), NOW
    )

    assert decision.stop_reason == "1 failure exceeds error budget 0: a (its run failed)"
    assert decision.is_over


def test_a_stopped_wave_stays_stopped_when_the_failure_is_mended() -> None:
    wave = wave_of(member("a", standing=RUNNING), member("b", 2), stop_reason="1 failure exceeds …")

    decision = next_starts(view_of(wave), everything(), NOW)

    assert (decision.starts, decision.is_over) == ((), False)


def test_a_failed_run_whose_cutover_is_not_undone_yet_is_waited_for() -> None:
    wave = wave_of(member("a", standing=FAILED, detail='task "stream_cdc" failed'))

    undoing = next_starts(
        view_of(wave, cutting_over=frozenset({"a"})), everything(error_budget=0), NOW
    )
    undone = next_starts(view_of(wave), everything(error_budget=0), NOW)

    assert (undoing.is_over, undone.is_over) == (False, True)


def test_a_run_that_takes_too_long_is_a_failure_and_stays_in_flight() -> None:
    settings = everything(deadline_hours=2, most_in_flight=2, error_budget=1)
    wave = wave_of(member("a", standing=RUNNING), member("b", 2), member("c", 3))

    before = next_starts(view_of(wave), settings, NOW)
    after = next_starts(view_of(wave), settings, NOW + timedelta(hours=2))
    without_budget = next_starts(
        view_of(wave),
        settings.model_copy(update={"error_budget": 0}),
        NOW + timedelta(hours=2),
    )

    assert (before.starts, before.wake_at) == (("b",), NOW + timedelta(hours=2))
    assert after.starts == ("b",)  # and not c: two are in flight then
    assert without_budget.stop_reason == (
        "1 failure exceeds error budget 0: a (not finished after 2 h; its run goes on)"
    )
    assert without_budget.is_over  # it may never end; the next night has to begin


def test_a_tenant_that_waits_for_a_person_holds_its_place_for_a_while_only() -> None:
    settings = everything(approval_hours=2, most_in_flight=1, error_budget=0)
    view = view_of(wave_of(member("a", standing=ASKING), member("b", 2)))

    early = next_starts(view, settings, NOW + timedelta(hours=1))
    late = next_starts(view, settings, NOW + timedelta(hours=2))

    assert (early.starts, early.wake_at) == ((), NOW + timedelta(hours=2))
    assert (late.starts, late.stop_reason) == (("b",), None)


def test_a_wave_is_over_when_only_people_are_waited_for() -> None:
    view = view_of(
        wave_of(member("a", standing=ASKING), member("b", 2, standing=Standing.DECLINED))
    )

    decision = next_starts(view, everything(approval_hours=2, error_budget=0), LATE)

    assert (decision.is_over, decision.stop_reason) == (True, None)


def test_a_member_that_could_not_be_started_is_not_tried_again() -> None:
    skipped = member("a", standing=Standing.SKIPPED, detail="its Dag is paused")

    decision = next_starts(view_of(wave_of(skipped)), everything(), NOW)

    assert (decision.starts, decision.is_over) == ((), True)


def test_a_member_that_is_not_declared_any_more_is_not_started() -> None:
    view = view_of(wave_of(member("a"), member("b", 2)))
    left = {"b": view.tenants["b"]}

    decision = next_starts(replace(view, tenants=left), everything(), NOW)

    assert decision.starts == ("b",)
