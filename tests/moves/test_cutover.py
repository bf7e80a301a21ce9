from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from move_stage import Stage, rows
from tenantferry.connections import open_client_connection, open_connection
from tenantferry.control.pauses import begin_pause
from tenantferry.control.phases import IllegalPhaseError
from tenantferry.errors import PermanentError, TransientError
from tenantferry.local.postgres import PostgresServer
from tenantferry.moves import completion
from tenantferry.moves.backfill import backfill
from tenantferry.moves.cutover import cutover
from tenantferry.moves.former import make_attempt
from tenantferry.moves.move import Move
from tenantferry.moves.prepare import prepare
from tenantferry.moves.probe import probe
from tenantferry.moves.validate import validate
from tenantferry.traffic.fence import Fence, plan_fence, raise_fence
from tenantferry.traffic.pgbouncer import open_console
from tenantferry.traffic.settlement import settle
from traffic_clients import Writers

# Runs a cutover that ends, or freezes, itself after one step.
SCRIPT = """
import os, pickle, signal, sys
from tenantferry.moves.cutover import cutover
from tenantferry.traffic import guard
guard.DEADLINE_MARGIN_SECONDS = 2
move, fatal, number = pickle.load(sys.stdin.buffer)
cutover(move, on_step=lambda step: step == fatal and os.kill(os.getpid(), number))
"""
# Runs a cutover that hangs inside one of its calls, longer than it may, and then goes on.
HANGING_SCRIPT = """
import pickle, sys, time
from tenantferry.moves import cutover
from tenantferry.traffic import aliases, guard, router
guard.DEADLINE_MARGIN_SECONDS = 2
move, where, is_after = pickle.load(sys.stdin.buffer)
owner, name = {
    "pause": (router.OpenRouter, "pause"),
    "raise_fence": (cutover, "raise_fence"),
    "flip": (aliases, "replace_entry"),
}[where]
real = getattr(owner, name)
def hang(*arguments, **named):
    if is_after:
        real(*arguments, **named)
    time.sleep(8)
    if not is_after:
        real(*arguments, **named)
setattr(owner, name, hang)
cutover.cutover(move)
"""
# Runs a cutover whose guard dies before it, as when their machine is lost.
LOST_SCRIPT = """
import os, pickle, signal, sys
from tenantferry.moves.cutover import cutover
move, fatal = pickle.load(sys.stdin.buffer)
def lose(step):
    if step == fatal:
        with open(f"/proc/self/task/{os.getpid()}/children") as children:
            for pid in children.read().split():
                os.kill(int(pid), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
cutover(move, on_step=lose)
"""


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


def run_cutover(move: Move, fatal: str, number: signal.Signals) -> subprocess.Popen[bytes]:
    return run_script(SCRIPT, move, fatal, number)


def with_tenant(move: Move, **changes: Any) -> Move:
    return replace(move, tenant=move.tenant.model_copy(update=changes))


def written(stage: Stage, side: str) -> list[int]:
    session = stage.source if side == "source" else stage.target
    return [row for (row,) in rows(session, "SELECT id FROM public.written ORDER BY id")]


def wait_until_undone(stage: Stage) -> None:
    deadline = time.monotonic() + 30
    while rows(stage.target, "SELECT count(*) FILTER (WHERE undone_at IS NULL), count(*) > 0"
               " FROM tenantferry.write_pauses") != [(0, True)]:  # fmt: skip
        assert time.monotonic() < deadline


def may_log_in(stage: Stage) -> bool:
    [(can,)] = rows(
        stage.target, "SELECT rolcanlogin FROM pg_roles WHERE rolname = %s", stage.move.tenant.role
    )
    return bool(can)


def assert_untouched(stage: Stage, acl: list[str]) -> None:
    assert stage.phase() == "validated"
    assert stage.acl() == acl
    assert stage.ask("SELECT current_user::text") == [("app_owner",)]
    attempts = rows(
        stage.target,
        "SELECT count(*) FROM tenantferry.write_pauses WHERE undone_at IS NULL",
    )
    assert attempts == [(0,)]


