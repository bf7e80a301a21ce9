from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest

from move_stage import Stage, rows
from tenantferry.connections import (
    open_admin_console,
    open_client_connection,
    open_connection,
)
from tenantferry.control.direction import Direction
from tenantferry.control.graces import lose_way_back, read_grace
from tenantferry.control.phases import IllegalPhaseError
from tenantferry.control.registry import SupersededError
from tenantferry.errors import PermanentError, TransientError
from tenantferry.local.postgres import PostgresServer
from tenantferry.moves.backfill import backfill
from tenantferry.moves.cutover import cutover
from tenantferry.moves.former import make_attempt
from tenantferry.moves.move import Move
from tenantferry.moves.prepare import prepare
from tenantferry.moves.probe import probe
from tenantferry.moves.rollback import rollback
from tenantferry.moves.rollback_readiness import speaks_english
from tenantferry.moves.validate import validate
from tenantferry.reverse import loop
from tenantferry.traffic.fence import lower_fence, plan_fence
from tenantferry.traffic.settlement import settle
from traffic_clients import Writers

# Runs a rollback that ends, or freezes, itself after one step.
SCRIPT = """
import os, pickle, sys
from tenantferry.moves.rollback import rollback
from tenantferry.traffic import guard
guard.DEADLINE_MARGIN_SECONDS = 2
move, fatal, number = pickle.load(sys.stdin.buffer)
rollback(move, on_step=lambda step: step == fatal and os.kill(os.getpid(), number))
"""
# Runs a rollback that hangs inside one of its calls, longer than it may, and then goes on.
HANGING_SCRIPT = """
import pickle, sys, time
from tenantferry.moves import rollback
from tenantferry.traffic import aliases, guard
guard.DEADLINE_MARGIN_SECONDS = 2
move, where, is_after = pickle.load(sys.stdin.buffer)
owner, name = {
    "raise_role_fence": (rollback, "raise_role_fence"),
    "close": (rollback, "close_position"),
    "flip": (aliases, "return_entry"),
}[where]
real = getattr(owner, name)
def hang(*arguments, **named):
    if is_after:
        found = real(*arguments, **named)
    time.sleep(8)
    return found if is_after else real(*arguments, **named)
setattr(owner, name, hang)
rollback.rollback(move)
"""
# Runs a rollback whose guard dies before it, as when their machine is lost.
LOST_SCRIPT = """
import os, pickle, signal, sys
from tenantferry.moves.rollback import rollback
move, fatal = pickle.load(sys.stdin.buffer)
def lose(step):
    if step == fatal:
        with open(f"/proc/self/task/{os.getpid()}/children") as children:
            for pid in children.read().split():
                os.kill(int(pid), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
rollback(move, on_step=lose)
"""
BEFORE = ["prepared", "begun", "paused", "fenced", "drained", "sequences", "files"]
AFTER = ["flipped", "lowered", "resumed"]


def run_script(script: str, *told: Any) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdin is not None
    process.stdin.write(pickle.dumps(told))
    process.stdin.close()
    return process


def with_tenant(move: Move, **changes: Any) -> Move:
    return replace(move, tenant=move.tenant.model_copy(update=changes))


def written(stage: Stage, side: str) -> list[int]:
    session = stage.source if side == "source" else stage.target
    return [row for (row,) in rows(session, "SELECT id FROM public.written ORDER BY id")]


def aliases(stage: Stage) -> str:
    return stage.pooler.aliases_file.read_text("utf-8")


def slots(stage: Stage) -> list[tuple[Any, ...]]:
    return rows(
        stage.source,
        "SELECT slot_name FROM pg_replication_slots WHERE database = current_database()",
    )


def who(stage: Stage) -> str:
    """Tell as whom the application works, so on which side."""
    [(role,)] = stage.ask("SELECT current_user::text")
    return str(role)


def may_log_in(stage: Stage) -> bool:
    [(can,)] = rows(
        stage.target, "SELECT rolcanlogin FROM pg_roles WHERE rolname = %s", stage.move.tenant.role
    )
    return bool(can)


