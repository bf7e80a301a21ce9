"""A live tenant goes back to its source, and on-call interferes with that as well."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from drill_fleet import DrillFleet
from drill_holds import hold_registration, hold_stream_row, target_of
from drill_verdict import conclude
from live_fleet import Attempt
from tenantferry.control.phases import Phase

# Written in the target, so that there is something to bring back.
_REQUESTS_WHILE_LIVE = 60


@dataclass(frozen=True, slots=True)
class WentBack:
    """
    A rollback whose task was cleared within its write pause.

    :ivar recorded: the attempt at that moment.
    :ivar attempts: all of the tenant, when it was back.
    """

    recorded: Attempt
    attempts: list[Attempt]


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
    return WentBack(recorded, fleet.attempts(key))


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
