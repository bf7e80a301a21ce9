"""A cutover that is killed or freezes is undone before the decision, and goes forward after it."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable

import pytest

from cutover_stage import LOST_SCRIPT, assert_untouched
from move_process import run_script
from move_stage import Stage, may_log_in, rows, with_tenant, written
from tenantferry.errors import PermanentError, TransientError
from tenantferry.local.postgres import PostgresServer
from tenantferry.moves import completion
from tenantferry.moves.backfill import backfill
from tenantferry.moves.cutover import cutover
from tenantferry.moves.move import Move
from tenantferry.moves.prepare import prepare
from tenantferry.moves.validate import validate
from tenantferry.traffic.fence import plan_fence
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


def run_cutover(move: Move, fatal: str, number: signal.Signals) -> subprocess.Popen[bytes]:
    return run_script(SCRIPT, move, fatal, number)


def wait_until_undone(stage: Stage) -> None:
    deadline = time.monotonic() + 30
    while rows(stage.target, "SELECT count(*) FILTER (WHERE undone_at IS NULL), count(*) > 0"
               " FROM tenantferry.write_pauses") != [(0, True)]:  # fmt: skip
        assert time.monotonic() < deadline


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
