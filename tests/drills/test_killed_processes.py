"""Processes that end without a farewell: tasks, and the scheduler with all of them."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from drill_fleet import DrillFleet
from drill_holds import hold_rows_to_copy, target_of
from drill_steps import RECORDED, bring_to
from drill_verdict import conclude

_IS_READY = "SELECT to_regclass('public.invoice_items') IS NOT NULL"
_CHUNKS = "SELECT chunks_done, chunks FROM tenantferry.progress WHERE tenant = %s"
_KEPT = "SELECT count(*) FROM tenantferry.chunks WHERE tenant = %s AND round = 1"


@dataclass(frozen=True, slots=True)
class Killed:
    """
    A backfill and a stream that were killed.

    :ivar chunks_done: when the backfill was killed.
    :ivar chunks_kept: of those, the ones that were not copied again.
    :ivar backfills: how often the task was tried.
    """

    chunks_done: int
    chunks_kept: int
    chunks: int
    backfills: int
    streams: int


def kill_tasks(fleet: DrillFleet) -> Killed:
    """Kill a backfill half-way, then the stream."""
    key = "killed"
    fleet.wait_for("a table of another tenant", lambda: fleet.query(_IS_READY) == [(True,)])
    with hold_rows_to_copy(fleet, key):
        fleet.trigger(key)
        pid = fleet.wait_for(
            "a backfill", lambda: fleet.find_waiting(target_of(fleet), f"backfill copy {key}")
        )
        [(done, chunks)] = fleet.query(_CHUNKS, key)
        os.kill(pid, signal.SIGKILL)
        fleet.wait_until_gone(pid)
    # A backfill that goes on catches up in a session of the same name.
    fleet.wait_for_task(key, "stream_cdc", "running")
    os.kill(fleet.wait_for("a stream", lambda: fleet.find_session(f"stream {key}")), signal.SIGKILL)
    fleet.answer(key, "Approve")
    fleet.wait_for_success(key)
    conclude(fleet, key)
    [(kept,)] = fleet.query(_KEPT, key)
    tries = [fleet.try_number(key, task_id) for task_id in ("backfill", "stream_cdc")]
    return Killed(done, kept, chunks, *tries)


@pytest.mark.drill("killed", script=kill_tasks)
def test_a_backfill_that_is_killed_half_way_goes_on_from_there(outcome: Killed) -> None:
    assert 0 < outcome.chunks_done < outcome.chunks
    assert outcome.chunks_kept == outcome.chunks_done
    assert outcome.backfills >= 2


@pytest.mark.drill("killed", script=kill_tasks)
def test_a_stream_that_is_killed_goes_on_by_itself(outcome: Killed) -> None:
    assert outcome.streams >= 2


@pytest.mark.drill("scheduler_down")
def test_a_scheduler_that_is_killed_in_a_write_pause_keeps_no_client_waiting(
    quiet_fleet: DrillFleet,
) -> None:
    fleet, key = quiet_fleet, "scheduler_down"

    with ExitStack() as holds:
        bring_to(fleet, key, "fenced", lambda: fleet.answer(key, "Approve"), holds)
        fleet.airflow.restart("scheduler")
    fleet.wait_for_success(key)

    conclude(fleet, key)
    first, *_, last = fleet.attempts(key)
    assert first.steps == RECORDED["fenced"]
    assert first.undo_reason == "its process ended, or its time was over"
    assert last.steps == RECORDED["resumed"]
