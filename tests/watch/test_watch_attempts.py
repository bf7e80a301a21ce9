"""An attempt whose machine is lost: its process and its guard are killed together."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from move_stage import Stage, rows
from tenantferry.connections import open_connection
from tenantferry.local.accounts import free_port
from tenantferry.moves.cutover import cutover
from tenantferry.traffic.fence import plan_fence
from tenantferry.watch import attempts
from tenantferry.watch.attempts import check_attempts
from tenantferry.watch.watched import Watched

Declare = Callable[..., Watched]

SCRIPT = """
import os, pickle, signal, sys
from tenantferry.moves.cutover import cutover
from tenantferry.moves.rollback import rollback
move, name, fatal = pickle.load(sys.stdin.buffer)
def lose(step):
    if step == fatal:
        with open(f"/proc/self/task/{os.getpid()}/children") as children:
            for pid in children.read().split():
                os.kill(int(pid), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
{"cutover": cutover, "rollback": rollback}[name](move, on_step=lose)
"""


def lose_machine(stage: Stage, *, at: str, verb: str = "cutover") -> None:
    """Begin a cutover, or a rollback, whose machine is lost after a step."""
    engine = str(Path(attempts.__file__).parents[2])
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        stdin=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": engine},
    )
    process.communicate(pickle.dumps((stage.move, verb, at)), timeout=60)
    assert process.returncode == -signal.SIGKILL


def let_time_pass(stage: Stage) -> None:
    rows(stage.target, "UPDATE tenantferry.write_pauses SET deadline = now() - interval '1 hour'")


def find(watched: Watched) -> list[str]:
    return [f"{found.subject}: {found.detail}" for found in check_attempts(watched).problems]


def test_an_attempt_within_its_deadline_is_left_alone(stage: Stage, declare: Declare) -> None:
    lose_machine(stage, at="fenced")

    report = check_attempts(declare(move=stage.move))

    assert report.findings == []
    assert report.looks[0].subject == 'attempt 1, a cutover of tenant "acme"'
    assert plan_fence(stage.source).is_raised


def test_an_attempt_that_was_left_behind_before_the_flip_is_undone_and_told(
    stage: Stage, declare: Declare
) -> None:
    lose_machine(stage, at="fenced")
    let_time_pass(stage)

    (finding,) = find(declare(move=stage.move))

    assert "It is settled now: clients work on the source." in finding
    assert not plan_fence(stage.source).is_raised
    assert stage.ask("SELECT current_user::text") == [("app_owner",)]
    assert stage.phase() == "validated"
    assert find(declare(move=stage.move)) == []


def test_an_attempt_that_was_left_behind_after_the_flip_is_finished_and_told(
    stage: Stage, declare: Declare
) -> None:
    lose_machine(stage, at="flipped")
    let_time_pass(stage)

    (finding,) = find(declare(move=stage.move))

    assert "It is settled now: clients work on the target." in finding
    assert stage.ask("SELECT current_user::text") == [("tenant_acme",)]
    assert find(declare(move=stage.move)) == []


def test_a_rollback_that_was_left_behind_is_undone_and_told(stage: Stage, declare: Declare) -> None:
    with stage.reversing():
        cutover(stage.move)
        lose_machine(stage, at="fenced", verb="rollback")
        let_time_pass(stage)

        (finding,) = find(declare(move=stage.move))

    assert 'a rollback of tenant "acme"' in finding
    assert "It is settled now: clients work on the target." in finding
    assert stage.ask("SELECT current_user::text") == [("tenant_acme",)]
    assert stage.phase() == "live"


def test_an_attempt_whose_source_is_gone_is_told_each_time_until_it_is_settled(
    stage: Stage, declare: Declare
) -> None:
    lose_machine(stage, at="fenced")
    let_time_pass(stage)
    gone = replace(stage.move, source=replace(stage.move.source, port=free_port()))

    (finding,) = find(declare(move=gone))

    assert "It could not be settled" in finding
    assert "It is settled now" in find(declare(move=stage.move))[0]


def test_an_attempt_of_a_tenant_that_nobody_declares_is_told(
    stage: Stage, declare: Declare
) -> None:
    lose_machine(stage, at="begun")
    let_time_pass(stage)

    (finding,) = find(declare(sources={}))

    assert "could not be settled: The fleet file does not declare it." in finding


def test_an_attempt_that_another_step_has_is_left_to_it_unless_it_hangs(
    stage: Stage, declare: Declare, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose_machine(stage, at="begun")
    let_time_pass(stage)
    with (
        closing(open_connection(stage.move.target, purpose="step", autocommit=True)) as step,
        step.cursor() as cursor,
    ):
        cursor.execute("SELECT pg_advisory_lock(hashtextextended('tenantferry step acme', 0))")
        (hanging,) = find(declare(move=stage.move))
        monkeypatch.setattr(attempts, "BUSY_SECONDS", 7200.0)
        fresh = find(declare(move=stage.move))

    assert 'Another step of tenant "acme" is still running.' in hanging
    assert fresh == []