def test_cutover_under_load_loses_no_write_and_fails_none(stage: Stage) -> None:
    with Writers([stage.client] * 4) as writers:
        writers.wait_for(100)
        summary = cutover(stage.move)
        writers.wait_for(100)

    assert writers.errors == []
    assert written(stage, "target") == sorted(writers.acknowledged)
    assert len(written(stage, "source")) <= len(writers.acknowledged) - 100
    assert summary.write_pause_ms < 500, summary.steps
    assert list(summary.steps) == [
        "paused", "fenced", "drained", "compared", "sequences", "flipped", "resumed",
    ]  # fmt: skip
    assert stage.phase() == "live"
    assert stage.ask("INSERT INTO counted (note) VALUES ('new') RETURNING id") == [(10,)]
    assert cutover(stage.move) == summary


def test_live_tenant_leaves_nothing_behind_but_the_fence(stage: Stage) -> None:
    cutover(stage.move)

    with pytest.raises(PermanentError, match="could not connect"):
        open_connection(
            replace(stage.move.source, user="app_owner", password="owner"), purpose="stale pooler"
        )
    assert rows(stage.source, "SELECT slot_name FROM pg_replication_slots"
                " WHERE database = current_database()") == []  # fmt: skip
    assert rows(stage.source, "SELECT pubname FROM pg_publication") == []
    assert "tenantferry_acme" not in stage.pooler.aliases_file.read_text("utf-8")
    assert probe(stage.move).role == "tenant_acme"
    [(probed,)] = rows(stage.target, "SELECT probed_at IS NOT NULL FROM tenantferry.write_pauses")
    assert probed


def test_cutover_undoes_itself_and_names_who_is_idle_in_a_transaction(stage: Stage) -> None:
    acl, text = stage.acl(), stage.pooler.aliases_file.read_text("utf-8")
    move = with_tenant(stage.move, max_write_pause_seconds=0.5)
    with closing(open_client_connection(stage.client, purpose="forgotten")) as client:
        rows(client, "INSERT INTO written VALUES (1)")

        with pytest.raises(TransientError, match="did not finish within") as caught:
            cutover(move)
        client.commit()

    assert 'user "app_owner", application "tenantferry forgotten"' in caught.value.detail
    assert "idle in transaction for" in caught.value.detail
    assert stage.pooler.aliases_file.read_text("utf-8") == text
    assert_untouched(stage, acl)
    cutover(stage.move)
    assert written(stage, "target") == [1]


def test_cutover_changes_nothing_when_pgbouncer_is_down(stage: Stage) -> None:
    acl = stage.acl()
    stage.pooler.stop()

    with pytest.raises(TransientError, match='"one" could not be reached'):
        cutover(stage.move)

    stage.pooler.start()
    assert_untouched(stage, acl)


def test_cutover_pauses_nobody_when_the_pooler_cannot_reach_the_target(stage: Stage) -> None:
    acl = stage.acl()
    host, port, _ = stage.move.target_address
    nowhere = replace(stage.move, target_address=(host, port, "nowhere"))

    with pytest.raises((PermanentError, TransientError)):
        cutover(nowhere)

    assert rows(stage.target, "SELECT count(*) FROM tenantferry.write_pauses") == [(0,)]
    assert "tenantferry_acme" not in stage.pooler.aliases_file.read_text("utf-8")
    assert_untouched(stage, acl)


def test_cutover_pauses_nobody_when_the_pooler_mixes_up_passwords(
    stage: Stage, source_server: PostgresServer
) -> None:
    # With a SCRAM secret in its user file, PgBouncer (its issue 1461) logs in at the target with
    # what it learnt from the client: no client that connects after the flip would get in.
    secret = source_server.psql(
        "-c", "SELECT rolpassword FROM pg_authid WHERE rolname = 'app_owner'"
    )
    stage.pooler.set_user("app_owner", secret)
    acl = stage.acl()

    with pytest.raises(PermanentError, match="cannot take the application") as caught:
        cutover(stage.move)

    assert "password authentication failed" in caught.value.detail
    assert rows(stage.target, "SELECT count(*) FROM tenantferry.write_pauses") == [(0,)]
    assert_untouched(stage, acl)


