"""An abort that dies half-way goes on where it was, and clears up after a move that died."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest

from abort_stage import left, read_other_records, read_others
from cutover_stage import LOST_SCRIPT
from move_stage import Stage, rows
from tenantferry.connections import open_connection
from tenantferry.control.phases import IllegalPhaseError, Phase
from tenantferry.errors import TransientError
from tenantferry.local.accounts import free_port
from tenantferry.moves.abort import abort
from tenantferry.moves.backfill import backfill
from tenantferry.moves.cutover import cutover
from tenantferry.moves.move import Move
from tenantferry.moves.prepare import prepare
from tenantferry.moves.stream import stream
from tenantferry.moves.validate import validate
from tenantferry.traffic import settlement
from tenantferry.traffic.fence import plan_fence, raise_fence
from traffic_clients import Writers

# The stream that the stage hosts is ended by the abort.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")

STEPS = ["announced", "stopped", "source", "rows", "role", "forgotten", "reverse slot"]
# Runs an abort that kills itself after one step.
SCRIPT = """
import os, pickle, signal, sys
from tenantferry.moves.abort import abort
move, fatal = pickle.load(sys.stdin.buffer)
abort(move, on_step=lambda step: step == fatal and os.kill(os.getpid(), signal.SIGKILL))
"""


def run_and_kill(script: str, move: Move, fatal: str) -> None:
    process = subprocess.run(
        [sys.executable, "-c", script],
        input=pickle.dumps((move, fatal)),
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=60,
        check=False,
    )
    assert process.returncode == -signal.SIGKILL, fatal


def test_abort_killed_at_any_step_goes_on_where_it_was(stage: Stage, other: None) -> None:
    before, records = read_others(stage), read_other_records(stage)
    for step in STEPS:
        run_and_kill(SCRIPT, stage.move, step)
        if step in ("forgotten", "reverse slot"):
            assert stage.phase() == Phase.REGISTERED
        else:
            assert stage.phase() == Phase.ABORTING, step
            with pytest.raises(IllegalPhaseError):
                stream(stage.move, stop=threading.Event())

    abort(stage.move)

    assert left(stage) == {}
    assert read_others(stage) == before
    assert read_other_records(stage) == records


@pytest.mark.parametrize(
    "step",
    [
        prepare,
        backfill,
        validate,
        cutover,
        lambda move: stream(move, stop=threading.Event()),
    ],
    ids=["prepare", "backfill", "validate", "cutover", "stream"],
)
def test_no_other_step_goes_on_while_a_tenant_is_aborted(stage: Stage, step: Any) -> None:
    run_and_kill(SCRIPT, stage.move, "announced")
    before = left(stage)

    with pytest.raises(IllegalPhaseError):
        step(stage.move)

    assert stage.phase() == Phase.ABORTING
    assert left(stage) == before


def test_abort_says_what_is_left_when_the_source_is_away_and_goes_on_later(stage: Stage) -> None:
    away = replace(stage.move, source=replace(stage.move.source, port=free_port()))

    with pytest.raises(TransientError, match="out of its source") as caught:
        abort(away)

    assert 'slot "tenantferry_acme"' in caught.value.detail
    assert stage.phase() == Phase.ABORTING
    assert {name for name in left(stage) if name.startswith("source")} == {
        "source slots", "source publications",
    }  # fmt: skip
    assert "target counted" not in left(stage)
    abort(stage.move)
    assert left(stage) == {}


def test_abort_removes_the_alias_of_a_rehearsal_that_was_killed(stage: Stage) -> None:
    stage.pooler.set_alias(
        "tenantferry_acme", host="h", port=1, database="d", user="tenant_acme", password="p"
    )

    abort(stage.move)

    assert "tenantferry_acme" not in stage.pooler.aliases_file.read_text("utf-8")


def test_abort_first_lets_clients_go_that_a_lost_cutover_keeps_waiting(stage: Stage) -> None:
    acl = stage.acl()
    with Writers([stage.client] * 2) as writers:
        writers.wait_for(20)
        run_and_kill(LOST_SCRIPT, stage.move, "fenced")
        assert stage.phase() == Phase.CUTTING_OVER
        abort(stage.move)
        writers.wait_for(20)

    assert writers.errors == []
    assert stage.acl() == acl
    assert left(stage) == {}


def test_abort_leaves_no_reverse_slot_of_a_cutover_that_was_undone(stage: Stage) -> None:
    def fail(step: str) -> None:
        if step == "fenced":
            raise TransientError("test")

    with pytest.raises(TransientError):
        cutover(stage.move, on_step=fail)
    assert left(stage)["target reverse slot"] == 1

    abort(stage.move)

    assert left(stage) == {}


def test_settling_says_what_it_waits_for_when_somebody_holds_the_attempt(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settlement, "_LOCK_TIMEOUT", "200ms")
    run_and_kill(LOST_SCRIPT, stage.move, "fenced")
    with closing(open_connection(stage.move.target, purpose="hung")) as hung:
        rows(hung, "SELECT FROM tenantferry.write_pauses FOR UPDATE")

        with pytest.raises(TransientError, match="could not settle") as caught:
            validate(stage.move)

    assert "write_pauses" in caught.value.detail
    abort(stage.move)
    assert left(stage) == {}


def test_abort_lowers_a_fence_that_an_undone_cutover_left_up(stage: Stage) -> None:
    acl = stage.acl()
    fence = plan_fence(stage.source)

    def fail(step: str) -> None:
        if step == "fenced":
            raise TransientError("test")

    with pytest.raises(TransientError):
        cutover(stage.move, on_step=fail)
    raise_fence(stage.source, fence, timeout_seconds=5)

    abort(stage.move)

    assert stage.acl() == acl
