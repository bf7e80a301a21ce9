from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from night_stage import WAY, NightStage
from tenantferry.connections import ConnectionParams
from tenantferry.control.phases import Phase
from tenantferry.control.waves import Standing
from tenantferry.local.postgres import PostgresServer
from tenantferry.waves.nightly import begin_wave, resume_wave, show_plan
from tenantferry.waves.planning import WavePlan
from tenantferry.waves.reading import read_stage
from tenantferry.waves.runs import Wait
from tenantferry.waves.standings import RunLook
from tenantferry.waves.starting import RECHECK
from tenantferry.waves.summary import WaveStoppedError, WaveSummary


def test_show_plan_plans_the_first_night_and_leaves_no_trace(stage: NightStage) -> None:
    with stage.target.cursor() as cursor:
        cursor.execute("DROP SCHEMA tenantferry CASCADE")

    made = show_plan(stage.databases, stage.runs)

    assert [line.tenant for line in made.picked] == ["acme", "globex", "initech"]
    sizes = [line.size_bytes or 0 for line in made.picked]
    assert sizes[0] < sizes[1] < sizes[2]
    with stage.target.cursor() as cursor:
        cursor.execute("SELECT to_regnamespace('tenantferry')")
        assert cursor.fetchone() == (None,)


def test_show_plan_shows_by_day_what_the_wave_plans_at_its_time(stage: NightStage) -> None:
    now = datetime.now(UTC)
    tonight, later = now + timedelta(hours=9), now + timedelta(hours=30)
    stage.open_window("acme", tonight, hours=7)
    stage.open_window("globex", tonight + timedelta(hours=4), hours=7)
    stage.open_window("initech", later, hours=7)
    stage.configure(timezone="UTC", hours=8)

    by_day = show_plan(stage.databases, stage.runs)
    of_the_night = show_plan(stage.databases, stage.runs, at=tonight)
    late = show_plan(stage.databases, stage.runs, at=now - timedelta(hours=1))

    assert by_day.picked == ()
    assert [line.tenant for line in of_the_night.picked] == ["acme", "globex"]
    assert late == by_day


def test_show_plan_judges_the_soak_at_the_time_of_the_wave(stage: NightStage) -> None:
    stage.configure(stages=(50, 100), soak_hours=20)
    stage.plan()
    stage.advance()
    stage.bring_live("acme")
    stage.advance()

    made = show_plan(stage.databases, stage.runs, at=datetime.now(UTC) + timedelta(hours=21))

    assert [line.tenant for line in made.picked] == ["globex", "initech"]


def test_the_first_wave_makes_the_control_schema(stage: NightStage) -> None:
    with stage.target.cursor() as cursor:
        cursor.execute("DROP SCHEMA tenantferry CASCADE")

    stage.plan()
    stage.advance()

    assert stage.runs.started == ["acme", "globex"]


def test_a_control_schema_from_before_there_were_waves_is_completed(stage: NightStage) -> None:
    stage.register("initech", [Phase.PREPARED])
    with stage.target.cursor() as cursor:
        cursor.execute("DROP TABLE tenantferry.wave_members, tenantferry.waves")
        cursor.execute("COMMENT ON SCHEMA tenantferry IS NULL")

    shown = show_plan(stage.databases, stage.runs)
    made = stage.plan()

    assert [line.tenant for line in shown.held_back] == ["initech"]
    assert [line.tenant for line in made.picked] == ["acme", "globex"]
    assert list(stage.standings("night 1")) == ["acme", "globex"]


def test_a_source_server_that_does_not_answer_lets_its_tenants_wait(stage: NightStage) -> None:
    gone = ConnectionParams("127.0.0.1", 1, "tenantferry", "globex")
    sources = {**stage.databases.sources, "globex": gone, "initech": 'connection "x" is missing'}
    stage.databases = replace(stage.databases, sources=sources)

    made = stage.plan()

    assert [line.tenant for line in made.picked] == ["acme"]
    reasons = {line.tenant: line.reason for line in made.waiting}
    assert "could not connect" in reasons["globex"]
    assert reasons["initech"] == 'unknown: connection "x" is missing'