def test_guard_shows_no_credentials(stage: Stage) -> None:
    shown: list[bytes] = []

    def look(step: str) -> None:
        if step == "prepared":
            children = Path(f"/proc/self/task/{os.getpid()}/children").read_text("utf-8")
            for pid in children.split():
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
                if b"tenantferry.traffic.guard" in command:
                    shown.extend((command, Path(f"/proc/{pid}/environ").read_bytes()))

    cutover(stage.move, on_step=look)

    assert len(shown) == 2
    for secret in (stage.move.source.password, stage.pooler.admin.password):
        assert not any(secret.encode() in text for text in shown)


def test_cutover_refuses_a_schema_that_changed_since(stage: Stage) -> None:
    # Gotcha 27.
    acl = stage.acl()
    stage.ask("ALTER TABLE counted ADD COLUMN more text")

    with pytest.raises(PermanentError, match="changed since it was prepared"):
        cutover(stage.move)

    assert_untouched(stage, acl)


def test_cutover_refuses_a_tenant_that_is_not_validated(stage: Stage) -> None:
    rows(stage.target, "UPDATE tenantferry.tenants SET phase = 'streaming'")

    with pytest.raises(IllegalPhaseError, match='cannot be cut over in phase "streaming"'):
        cutover(stage.move)


def test_cutover_undoes_itself_when_a_superuser_comes_in(
    stage: Stage, source_server: PostgresServer
) -> None:
    acl = stage.acl()
    params = source_server.superuser.with_database(stage.move.source.database)
    sessions = []

    def come_in(step: str) -> None:
        if step == "fenced":
            sessions.append(open_connection(params, purpose="dba"))

    with pytest.raises(TransientError, match="cannot be ended by us"):
        cutover(stage.move, on_step=come_in)

    for session in sessions:
        session.close()
    assert_untouched(stage, acl)


def test_cutover_killed_before_the_flip_lets_clients_go_on_in_seconds(stage: Stage) -> None:
    acl = stage.acl()
    with Writers([stage.client] * 2) as writers:
        writers.wait_for(20)
        for step in ("begun", "paused", "fenced", "drained", "compared", "sequences", "files"):
            process = run_cutover(stage.move, step, signal.SIGKILL)
            assert process.wait(30) == -signal.SIGKILL, step
            writers.wait_for(20, timeout_seconds=5)
            assert writers.errors == [], step
            assert stage.ask("SELECT current_user::text") == [("app_owner",)], step
        assert stage.acl() == acl
        cutover(stage.move)
        writers.wait_for(20)

    assert writers.errors == []
    assert written(stage, "target") == sorted(writers.acknowledged)


@pytest.mark.parametrize("step", ["flipped", "resumed", "stopped"])
def test_cutover_killed_after_the_flip_goes_forward(stage: Stage, step: str) -> None:
    with Writers([stage.client] * 2) as writers:
        writers.wait_for(20)
        process = run_cutover(stage.move, step, signal.SIGKILL)
        assert process.wait(30) == -signal.SIGKILL
        writers.wait_for(20, timeout_seconds=5)
        assert stage.ask("SELECT current_user::text") == [("tenant_acme",)]
        summary = cutover(stage.move)

    assert writers.errors == []
    assert written(stage, "target") == sorted(writers.acknowledged)
    assert summary.write_pause_ms > 0
    assert rows(stage.source, "SELECT pubname FROM pg_publication") == []


def test_cutover_that_freezes_is_ended_and_undone(stage: Stage) -> None:
    acl = stage.acl()
    move = with_tenant(stage.move, max_write_pause_seconds=1)
    with Writers([stage.client] * 2) as writers:
        writers.wait_for(20)
        process = run_cutover(move, "fenced", signal.SIGSTOP)
        assert process.wait(30) == -signal.SIGKILL
        wait_until_undone(stage)
        writers.wait_for(20, timeout_seconds=5)

    assert writers.errors == []
    assert_untouched(stage, acl)
    assert not may_log_in(stage)