def open_attempts(stage: Stage) -> int:
    [(count,)] = rows(
        stage.target,
        "SELECT count(*) FROM tenantferry.write_pauses"
        " WHERE undone_at IS NULL AND resumed_at IS NULL",
    )
    return int(count)


def wait_until_settled(stage: Stage) -> None:
    deadline = time.monotonic() + 30
    while open_attempts(stage):
        assert time.monotonic() < deadline


def assert_still_live(stage: Stage) -> None:
    """Nothing of an attempt is left, and the way back is as open as it was."""
    wait_until_settled(stage)
    assert stage.phase() == "live"
    assert may_log_in(stage)
    assert who(stage) == "tenant_acme"
    assert plan_fence(stage.source).is_raised
    assert slots(stage) == []
    assert "pg_stat" not in aliases(stage)


def assert_back(stage: Stage, acl: list[str]) -> None:
    assert stage.phase() == "streaming"
    assert who(stage) == "app_owner"
    assert not may_log_in(stage)
    assert stage.acl() == acl
    assert slots(stage) == [("tenantferry_acme",)]
    assert read_grace(stage.target, "acme") is None
    assert open_attempts(stage) == 0


@pytest.fixture
def before(stage: Stage) -> tuple[list[str], str]:
    """What the source's privileges and the alias file were before the cutover."""
    return stage.acl(), aliases(stage)


_HAS_REPORTED = (
    "SELECT reported_at IS NOT NULL FROM tenantferry.streams WHERE direction = 'reverse'"
)