def test_a_source_database_that_is_gone_costs_nobody_else_their_size(stage: NightStage) -> None:
    acme = stage.databases.sources["acme"]
    assert isinstance(acme, ConnectionParams)
    sources = {**stage.databases.sources, "acme": acme.with_database("nowhere")}
    stage.databases = replace(stage.databases, sources=sources)

    made = stage.plan()

    assert [line.tenant for line in made.picked] == ["globex", "initech"]
    assert made.waiting[0].reason == 'unknown: its source has no database "nowhere"'


def test_a_wave_starts_the_next_when_one_is_live_and_is_over_when_all_are(
    stage: NightStage,
) -> None:
    stage.plan()

    first = stage.advance()
    stage.bring_live("globex")
    second = stage.advance()
    for tenant in ("acme", "initech"):
        stage.bring_live(tenant)
    last = stage.advance()

    assert isinstance(first, Wait)
    assert [watched.tenant for watched in first.watched] == ["acme", "globex"]
    assert isinstance(second, Wait)
    assert [watched.tenant for watched in second.watched] == ["acme", "initech"]
    assert stage.runs.started == ["acme", "globex", "initech"]
    assert isinstance(last, WaveSummary)
    assert last.live == ("acme", "globex", "initech")
    ended = read_stage(stage.target)
    assert ended is not None
    assert (ended.number, ended.size, ended.live) == (1, 3, 3)
    assert ended.last_live_at is not None


def test_a_wave_that_exceeds_its_budget_waits_for_those_in_flight_and_says_why(
    stage: NightStage,
) -> None:
    stage.plan()
    stage.advance()
    stage.fail("acme")

    waiting = stage.advance()
    stage.bring_live("globex")
    with pytest.raises(WaveStoppedError) as stopped:
        stage.advance()

    assert isinstance(waiting, Wait)
    assert stage.runs.started == ["acme", "globex"]
    assert str(stopped.value).startswith(
        'wave 1 stopped: 1 failure exceeds error budget 0: acme (task "preflight" failed)'
    )
    assert "live: globex; failed: acme" in stopped.value.detail
    assert stopped.value.detail.endswith("; not started: initech.")
    assert stage.standings("night 1") == {
        "acme": Standing.FAILED,
        "globex": Standing.LIVE,
        "initech": None,
    }


def test_the_next_night_goes_on_and_holds_back_who_failed(stage: NightStage) -> None:
    stage.plan()
    stage.advance()
    stage.fail("acme")
    stage.bring_live("globex")
    with pytest.raises(WaveStoppedError):
        stage.advance()

    made = stage.plan("night 2")
    stage.advance("night 2")

    assert [line.tenant for line in made.picked] == ["initech"]
    assert [line.tenant for line in made.held_back] == ["acme"]
    assert [line.tenant for line in made.finished] == ["globex"]
    assert (made.stage.number, made.stage.size, made.stage.live) == (1, 3, 1)
    assert stage.runs.started == ["acme", "globex", "initech"]


def test_a_tenant_that_was_mended_by_hand_is_finished_and_fills_its_stage(
    stage: NightStage,
) -> None:
    stage.configure(stages=(50, 100), soak_hours=0, most_in_flight_per_source=1)
    stage.plan()
    stage.advance()
    stage.fail("acme")
    with pytest.raises(WaveStoppedError):
        stage.advance()
    stage.bring_live("acme")

    made = stage.plan("night 2")

    assert (made.stage.number, made.stage.size) == (2, 2)
    assert [line.tenant for line in made.picked] == ["globex", "initech"]