@pytest.mark.parametrize(
    ("where", "is_after"),
    [("pause", False), ("raise_fence", False), ("flip", False), ("flip", True)],
    ids=["before pause", "before fence", "before files", "after files"],
)
def test_cutover_that_hangs_in_a_call_never_goes_on_after_it_was_undone(
    stage: Stage, where: str, is_after: bool
) -> None:
    acl, text = stage.acl(), stage.pooler.aliases_file.read_text("utf-8")
    move = with_tenant(stage.move, max_write_pause_seconds=1)
    with Writers([stage.client] * 2) as writers:
        writers.wait_for(20)
        process = run_script(HANGING_SCRIPT, move, where, is_after)
        assert process.wait(30) == -signal.SIGKILL
        wait_until_undone(stage)
        writers.wait_for(20, timeout_seconds=5)

    assert writers.errors == []
    assert stage.pooler.aliases_file.read_text("utf-8") == text
    assert written(stage, "source") == sorted(writers.acknowledged)
    assert_untouched(stage, acl)


def test_cutover_undoes_again_what_it_did_after_another_had_undone_it(stage: Stage) -> None:
    acl = stage.acl()
    fence = plan_fence(stage.source)
    [instance] = stage.move.router.instances

    def undo_and_go_on(step: str) -> None:
        if step != "fenced":
            return
        [(number,)] = rows(stage.target, "SELECT max(id) FROM tenantferry.write_pauses")
        with closing(open_connection(stage.move.target, purpose="other")) as other:
            assert not settle(make_attempt(stage.move, number), other, reason="test")
        raise_fence(stage.source, fence, timeout_seconds=5)
        with open_console("one", instance.admin, purpose="late") as console:
            console.run("PAUSE acme")

    with pytest.raises(TransientError):
        cutover(stage.move, on_step=undo_and_go_on)

    assert_untouched(stage, acl)


def test_settling_an_undone_attempt_leaves_a_later_one_alone(stage: Stage) -> None:
    fence = plan_fence(stage.source)
    fail_at(stage, "drained")
    [(number,)] = rows(stage.target, "SELECT max(id) FROM tenantferry.write_pauses")
    begin_pause(
        stage.target, "acme", run_id=None, seconds=5, fence=fence.to_json(), source_pid=0
    )  # fmt: skip
    raise_fence(stage.source, fence, timeout_seconds=5)

    with closing(open_connection(stage.move.target, purpose="late guard")) as late:
        settle(make_attempt(stage.move, number), late, reason="test")

    assert plan_fence(stage.source).is_raised


def fail_at(stage: Stage, fatal: str) -> None:
    def fail(step: str) -> None:
        if step == fatal:
            raise TransientError("test")

    with pytest.raises(TransientError):
        cutover(stage.move, on_step=fail)


def test_fence_that_was_left_behind_is_never_taken_for_what_was_there(stage: Stage) -> None:
    acl = stage.acl()
    fence = plan_fence(stage.source)
    fail_at(stage, "drained")
    raise_fence(stage.source, fence, timeout_seconds=5)

    fail_at(stage, "drained")

    assert_untouched(stage, acl)
    stored = rows(stage.target, "SELECT fence FROM tenantferry.write_pauses ORDER BY id")
    assert [Fence.from_json(one) for (one,) in stored] == [fence, fence]


def test_cutover_refuses_a_fence_that_is_not_its_own(stage: Stage) -> None:
    fence = plan_fence(stage.source)
    raise_fence(stage.source, fence, timeout_seconds=5)

    with pytest.raises(PermanentError, match="is fenced already"):
        cutover(stage.move)

    assert rows(stage.target, "SELECT count(*) FROM tenantferry.write_pauses") == [(0,)]


def test_nobody_gets_into_the_target_between_the_files_and_the_decision(stage: Stage) -> None:
    # PAUSE does not outlive PgBouncer, and the file it starts with points at the target already.
    stage.pooler.settings["server_login_retry"] = "1"
    refused: list[str] = []

    def restart(step: str) -> None:
        if step == "files":
            stage.pooler.kill()
            stage.pooler.start()
            with pytest.raises((PermanentError, TransientError)) as caught:
                stage.ask("INSERT INTO written VALUES (777) RETURNING id")
            refused.append(caught.value.detail)
            assert written(stage, "target") == []

    cutover(stage.move, on_step=restart)

    assert len(refused) == 1
    assert "not permitted to log in" in refused[0]
    assert may_log_in(stage)
    assert stage.ask("INSERT INTO written VALUES (778) RETURNING id") == [(778,)]


