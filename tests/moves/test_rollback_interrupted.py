"""A rollback that is killed or freezes is undone before the decision, and goes forward after it."""

from __future__ import annotations

import signal
from contextlib import closing

import pytest

from move_process import run_script
from move_stage import Stage, may_log_in, with_tenant, written
from rollback_stage import (
    BEFORE,
    aliases,
    assert_back,
    assert_still_live,
    fail_at,
    wait_until_settled,
    who,
)
from tenantferry.connections import open_connection
from tenantferry.errors import PermanentError, TransientError
from tenantferry.local.postgres import PostgresServer
from tenantferry.moves.prepare import prepare
from tenantferry.moves.rollback import rollback
from tenantferry.moves.validate import validate
from tenantferry.traffic.fence import plan_fence
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
AFTER = ["flipped", "lowered", "resumed"]


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
