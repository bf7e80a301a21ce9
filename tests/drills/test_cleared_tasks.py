"""On-call clears tasks, in every state of a run and in every step of a cutover."""

from __future__ import annotations

import pytest

from drill_fleet import DrillFleet
from drill_steps import RECORDED, STEPS, Cleared, clear_in_steps
from drill_verdict import conclude

TASKS = (
    "preflight",
    "prepare",
    "backfill",
    "stream_cdc",
    "wait_for_lag",
    "validate",
    "approve",
    "cutover",
    "probe",
)
EARLY, LATE = STEPS[:5], STEPS[5:]


def clear_early(fleet: DrillFleet) -> dict[str, Cleared]:
    fleet.trigger("early")
    cleared = clear_in_steps(fleet, "early", EARLY)
    fleet.wait_for_success("early")
    conclude(fleet, "early")
    return cleared


def clear_late(fleet: DrillFleet) -> dict[str, Cleared]:
    fleet.trigger("late")
    cleared = clear_in_steps(fleet, "late", LATE)
    fleet.wait_for_success("late")
    conclude(fleet, "late")
    return cleared


def clear_any_task(fleet: DrillFleet) -> dict[str, int]:
    """Clear tasks of a run that is on its way, then each of a run that is over."""
    key = "cleared"
    fleet.trigger(key)
    fleet.wait_for_task(key, "stream_cdc", "running")
    fleet.clear(key, "prepare", "backfill", "stream_cdc", "wait_for_lag")
    # A person is asked; meanwhile the stream goes on, and everything before may be cleared.
    fleet.wait_until_asked(key)
    fleet.clear(key, "preflight", "wait_for_lag")
    for task_id in ("preflight", "wait_for_lag"):
        fleet.wait_for_task(key, task_id, "success")
    fleet.clear(key, "validate")
    fleet.wait_for_task(key, "validate", "success")
    # Somebody marks the stream, which runs, and thinks better of it.
    pid = fleet.wait_for("a stream", lambda: fleet.find_session(f"stream {key}"))
    fleet.mark(key, "stream_cdc", "failed")
    fleet.wait_until_gone(pid)
    fleet.clear(key, "stream_cdc")
    fleet.wait_for_task(key, "stream_cdc", "running")
    fleet.answer(key, "Approve")
    fleet.wait_for_success(key)
    for task_id in TASKS:
        fleet.clear(key, task_id)
        if task_id == "approve":
            fleet.answer(key, "Approve")
        fleet.wait_for_task(key, task_id, "success")
        # Airflow loses a clear that meets the scheduler's own "this run is over".
        fleet.wait_for_success(key)
    conclude(fleet, key)
    return {task_id: fleet.try_number(key, task_id) for task_id in TASKS}


@pytest.mark.parametrize(
    "step",
    [
        *(pytest.param(s, marks=pytest.mark.drill("early", script=clear_early)) for s in EARLY),
        *(pytest.param(s, marks=pytest.mark.drill("late", script=clear_late)) for s in LATE),
    ],
)
def test_a_cutover_may_be_cleared_when_it_is(step: str, outcome: dict[str, Cleared]) -> None:
    cleared = outcome[step]

    if step in ("ready", "resumed"):  # there is no attempt yet, or it is over
        assert cleared == Cleared(None, None)
        return
    assert cleared.recorded is not None
    assert cleared.settled is not None
    assert cleared.recorded.steps == RECORDED[step]
    assert ("flipped" in cleared.settled.steps) == (step == "flipped")
    assert bool(cleared.settled.undo_reason) == (step != "flipped")


@pytest.mark.drill("cleared", script=clear_any_task)
def test_any_task_may_be_cleared_at_any_time(outcome: dict[str, int]) -> None:
    assert {task_id: number for task_id, number in outcome.items() if number < 2} == {}
