"""A live tenant goes back to its source and moves again; on-call interferes with that as well."""

from __future__ import annotations

import io
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
from rich.console import Console

from drill_fleet import DrillFleet
from drill_holds import hold_registration, hold_stream_row, target_of
from drill_steps import RECORDED
from drill_verdict import conclude
from live_fleet import Attempt
from tenantferry.control.phases import Phase
from tenantferry.local.acts import tell_rollback
from tenantferry.local.runs import Run
from tenantferry.local.story import Story

# Written in the target, so that there is something to bring back.
_REQUESTS_WHILE_LIVE = 60

_CHUNKS = """
SELECT table_schema, table_name, chunk, round, rows, done_at
FROM tenantferry.chunks WHERE tenant = %s ORDER BY table_schema, table_name, chunk
"""


@dataclass(frozen=True, slots=True)
class WentBack:
    """
    A rollback whose task was cleared within its write pause, and the move after it.

    :ivar recorded: the attempt at that moment.
    :ivar attempts: all of the tenant, when it was back.
    :ivar copied: the chunks then.
    :ivar again: the last attempt, when it was live again.
    :ivar copied_again: the chunks then.
    """

    recorded: Attempt
    attempts: list[Attempt]
    copied: list[tuple[Any, ...]]
    again: Attempt
    copied_again: list[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Told:
    """
    What the story of a demo left.

    :ivar runs: after the first move.
    :ivar copied: the chunks when the tenant was live for the first time.
    :ivar copied_again: in the end.
    """

    runs: list[Run]
    attempts: list[Attempt]
    copied: list[tuple[Any, ...]]
    copied_again: list[tuple[Any, ...]]


def roll_back(fleet: DrillFleet) -> WentBack:
    key = "homebound"
    fleet.trigger(key)
    fleet.answer(key, "Approve")
    fleet.wait_for_success(key)
    client = fleet.clients[key]
    client.wait_for_requests(client.requests + _REQUESTS_WHILE_LIVE, timeout_seconds=60)
    target = target_of(fleet)
    with ExitStack() as holds:
        # All that is done before clients wait is over when it waits for this one.
        registration = holds.enter_context(hold_registration(fleet, key))
        back = fleet.roll_back(key)
        pid = fleet.wait_for(
            "a rollback", lambda: fleet.find_waiting(target, f"rollback {key}"), key=back
        )
        holds.enter_context(hold_stream_row(fleet, key, direction="reverse"))
        registration.let_go()
        fleet.wait_for(
            "its pause", lambda: fleet.find_waiting(target, f"handshake {key}"), key=back
        )
        recorded = fleet.attempts(key)[-1]
        fleet.clear(back, "rollback")
        fleet.wait_until_gone(pid)
    fleet.wait_for_task(back, "probe", "success")
    fleet.wait_for_task(back, "stream_cdc", "running")
    conclude(fleet, key, phase=Phase.STREAMING)
    attempts, copied = fleet.attempts(key), fleet.query(_CHUNKS, key)
    fleet.start_client_again(key)
    fleet.trigger(key)
    fleet.answer(key, "Approve")
    fleet.wait_for_success(key)
    conclude(fleet, key)
    return WentBack(recorded, attempts, copied, fleet.attempts(key)[-1], fleet.query(_CHUNKS, key))


def tell_story(fleet: DrillFleet) -> Told:
    """Let a demo roll back and move again, as STORY=rollback does."""
    key = "storied"
    fleet.trigger(key)
    fleet.wait_for_success(key)
    copied = fleet.query(_CHUNKS, key)
    nowhere = Console(file=io.StringIO())
    runs = tell_rollback(fleet.local, {key: fleet.clients[key]}, nowhere, lambda _: None)
    for run in runs:
        fleet.remember(f"{key} {run.dag_id}", run)
    conclude(fleet, key)
    return Told(runs, fleet.attempts(key), copied, fleet.query(_CHUNKS, key))


@pytest.mark.drill("homebound", script=roll_back)
def test_a_tenant_that_goes_back_takes_along_all_that_was_written(outcome: WentBack) -> None:
    went_live, undone, *_, back = outcome.attempts

    assert (went_live.direction, undone.direction, back.direction) == (
        "forward",
        "reverse",
        "reverse",
    )
    assert outcome.recorded.steps == ("paused", "fenced")
    assert undone.undo_reason
    assert "flipped" not in undone.steps
    assert "resumed" in back.steps


@pytest.mark.drill("homebound", script=roll_back)
def test_a_tenant_that_was_back_moves_again_and_nothing_is_copied_again(outcome: WentBack) -> None:
    assert (outcome.again.direction, outcome.again.steps) == ("forward", RECORDED["resumed"])
    assert outcome.copied
    assert outcome.copied_again == outcome.copied


@pytest.mark.drill("storied", script=tell_story)
def test_the_story_of_a_demo_ends_with_all_that_was_written_and_nothing_copied_again(
    outcome: Told,
) -> None:
    assert [run.state for run in outcome.runs] == ["success", "success"]
    turns = tuple(a.direction for a in outcome.attempts if "flipped" in a.steps)
    assert turns == Story.ROLLBACK.turns
    assert outcome.copied
    assert outcome.copied_again == outcome.copied