@pytest.mark.parametrize("step", [validate, backfill, prepare], ids=lambda step: step.__name__)
def test_next_step_settles_an_attempt_that_died_with_its_guard(
    stage: Stage, step: Callable[[Move], object]
) -> None:
    acl = stage.acl()
    process = run_script(LOST_SCRIPT, stage.move, "fenced")
    assert process.wait(30) == -signal.SIGKILL
    assert plan_fence(stage.source).is_raised

    step(stage.move)

    assert_untouched(stage, acl)


def test_live_tenant_is_resumed_by_the_next_step_when_its_guard_died_too(stage: Stage) -> None:
    process = run_script(LOST_SCRIPT, stage.move, "flipped")
    assert process.wait(30) == -signal.SIGKILL

    prepare(stage.move)

    assert stage.ask("SELECT current_user::text") == [("tenant_acme",)]


def test_login_of_another_tenant_never_reaches_this_one(stage: Stage) -> None:
    stage.pooler.set_user("globex_app", "globex")
    stranger = stage.pooler.client("acme", "globex_app", "globex")
    refused: list[str] = []

    for act in (lambda: None, lambda: cutover(stage.move)):
        act()
        with pytest.raises((PermanentError, TransientError)) as caught:
            open_client_connection(stranger, purpose="stranger")
        refused.append(caught.value.detail)

    assert ["login rejected" in detail for detail in refused] == [True, True]


def test_slot_that_could_not_be_dropped_is_dropped_by_the_next_try(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    slots = "SELECT slot_name FROM pg_replication_slots WHERE database = current_database()"

    def fail(*_: object) -> None:
        raise TransientError("the source is away")

    with monkeypatch.context() as patched:
        patched.setattr(completion, "drop_slot", fail)
        with pytest.raises(TransientError, match="is live, but log is still kept for it"):
            cutover(stage.move)
    seen = rows(stage.target, "SELECT probed_at IS NOT NULL, dropped_at IS NOT NULL"
                " FROM tenantferry.write_pauses")  # fmt: skip
    left = rows(stage.source, slots)

    cutover(stage.move)

    assert seen == [(True, False)]
    assert len(left) == 1
    assert rows(stage.source, slots) == []
    assert rows(stage.target, "SELECT dropped_at IS NOT NULL FROM tenantferry.write_pauses") == [
        (True,)
    ]


def test_cutover_undoes_itself_when_the_target_is_lost_before_the_flip(
    stage: Stage, target_server: PostgresServer
) -> None:
    acl = stage.acl()

    def lose(step: str) -> None:
        if step == "fenced":
            target_server.psql(
                "-c",
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'tenantferry cutover acme'",
            )

    with pytest.raises(TransientError, match="failed and was undone"):
        cutover(stage.move, on_step=lose)

    assert_untouched(stage, acl)


def test_cutover_goes_forward_when_the_answer_to_its_decision_is_lost(
    stage: Stage, target_server: PostgresServer
) -> None:
    # Gotcha 6: committed, but nobody heard.
    def lose(step: str) -> None:
        if step == "flipped":
            raise TransientError("the connection was lost during COMMIT")

    summary = cutover(stage.move, on_step=lose)

    assert stage.phase() == "live"
    assert summary.write_pause_ms > 0
    assert stage.ask("SELECT current_user::text") == [("tenant_acme",)]


def test_the_password_of_the_tenant_role_stands_in_the_alias_file_alone(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    cutover(stage.move)

    [line] = [
        line
        for line in stage.pooler.aliases_file.read_text("utf-8").splitlines()
        if line.startswith("acme = ")
    ]
    password = line.rpartition("password=")[2]
    assert len(password) > 30
    assert password not in caplog.text
    [(verifier,)] = rows(stage.target, "SELECT string_agg(undo_reason || fence::text, '')"
                         " FROM tenantferry.write_pauses") or [("",)]  # fmt: skip
    assert password not in str(verifier)