def test_a_stage_whose_tenant_was_rolled_back_is_not_over(stage: NightStage) -> None:
    stage.configure(stages=(50, 100), soak_hours=0)
    stage.plan()
    stage.advance()
    stage.bring_live("acme")
    assert isinstance(stage.advance(), WaveSummary)
    stage.register("acme", [Phase.ROLLING_BACK, Phase.STREAMING])

    made = stage.plan("night 2")

    assert (made.stage.number, made.stage.live) == (1, 0)
    assert [line.tenant for line in made.picked] == ["globex"]
    assert "it was rolled back" in made.held_back[0].reason


def test_a_stopped_wave_goes_on_when_it_is_cleared_and_the_failure_was_mended(
    stage: NightStage,
) -> None:
    stage.plan()
    stage.advance()
    stage.fail("acme")
    stage.bring_live("globex")
    with pytest.raises(WaveStoppedError):
        stage.advance()
    stage.bring_live("acme")

    resume_wave(stage.databases, run_id="night 1")
    stage.advance()

    assert stage.runs.started == ["acme", "globex", "initech"]


def test_a_stopped_wave_that_is_cleared_stops_again_while_the_failure_stands(
    stage: NightStage,
) -> None:
    stage.plan()
    stage.advance()
    stage.fail("acme")
    stage.bring_live("globex")
    with pytest.raises(WaveStoppedError):
        stage.advance()

    resume_wave(stage.databases, run_id="night 1")
    with pytest.raises(WaveStoppedError):
        stage.advance()

    assert stage.runs.started == ["acme", "globex"]


def test_a_run_that_was_marked_a_success_is_a_failure_while_the_tenant_is_not_live(
    stage: NightStage,
) -> None:
    stage.plan()
    stage.advance()
    stage.runs.set_look("acme", RunLook(Standing.LIVE, is_open=False))

    stage.advance()

    (acme,) = (m for m in stage.wave("night 1").members if m.tenant == "acme")
    assert (acme.standing, acme.detail) == (
        Standing.FAILED,
        "its run ended, and its phase is none",
    )


def test_a_person_who_is_asked_holds_nobody_up_for_long(stage: NightStage) -> None:
    stage.configure(most_in_flight=1, approval_hours=1)
    stage.plan()
    stage.advance()
    stage.runs.set_look("acme", RunLook(Standing.ASKING, detail="it waits for an approval"))

    early = stage.advance()
    with stage.target.cursor() as cursor:
        cursor.execute("UPDATE tenantferry.wave_members SET since = since - interval '1 hour'")
    stage.advance()

    assert isinstance(early, Wait)
    assert early.seconds == pytest.approx(3600, abs=30)
    assert stage.runs.started == ["acme", "globex"]


def test_a_tenant_that_was_moved_by_hand_meanwhile_is_left_out(stage: NightStage) -> None:
    stage.plan()
    stage.register("acme", [*WAY, Phase.LIVE])

    stage.advance()

    assert stage.runs.started == ["globex", "initech"]
    assert stage.standings("night 1")["acme"] is Standing.SKIPPED


def test_a_tenant_whose_dag_runs_already_is_not_started_a_second_time(stage: NightStage) -> None:
    stage.plan()
    stage.runs.looks["acme", "manual"] = RunLook(Standing.RUNNING)

    stage.advance()

    assert stage.runs.started == ["globex", "initech"]
    (acme,) = (m for m in stage.wave("night 1").members if m.tenant == "acme")
    assert acme.detail == "another run of its Dag is under way"


def test_a_tenant_that_airflow_cannot_start_is_left_to_a_later_wave_and_is_no_failure(
    stage: NightStage,
) -> None:
    stage.plan()
    stage.runs.refusals["acme"] = 'Dag "migrate_acme" is paused'

    stage.advance()
    for tenant in ("globex", "initech"):
        stage.bring_live(tenant)
    ended = stage.advance()

    assert isinstance(ended, WaveSummary)
    assert ended.not_started == ('acme (Dag "migrate_acme" is paused)',)
    assert [line.tenant for line in stage.plan("night 2").picked] == ["acme"]


