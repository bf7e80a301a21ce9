"""What a wave makes of steps that died, of runs that are gone, and of what people did meanwhile."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from night_stage import WAY, NightStage
from tenantferry.control.phases import Phase
from tenantferry.control.waves import Member, Standing, name_run
from tenantferry.errors import TransientError
from tenantferry.waves.nightly import resume_wave
from tenantferry.waves.runs import Wait
from tenantferry.waves.standings import RunLook
from tenantferry.waves.summary import WaveIdleError, WaveStoppedError, WaveSummary


def crash(stage: NightStage) -> None:
    """Let a step die after it has recorded a start, and before there is a run."""
    stage.runs.crash = TransientError("the worker is gone")
    with pytest.raises(TransientError, match="the worker is gone"):
        stage.advance()


def member_of(stage: NightStage, tenant: str) -> Member:
    (found,) = (m for m in stage.wave("night 1").members if m.tenant == tenant)
    return found


def test_a_step_that_died_before_it_started_the_run_starts_it_when_it_is_taken_again(
    stage: NightStage,
) -> None:
    stage.plan()
    crash(stage)

    stage.advance()

    assert stage.runs.started == ["acme", "globex"]


def test_a_step_that_died_after_it_started_the_run_does_not_start_it_again(
    stage: NightStage,
) -> None:
    stage.plan()
    wave = stage.wave("night 1")
    with stage.target.cursor() as cursor:  # what is left when it dies right after the start
        cursor.execute(
            "UPDATE tenantferry.wave_members SET started_at = now(), since = now()"
            " WHERE tenant = 'acme'"
        )
    stage.runs.looks["acme", name_run(wave.number, "acme")] = RunLook(Standing.RUNNING)

    found = stage.advance()

    assert stage.runs.started == ["globex"]
    assert isinstance(found, Wait)
    assert [watched.tenant for watched in found.watched] == ["acme", "globex"]


def test_a_start_that_was_not_done_is_not_made_up_for_when_the_time_of_the_wave_is_over(
    stage: NightStage,
) -> None:
    stage.plan()
    crash(stage)
    with stage.target.cursor() as cursor:
        cursor.execute("UPDATE tenantferry.waves SET starts_until = now() - interval '3 hours'")

    with pytest.raises(WaveIdleError):
        stage.advance()

    assert stage.runs.started == []
    assert member_of(stage, "acme").started_at is None


def test_a_start_that_was_not_done_is_not_made_up_for_outside_the_tenants_window(
    stage: NightStage,
) -> None:
    stage.plan()
    crash(stage)
    stage.open_window("acme", datetime.now(UTC) + timedelta(days=3), hours=1)

    stage.advance()

    assert stage.runs.started == ["globex", "initech"]


def test_a_start_that_was_not_done_is_not_made_up_for_above_the_limit(stage: NightStage) -> None:
    stage.plan()
    crash(stage)
    stage.configure(most_in_flight=1)
    stage.runs.looks["globex", "manual"] = RunLook(Standing.RUNNING)
    stage.register("globex", [Phase.PREPARED])

    stage.advance()

    assert stage.runs.started == []


def test_a_start_that_was_not_done_is_not_made_up_for_once_the_wave_is_stopped(
    stage: NightStage,
) -> None:
    stage.plan()
    crash(stage)
    with stage.target.cursor() as cursor:
        cursor.execute("UPDATE tenantferry.waves SET stop_reason = 'the budget is spent'")

    with pytest.raises(WaveStoppedError):
        stage.advance()

    assert stage.runs.started == []


def test_a_failed_run_that_was_deleted_is_not_started_again_and_stays_a_failure(
    stage: NightStage,
) -> None:
    stage.plan()
    stage.advance()
    stage.fail("acme")
    stage.advance()
    stage.runs.delete("acme")

    found = stage.advance()

    assert stage.runs.started == ["acme", "globex"]
    acme = member_of(stage, "acme")
    assert (acme.standing, acme.detail) == (Standing.FAILED, 'task "preflight" failed')
    assert isinstance(found, Wait)
    # A trigger that watched a run that is gone would wake the wave for ever.
    assert [watched.tenant for watched in found.watched] == ["globex"]


def test_a_run_that_was_deleted_while_it_worked_is_a_failure(stage: NightStage) -> None:
    stage.plan()
    stage.advance()
    stage.runs.delete("acme")

    stage.advance()

    assert stage.runs.started == ["acme", "globex"]
    acme = member_of(stage, "acme")
    assert (acme.standing, acme.detail) == (Standing.FAILED, "its run was deleted")


def test_the_run_of_a_live_tenant_that_was_deleted_does_not_make_it_move_again(
    stage: NightStage,
) -> None:
    stage.plan()
    stage.advance()
    stage.bring_live("acme")
    stage.advance()
    stage.runs.delete("acme")

    stage.advance()

    assert stage.runs.started == ["acme", "globex", "initech"]
    assert member_of(stage, "acme").standing is Standing.LIVE


def test_a_failed_tenant_that_another_run_brought_live_does_not_stop_the_wave_again(
    stage: NightStage,
) -> None:
    stage.plan()
    stage.advance()
    stage.fail("acme")
    stage.bring_live("globex")
    with pytest.raises(WaveStoppedError):
        stage.advance()
    stage.register("acme", [*WAY, Phase.LIVE])

    resume_wave(stage.databases, run_id="night 1")
    stage.advance()

    assert member_of(stage, "acme").standing is Standing.LIVE
    assert stage.runs.started == ["acme", "globex", "initech"]


def test_a_stopped_wave_that_is_tried_again_while_it_waits_stays_stopped(
    stage: NightStage,
) -> None:
    stage.plan()
    stage.advance()
    stage.fail("acme")
    stage.advance()
    stage.runs.set_look("acme", RunLook(Standing.RUNNING))  # a person has cleared what failed
    stage.bring_live("globex")

    resume_wave(stage.databases, run_id="night 1")
    stage.advance()

    assert stage.wave("night 1").stop_reason is not None
    assert stage.runs.started == ["acme", "globex"]


def test_a_member_that_could_not_be_started_is_tried_again_only_if_the_wave_had_ended(
    stage: NightStage,
) -> None:
    stage.plan()
    stage.runs.refusals["acme"] = 'Dag "migrate_acme" is paused'
    stage.advance()
    stage.runs.refusals.clear()

    resume_wave(stage.databases, run_id="night 1")
    stage.advance()
    retried = list(stage.runs.started)
    for tenant in ("globex", "initech"):
        stage.bring_live(tenant)
    assert isinstance(stage.advance(), WaveSummary)
    resume_wave(stage.databases, run_id="night 1")
    stage.advance()

    assert retried == ["globex", "initech"]
    assert stage.runs.started == ["globex", "initech", "acme"]


def test_a_night_in_which_nobody_could_be_started_fails_and_says_what_was_in_the_way(
    stage: NightStage,
) -> None:
    stage.plan()
    stage.register("hooli", [Phase.PREPARED])
    stage.declare_large("hooli")
    stage.runs.looks["hooli", "an earlier night"] = RunLook(Standing.RUNNING)
    assert isinstance(stage.advance(), Wait)
    with stage.target.cursor() as cursor:
        cursor.execute("UPDATE tenantferry.waves SET starts_until = now()")

    with pytest.raises(WaveIdleError) as idle:
        stage.advance()

    assert "acme (nothing starts beside hooli), globex (nothing starts" in idle.value.detail


def test_what_kept_a_member_from_starting_is_not_told_of_it_once_it_has_started(
    stage: NightStage,
) -> None:
    stage.plan()
    stage.runs.looks["initech", "manual"] = RunLook(Standing.RUNNING)
    stage.register("initech", [Phase.PREPARED])
    stage.configure(most_in_flight=1)
    stage.advance()
    waiting = member_of(stage, "acme")
    stage.configure(most_in_flight=3, most_in_flight_per_source=3)

    stage.advance()

    assert waiting.detail == "most_in_flight is 1: initech"
    assert member_of(stage, "acme").detail == ""