@pytest.fixture
def live(stage: Stage, before: object, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    """A live tenant whose reverse stream runs, and publishes no new table by itself."""
    monkeypatch.setattr(loop, "PUBLISH_SECONDS", 3600.0)
    cutover(stage.move)
    with stage.reversing():
        # What it publishes when it starts comes before its first report.
        deadline = time.monotonic() + 30
        while rows(stage.target, _HAS_REPORTED) != [(True,)]:
            assert time.monotonic() < deadline
        yield stage


def test_rollback_under_load_loses_no_write_and_fails_none(
    live: Stage, before: tuple[list[str], str]
) -> None:
    with Writers([live.client] * 4) as writers:
        writers.wait_for(100)
        summary = rollback(live.move)
        writers.wait_for(100)

    assert writers.errors == []
    assert written(live, "source") == sorted(writers.acknowledged)
    assert len(written(live, "target")) <= len(writers.acknowledged) - 100
    assert summary.write_pause_ms < 500, summary.steps
    assert list(summary.steps) == [
        "paused", "fenced", "drained", "sequences", "flipped", "resumed",
    ]  # fmt: skip
    assert_back(live, before[0])
    assert aliases(live) == before[1]
    assert rollback(live.move) == summary
    assert probe(live.move).database == live.move.source.database


def test_nobody_gets_into_the_target_as_the_tenant_any_more(live: Stage) -> None:
    password = aliases(live).rpartition("password=")[2].split()[0]
    direct = replace(live.move.target, user="tenant_acme", password=password)
    open_client_connection(direct, purpose="stale pooler").close()

    rollback(live.move)

    with pytest.raises(PermanentError) as refused:
        open_client_connection(direct, purpose="stale pooler")
    assert "not permitted to log in" in refused.value.detail
    assert password not in aliases(live)


def test_no_reverse_slot_is_left_when_the_last_tenant_went_back(live: Stage) -> None:
    rollback(live.move)

    assert rows(live.target, "SELECT slot_name FROM pg_replication_slots") == []
    assert rows(live.target, "SELECT pubname FROM pg_publication") == []


def test_sequences_go_on_where_the_target_has_left_them(live: Stage) -> None:
    handed_out = [
        number
        for _ in range(3)
        for (number,) in live.ask("INSERT INTO counted (note) VALUES ('target') RETURNING id")
    ]
    live.ask("SELECT nextval('counted_id_seq')")  # nobody's key

    summary = rollback(live.move)

    assert handed_out == [10, 11, 12]
    assert summary.sequences == {"counted_id_seq": 14}
    assert live.ask("INSERT INTO counted (note) VALUES ('source') RETURNING id") == [(14,)]


def test_rollback_keeps_what_was_changed_and_deleted_since(live: Stage) -> None:
    live.ask("UPDATE counted SET note = 'new' WHERE id = 3 RETURNING id")
    live.ask("DELETE FROM counted WHERE id = 4 RETURNING id")

    rollback(live.move)

    assert live.ask("SELECT id, note FROM counted WHERE id < 6 ORDER BY id") == [
        (1, "old"), (2, "old"), (3, "new"), (5, "old"),
    ]  # fmt: skip


def test_changes_made_to_the_alias_since_the_cutover_are_kept(
    live: Stage, before: tuple[list[str], str]
) -> None:
    text = aliases(live).replace("\nacme = ", "\nglobex = host=elsewhere\nacme = pool_size=7 ")
    live.pooler.aliases_file.write_text(text, "utf-8")
    with closing(open_admin_console(live.pooler.admin, purpose="test")) as console:
        rows(console, "RELOAD")

    rollback(live.move)

    [line] = [line for line in aliases(live).splitlines() if line.startswith("acme = ")]
    [former] = [line for line in before[1].splitlines() if line.startswith("acme = ")]
    assert sorted(line.split()) == sorted([*former.split(), "pool_size=7"])
    assert "\nglobex = host=elsewhere\n" in aliases(live)
    assert "tenantferry" not in aliases(live)


def test_rollback_of_a_tenant_that_is_not_live_is_refused(stage: Stage) -> None:
    with pytest.raises(IllegalPhaseError, match='cannot be rolled back in phase "validated"'):
        rollback(stage.move)


def test_rollback_without_a_way_back_is_refused(live: Stage) -> None:
    grace = read_grace(live.target, "acme")
    assert grace is not None
    lose_way_back(live.target, grace.id, reason="The test says so.")

    with pytest.raises(PermanentError, match="has lost its way back") as caught:
        rollback(live.move)

    assert "The test says so." in caught.value.detail
    assert_still_live(live)


def test_rollback_pauses_nobody_when_the_reverse_stream_is_down(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    cutover(stage.move)
    move = with_tenant(stage.move, max_write_pause_seconds=1, lag_threshold_seconds=1)

    with pytest.raises(TransientError, match="reverse stream of tenant"):
        rollback(move)

    assert_still_live(stage)
    attempts = "SELECT count(*) FROM tenantferry.write_pauses WHERE direction = 'reverse'"
    assert rows(stage.target, attempts) == [(0,)]


def test_rollback_pauses_nobody_when_the_source_is_down(
    live: Stage, source_server: PostgresServer
) -> None:
    gone = replace(live.move, source=replace(live.move.source, port=1))

    with Writers([live.client]) as writers:
        writers.wait_for(10)
        with pytest.raises(TransientError, match="could not connect"):
            rollback(gone)
        writers.wait_for(10)

    assert writers.errors == []
    assert_still_live(live)


def test_rollback_refuses_a_source_that_is_not_fenced_any_more(
    live: Stage, source_server: PostgresServer
) -> None:
    database = live.move.source.database
    source_server.psql("-c", f"GRANT CONNECT ON DATABASE {database} TO app_owner")
    owner = replace(live.move.source, user="app_owner", password="owner")
    with closing(open_connection(owner, purpose="stray")) as stray, stray:
        rows(stray, "INSERT INTO public.written VALUES (-1)")

    with pytest.raises(PermanentError, match="is not fenced any more"):
        rollback(live.move)

    assert who(live) == "tenant_acme"


def test_rollback_pauses_nobody_when_the_source_does_not_know_the_login_any_more(
    live: Stage, source_server: PostgresServer
) -> None:
    source_server.psql("-c", "ALTER ROLE app_owner PASSWORD 'changed'")
    try:
        with pytest.raises(PermanentError, match="cannot take the application") as caught:
            rollback(live.move)
    finally:
        source_server.psql("-c", "ALTER ROLE app_owner PASSWORD 'owner'")

    assert "password authentication failed" in caught.value.detail
    assert "tenantferry_acme" not in aliases(live)
    assert_still_live(live)


@pytest.mark.parametrize("is_english", [False, True], ids=["german", "english"])
def test_rollback_does_not_depend_on_the_language_of_the_source(
    live: Stage, monkeypatch: pytest.MonkeyPatch, *, is_english: bool
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise TransientError("could not connect", detail="FATAL: keine Berechtigung für Datenbank")

    readiness = "tenantferry.moves.rollback_readiness"
    monkeypatch.setattr(f"{readiness}.open_client_connection", refuse)
    monkeypatch.setattr(f"{readiness}.speaks_english", lambda _: is_english)

    if is_english:
        with pytest.raises(TransientError, match="cannot take the application"):
            rollback(live.move)
        assert_still_live(live)
    else:
        rollback(live.move)
        assert who(live) == "app_owner"


def test_speaks_english_knows_the_language_of_the_servers_of_the_tests(stage: Stage) -> None:
    assert speaks_english(stage.source)


def test_rollback_refuses_an_alias_file_that_forgot_where_the_alias_pointed(live: Stage) -> None:
    text = "\n".join(line for line in aliases(live).splitlines() if "; before" not in line)
    live.pooler.aliases_file.write_text(f"{text}\n", "utf-8")

    with pytest.raises(PermanentError, match="does not tell where alias"):
        rollback(live.move)

    assert_still_live(live)


def test_rollback_changes_nothing_when_pgbouncer_is_down(live: Stage) -> None:
    live.pooler.stop()

    with pytest.raises(TransientError, match='"one" could not be reached'):
        rollback(live.move)

    live.pooler.start()
    assert_still_live(live)


def test_rollback_refuses_a_schema_that_changed_since(live: Stage) -> None:
    rows(live.source, "ALTER TABLE public.counted ADD COLUMN more text")

    with pytest.raises(PermanentError, match="changed since it was prepared"):
        rollback(live.move)

    assert_still_live(live)


def create_table(stage: Stage) -> None:
    """Create a table on both sides, as a migration of the application does for all tenants."""
    rows(stage.source, "CREATE TABLE public.added (id integer PRIMARY KEY, note text)")
    rows(stage.source, "ALTER TABLE public.added OWNER TO app_owner")
    rows(
        stage.target,
        "CREATE TABLE public.added (tenant_id uuid NOT NULL DEFAULT app.current_tenant(),"
        " id integer, note text, PRIMARY KEY (tenant_id, id));"
        "ALTER TABLE public.added ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;"
        "CREATE POLICY tenant_isolation ON public.added"
        " USING (tenant_id = (SELECT app.current_tenant()))"
        " WITH CHECK (tenant_id = (SELECT app.current_tenant()));"
        "GRANT SELECT, INSERT, UPDATE, DELETE ON public.added TO tenantferry_app",
    )


def test_rollback_is_refused_where_the_tenant_wrote_to_a_table_that_was_not_followed(
    live: Stage,
) -> None:
    create_table(live)
    live.ask("INSERT INTO added VALUES (DEFAULT, 1, 'x') RETURNING id")

    with pytest.raises(PermanentError, match="has lost its way back") as caught:
        rollback(live.move)

    assert 'wrote to table "public.added" before' in caught.value.detail
    assert live.ask("SELECT id FROM added") == [(1,)]
    assert_still_live(live)


def test_rollback_carries_what_is_written_to_a_table_that_was_just_created(live: Stage) -> None:
    create_table(live)

    def write(step: str) -> None:
        if step == "prepared":
            live.ask("INSERT INTO added VALUES (DEFAULT, 1, 'x') RETURNING id")

    rollback(live.move, on_step=write)

    assert live.ask("SELECT id FROM added") == [(1,)]


def test_rollback_undoes_itself_where_a_table_is_created_after_it_was_prepared(
    live: Stage,
) -> None:
    def create(step: str) -> None:
        if step == "prepared":
            create_table(live)
            live.ask("INSERT INTO added VALUES (DEFAULT, 1, 'x') RETURNING id")

    with pytest.raises(TransientError, match="is not followed"):
        rollback(live.move, on_step=create)

    assert_still_live(live)
    with pytest.raises(PermanentError, match="has lost its way back"):
        rollback(live.move)


def test_rollback_pauses_nobody_when_the_target_has_no_replication_origin_left(
    live: Stage, target_server: PostgresServer
) -> None:
    used: list[str] = []
    [(most,)] = rows(
        live.target,
        "SELECT coalesce(current_setting('max_active_replication_origins', true),"
        " current_setting('max_replication_slots'))::integer"
        " - (SELECT count(*) FROM pg_replication_origin)::integer",
    )
    try:
        for number in range(most):
            used.append(f"other_{number}")
            rows(live.target, "SELECT pg_replication_origin_create(%s)", used[-1])
            rows(live.target, "SELECT pg_replication_origin_advance(%s, '0/1')", used[-1])

        with pytest.raises(TransientError, match="no replication origin of the target is left"):
            rollback(live.move)
    finally:
        for name in used:
            rows(live.target, "SELECT pg_replication_origin_drop(%s)", name)

    attempts = "SELECT count(*) FROM tenantferry.write_pauses WHERE direction = 'reverse'"
    assert rows(live.target, attempts) == [(0,)]
    assert_still_live(live)


def test_rollback_undoes_itself_and_names_who_is_idle_in_a_transaction(live: Stage) -> None:
    text = aliases(live)
    move = with_tenant(live.move, max_write_pause_seconds=0.5)
    with closing(open_client_connection(live.client, purpose="forgotten")) as client:
        rows(client, "INSERT INTO written VALUES (1)")

        with pytest.raises(TransientError, match="did not finish within") as caught:
            rollback(move)
        client.commit()

    assert 'user "tenant_acme"' in caught.value.detail
    assert "idle in transaction for" in caught.value.detail
    assert aliases(live) == text
    assert_still_live(live)
    rollback(live.move)
    assert written(live, "source") == [1]


def test_a_session_that_sleeps_in_the_target_past_the_pooler_is_ended_and_writes_nothing(
    live: Stage,
) -> None:
    password = aliases(live).rpartition("password=")[2].split()[0]
    direct = replace(live.move.target, user="tenant_acme", password=password)
    with closing(open_client_connection(direct, purpose="cron")) as cron:
        rows(cron, "INSERT INTO written VALUES (1)")

        rollback(live.move)

        with pytest.raises(Exception, match="terminat"):
            cron.commit()
    assert written(live, "source") == written(live, "target") == []


def test_rollback_undoes_itself_when_the_role_gets_in_between_fence_and_decision(
    live: Stage, target_server: PostgresServer
) -> None:
    password = aliases(live).rpartition("password=")[2].split()[0]
    direct = replace(live.move.target, user="tenant_acme", password=password)
    stray = []

    def let_in(step: str) -> None:
        if step == "sequences":
            target_server.psql("-c", "ALTER ROLE tenant_acme LOGIN")
            stray.append(open_client_connection(direct, purpose="stray"))
            rows(stray[0], "INSERT INTO written VALUES (5)")
            stray[0].commit()

    with pytest.raises(TransientError, match="came through its fence") as caught:
        rollback(live.move, on_step=let_in)

    stray[0].close()
    assert 'application "tenantferry stray"' in caught.value.detail
    assert_still_live(live)
    rollback(live.move)
    assert written(live, "source") == [5]


def test_rollback_undoes_itself_when_a_superuser_comes_into_the_source(
    live: Stage, source_server: PostgresServer
) -> None:
    params = source_server.superuser.with_database(live.move.source.database)
    sessions = []

    def come_in(step: str) -> None:
        if step == "fenced":
            sessions.append(open_connection(params, purpose="dba"))

    with pytest.raises(TransientError, match="cannot be ended by us"):
        rollback(live.move, on_step=come_in)

    for session in sessions:
        session.close()
    assert_still_live(live)


def test_rollback_whose_time_is_over_undoes_itself(live: Stage) -> None:
    move = with_tenant(live.move, max_write_pause_seconds=1)

    def dawdle(step: str) -> None:
        if step == "drained":
            time.sleep(1.1)

    with Writers([live.client] * 2) as writers:
        writers.wait_for(20)
        with pytest.raises(TransientError, match="took too long"):
            rollback(move, on_step=dawdle)
        writers.wait_for(20)

    assert writers.errors == []
    assert written(live, "target") == sorted(writers.acknowledged)
    assert_still_live(live)


def fail_at(step: str) -> Callable[[str], None]:
    def fail(reached: str) -> None:
        if reached == step:
            raise TransientError(f"failed at {step}")

    return fail


def test_rollback_that_fails_before_the_decision_leaves_the_tenant_live(
    live: Stage, before: tuple[list[str], str]
) -> None:
    text = aliases(live)
    with Writers([live.client] * 2) as writers:
        for step in BEFORE:
            writers.wait_for(20)
            with pytest.raises(TransientError, match=f"failed at {step}"):
                rollback(live.move, on_step=fail_at(step))
            writers.wait_for(20)
            assert writers.errors == [], step
            assert aliases(live) == text, step
            assert_still_live(live)
        rollback(live.move)
        writers.wait_for(20)

    assert writers.errors == []
    assert written(live, "source") == sorted(writers.acknowledged)
    assert_back(live, before[0])
    assert aliases(live) == before[1]


@pytest.mark.parametrize("step", AFTER)
def test_rollback_that_fails_after_the_decision_goes_on(
    live: Stage, before: tuple[list[str], str], step: str
) -> None:
    # Gotcha 6: committed, but nobody heard.
    with Writers([live.client] * 2) as writers:
        writers.wait_for(20)
        summary = rollback(live.move, on_step=fail_at(step))
        writers.wait_for(20)

    assert writers.errors == []
    assert written(live, "source") == sorted(writers.acknowledged)
    assert summary.write_pause_ms > 0
    assert_back(live, before[0])
    assert aliases(live) == before[1]


def test_rollback_killed_before_the_decision_lets_clients_go_on_in_seconds(
    live: Stage, before: tuple[list[str], str]
) -> None:
    text = aliases(live)
    with Writers([live.client] * 2) as writers:
        writers.wait_for(20)
        # A kill before that leaves the slot to the next call.
        for step in BEFORE[1:]:
            process = run_script(SCRIPT, live.move, step, signal.SIGKILL)
            assert process.wait(30) == -signal.SIGKILL, step
            writers.wait_for(20, timeout_seconds=5)
            assert writers.errors == [], step
            assert_still_live(live)
            assert aliases(live) == text, step
        rollback(live.move)
        writers.wait_for(20)

    assert writers.errors == []
    assert written(live, "source") == sorted(writers.acknowledged)
    assert_back(live, before[0])


@pytest.mark.parametrize("step", AFTER)
def test_rollback_killed_after_the_decision_goes_forward(
    live: Stage, before: tuple[list[str], str], step: str
) -> None:
    with Writers([live.client] * 2) as writers:
        writers.wait_for(20)
        process = run_script(SCRIPT, live.move, step, signal.SIGKILL)
        assert process.wait(30) == -signal.SIGKILL
        writers.wait_for(20, timeout_seconds=5)
        assert who(live) == "app_owner"
        summary = rollback(live.move)

    assert writers.errors == []
    assert written(live, "source") == sorted(writers.acknowledged)
    assert summary.write_pause_ms > 0
    assert_back(live, before[0])


def test_rollback_that_freezes_is_ended_and_undone(live: Stage) -> None:
    move = with_tenant(live.move, max_write_pause_seconds=1)
    with Writers([live.client] * 2) as writers:
        writers.wait_for(20)
        process = run_script(SCRIPT, move, "fenced", signal.SIGSTOP)
        assert process.wait(30) == -signal.SIGKILL
        wait_until_settled(live)
        writers.wait_for(20, timeout_seconds=5)

    assert writers.errors == []
    assert_still_live(live)


@pytest.mark.parametrize(
    ("where", "is_after"),
    [
        ("raise_role_fence", False), ("close", False), ("flip", False), ("flip", True),
    ],
    ids=["before fence", "before close", "before files", "after files"],
)  # fmt: skip
def test_rollback_that_hangs_in_a_call_never_goes_on_after_it_was_undone(
    live: Stage, where: str, is_after: bool
) -> None:
    text = aliases(live)
    move = with_tenant(live.move, max_write_pause_seconds=1)
    with Writers([live.client] * 2) as writers:
        writers.wait_for(20)
        process = run_script(HANGING_SCRIPT, move, where, is_after)
        assert process.wait(30) == -signal.SIGKILL
        wait_until_settled(live)
        writers.wait_for(20, timeout_seconds=5)

    assert writers.errors == []
    assert aliases(live) == text
    assert written(live, "target") == sorted(writers.acknowledged)
    assert_still_live(live)


def test_next_step_settles_a_rollback_that_died_with_its_guard(live: Stage) -> None:
    process = run_script(LOST_SCRIPT, live.move, "files")
    assert process.wait(30) == -signal.SIGKILL
    assert not may_log_in(live)

    validate(live.move)

    assert_still_live(live)
    rollback(live.move)


def test_next_step_finishes_a_rollback_that_died_with_its_guard_after_the_decision(
    live: Stage, before: tuple[list[str], str]
) -> None:
    process = run_script(LOST_SCRIPT, live.move, "flipped")
    assert process.wait(30) == -signal.SIGKILL
    assert plan_fence(live.source).is_raised

    prepare(live.move)

    assert_back(live, before[0])


def test_nobody_gets_into_the_source_between_the_files_and_the_decision(live: Stage) -> None:
    # PAUSE does not outlive PgBouncer, and the file it starts with points at the source already.
    live.pooler.settings["server_login_retry"] = "1"
    refused: list[str] = []

    def restart(step: str) -> None:
        if step == "files":
            live.pooler.kill()
            live.pooler.start()
            with pytest.raises((PermanentError, TransientError)) as caught:
                live.ask("INSERT INTO written VALUES (777) RETURNING id")
            refused.append(caught.value.detail)
            assert written(live, "source") == []

    rollback(live.move, on_step=restart)

    assert len(refused) == 1
    assert "permission denied for database" in refused[0]
    assert live.ask("INSERT INTO written VALUES (778) RETURNING id") == [(778,)]


def test_rollback_undoes_again_what_it_did_after_another_had_undone_it(live: Stage) -> None:
    def undo_and_go_on(step: str) -> None:
        if step != "sequences":
            return
        [(number,)] = rows(live.target, "SELECT max(id) FROM tenantferry.write_pauses")
        attempt = make_attempt(live.move, number, direction=Direction.REVERSE)
        with closing(open_connection(live.move.target, purpose="other")) as other:
            assert not settle(attempt, other, reason="test")
        rows(live.target, "ALTER ROLE tenant_acme NOLOGIN")

    with pytest.raises(TransientError):
        rollback(live.move, on_step=undo_and_go_on)

    assert_still_live(live)
    rollback(live.move)


def test_rollback_undoes_itself_when_the_target_is_lost_before_the_decision(
    live: Stage, target_server: PostgresServer
) -> None:
    def lose(step: str) -> None:
        if step == "fenced":
            target_server.psql(
                "-c",
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'tenantferry rollback acme'",
            )

    with pytest.raises(TransientError, match="failed and was undone"):
        rollback(live.move, on_step=lose)

    assert_still_live(live)


def test_rollback_succeeds_whatever_the_application_sees_so_that_the_stream_begins(
    live: Stage, before: tuple[list[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Move) -> None:
        raise PermanentError("the application cannot read")

    monkeypatch.setattr("tenantferry.moves.rollback.probe", fail)

    rollback(live.move)

    assert_back(live, before[0])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_clients_wait_for_a_target_that_is_restarted_in_the_middle_of_a_rollback(
    live: Stage, target_server: PostgresServer
) -> None:
    def stop(step: str) -> None:
        if step == "fenced":
            target_server.stop("immediate")

    with Writers([live.client] * 2) as writers:
        writers.wait_for(20)
        try:
            with pytest.raises(TransientError):
                rollback(live.move, on_step=stop)
        finally:
            target_server.start()
        # Nobody but its guard settles it.
        with closing(open_connection(live.move.target, purpose="test", autocommit=True)) as target:
            live.target = target
            wait_until_settled(live)
            writers.wait_for(20)
            assert_still_live(live)

    assert writers.errors == []
    with closing(open_connection(live.move.target, purpose="test", autocommit=True)) as target:
        live.target = target
        assert written(live, "target") == sorted(writers.acknowledged)


def test_a_role_that_was_locked_out_by_hand_goes_back_locked_out(live: Stage) -> None:
    rows(live.target, "ALTER ROLE tenant_acme NOLOGIN")

    with pytest.raises(TransientError, match="failed at fenced"):
        rollback(live.move, on_step=fail_at("fenced"))
    assert not may_log_in(live)

    rollback(live.move)
    assert who(live) == "app_owner"


def test_steps_of_the_run_that_was_rolled_back_are_refused_and_say_who_has_the_tenant(
    live: Stage,
) -> None:
    rollback(replace(live.move, run_id="rollback run"))

    for step in (backfill, validate, cutover, probe):
        with pytest.raises(SupersededError, match='run "rollback run" has tenant "acme"'):
            step(live.move)

    assert backfill(replace(live.move, run_id=None)).rows == 9
    assert who(live) == "app_owner"


def test_the_slot_that_the_cutover_could_not_drop_serves_the_next_stream(live: Stage) -> None:
    rows(
        live.source,
        "SELECT pg_create_logical_replication_slot('tenantferry_acme', 'pgoutput')",
    )
    [(restart,)] = rows(live.source, "SELECT restart_lsn FROM pg_replication_slots"
                        " WHERE slot_name = 'tenantferry_acme'")  # fmt: skip

    rollback(live.move)

    assert rows(live.source, "SELECT restart_lsn FROM pg_replication_slots"
                " WHERE slot_name = 'tenantferry_acme'") == [(restart,)]  # fmt: skip


def test_slot_creation_that_has_to_wait_holds_up_nobody(
    live: Stage, source_server: PostgresServer
) -> None:
    # Gotcha 11.
    move = with_tenant(live.move, slot_timeout_seconds=0.5)
    with closing(open_connection(source_server.superuser, purpose="long")) as long:
        rows(long, "CREATE TABLE public.rolled_back_later ()")
        with Writers([live.client]) as writers:
            writers.wait_for(10)
            with pytest.raises(TransientError, match="could not create replication slot"):
                rollback(move)
            writers.wait_for(10)
        long.rollback()

    assert writers.errors == []
    assert_still_live(live)


def test_lowering_the_fence_of_a_source_by_hand_meanwhile_undoes_the_rollback(
    live: Stage,
) -> None:
    grace = read_grace(live.target, "acme")
    assert grace is not None

    def lower(step: str) -> None:
        if step == "sequences":
            [(fence,)] = rows(live.target, "SELECT fence FROM tenantferry.write_pauses"
                              " WHERE id = %s", grace.attempt)  # fmt: skip
            lower_fence(live.source, type(plan_fence(live.source)).from_json(fence))

    with pytest.raises(PermanentError, match="is not fenced any more"):
        rollback(live.move, on_step=lower)

    assert who(live) == "tenant_acme"


def test_connection_params_of_the_application_reach_neither_side_while_it_is_decided(
    live: Stage,
) -> None:
    password = aliases(live).rpartition("password=")[2].split()[0]
    here = replace(live.move.source, user="app_owner", password="owner")
    there = replace(live.move.target, user="tenant_acme", password=password)
    refused: set[tuple[str, str]] = set()

    def knock(step: str) -> None:
        for params in (here, there):
            try:
                open_client_connection(params, purpose="stranger").close()
            except PermanentError:
                refused.add((step, params.user))

    rollback(live.move, on_step=knock)

    for step in ("fenced", "drained", "sequences", "files", "flipped"):
        assert {(step, "app_owner"), (step, "tenant_acme")} <= refused
    assert ("resumed", "tenant_acme") in refused
    assert ("resumed", "app_owner") not in refused