def test_a_plan_stands_once_somebody_was_started_and_is_made_anew_before(
    stage: NightStage,
) -> None:
    stage.plan()
    stage.register("acme", [Phase.PREPARED])
    anew = stage.plan()
    stage.advance()

    stands = begin_wave(stage.databases, stage.runs, run_id="night 1", until=stage.until)

    assert [line.tenant for line in anew.picked] == ["globex", "initech"]
    assert not isinstance(stands, WavePlan)
    assert [member.tenant for member in stands.members] == ["globex", "initech"]


def test_a_night_without_anybody_to_move_leaves_no_wave(stage: NightStage) -> None:
    stage.configure(stages=(50, 100), soak_hours=20)
    stage.plan()
    stage.advance()
    stage.bring_live("acme")
    stage.advance()

    made = stage.plan("night 2")
    ended = stage.advance("night 2")

    assert "stage 2 of 2 may begin" in made.sentence
    assert ended == WaveSummary()
    assert show_plan(stage.databases, stage.runs).stage.wave is None


def test_a_wave_that_is_late_starts_nobody(stage: NightStage) -> None:
    over = datetime.now(UTC) - timedelta(minutes=1)

    made = begin_wave(stage.databases, stage.runs, run_id="night 1", until=over)

    assert isinstance(made, WavePlan)
    assert made.picked == ()
    assert "the time of this wave is over" in made.sentence


def test_a_wave_starts_nobody_whom_the_source_server_has_no_slots_for(
    stage: NightStage, source_server: PostgresServer
) -> None:
    free = int(
        source_server.psql(
            "-c",
            "SELECT current_setting('max_replication_slots')::integer"
            " - (SELECT count(*) FROM pg_replication_slots)",
        )
    )
    names = [f"other_{number}" for number in range(free - 3)]
    stage.plan()
    try:
        for name in names:
            source_server.psql("-c", f"SELECT pg_create_physical_replication_slot('{name}')")
        with_room_for_one = stage.advance()
    finally:
        for name in names:
            source_server.psql("-c", f"SELECT pg_drop_replication_slot('{name}')")

    assert stage.runs.started == ["acme"]
    assert isinstance(with_room_for_one, Wait)
    assert with_room_for_one.seconds == pytest.approx(RECHECK.total_seconds(), abs=1)
    stage.advance()
    assert stage.runs.started == ["acme", "globex"]


@pytest.mark.parametrize(
    ("state", "started"),
    [("running", []), ("interrupted", ["acme"])],
    ids=["it runs", "it has ended"],
)
def test_the_stream_of_a_tenant_that_went_back_keeps_its_place_in_the_pool(
    stage: NightStage, monkeypatch: pytest.MonkeyPatch, state: str, started: list[str]
) -> None:
    monkeypatch.setattr("tenantferry.waves.reading.STREAM_SLOTS", 1)
    stage.plan()
    stage.register("hooli", [*WAY, Phase.LIVE, Phase.ROLLING_BACK, Phase.STREAMING])
    with stage.target.cursor() as cursor:
        cursor.execute(
            "INSERT INTO tenantferry.streams (tenant, position, confirmed, state)"
            " VALUES ('hooli', '0/1', '0/1', %s)",
            (state,),
        )

    stage.advance()

    assert stage.runs.started == started


def test_a_stream_of_a_tenant_in_flight_takes_one_place_in_the_pool(
    stage: NightStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tenantferry.waves.reading.STREAM_SLOTS", 2)
    stage.configure(most_in_flight=1)
    stage.plan()
    stage.advance()
    stage.register("acme", [Phase.PREPARED, Phase.BACKFILLING, Phase.STREAMING])
    with stage.target.cursor() as cursor:
        cursor.execute(
            "INSERT INTO tenantferry.streams (tenant, position, confirmed, state)"
            " VALUES ('acme', '0/1', '0/1', 'running')"
        )
    stage.configure(most_in_flight=3)

    stage.advance()

    assert stage.runs.started == ["acme", "globex"]
