"""
Servers and the pooler go down while a tenant is on its way.

First the one that lets no request of anybody fail who lives on a source.
"""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from drill_fleet import DrillFleet
from drill_holds import hold_rows_to_change, target_of
from drill_steps import RECORDED, bring_to
from drill_verdict import conclude
from tenantferry.control.phases import Phase

_REQUESTS_WHILE_LIVE = 60
_POSITION = "SELECT position FROM tenantferry.streams WHERE tenant = %s"


def prove_again(fleet: DrillFleet, key: str) -> None:
    """See that the stream keeps up and that both sides are equal."""
    fleet.clear(key, "wait_for_lag")
    fleet.wait_for_task(key, "wait_for_lag", "success")
    fleet.clear(key, "validate")
    fleet.wait_for_task(key, "validate", "success")


def settle_in(fleet: DrillFleet) -> None:
    """Bring a tenant live, and leave its client at work."""
    key = "settled"
    fleet.trigger(key)
    fleet.answer(key, "Approve")
    fleet.wait_for_success(key)


# The closest marker is that of the drill; the other tenant lives in the target already.
@pytest.mark.drill("settled", script=settle_in)
@pytest.mark.drill("target_down")
def test_a_target_that_crashes_in_the_middle_of_an_apply_loses_nothing(
    quiet_fleet: DrillFleet,
) -> None:
    fleet, key, settled = quiet_fleet, "target_down", "settled"
    fleet.wait_until_asked(key)
    client = fleet.clients[settled]
    client.wait_for_requests(client.requests + _REQUESTS_WHILE_LIVE, timeout_seconds=60)
    assert fleet.phase(settled) == Phase.LIVE

    with hold_rows_to_change(fleet, key):
        fleet.wait_for("an apply", lambda: fleet.find_waiting(target_of(fleet), f"stream {key}"))
        before = fleet.query(_POSITION, key)
        fleet.local.restart_server("target", mode="immediate")
    after = fleet.query(_POSITION, key)
    prove_again(fleet, key)
    fleet.answer(key, "Approve")
    fleet.wait_for_success(key)

    conclude(fleet, key)
    # It lives in the target, so requests fail while that is down.
    conclude(fleet, settled, may_fail=True)
    assert after == before
    assert fleet.try_number(key, "stream_cdc") >= 2


@pytest.mark.drill("source_down")
def test_a_source_that_is_restarted_is_followed_again(quiet_fleet: DrillFleet) -> None:
    fleet, key = quiet_fleet, "source_down"
    fleet.wait_until_asked(key)
    before = fleet.wait_for("a stream", lambda: fleet.find_session(f"stream {key}"))

    fleet.local.restart_server("source")
    prove_again(fleet, key)
    fleet.answer(key, "Approve")
    fleet.wait_for_success(key)

    conclude(fleet, key, may_fail=True)
    assert before
    assert fleet.try_number(key, "stream_cdc") >= 2


@pytest.mark.drill("pooler_down")
def test_a_pooler_that_is_restarted_in_a_write_pause_sends_nobody_to_the_wrong_side(
    quiet_fleet: DrillFleet,
) -> None:
    fleet, key = quiet_fleet, "pooler_down"

    # It forgets the pause: clients go on at the source, whose fence is not up yet.
    with ExitStack() as holds:
        bring_to(fleet, key, "paused", lambda: fleet.answer(key, "Approve"), holds)
        fleet.local.restart_pooler()
    fleet.wait_for_task(key, "cutover", "up_for_retry")
    # Its files say "target" already, but it is not decided.
    with ExitStack() as holds:
        bring_to(fleet, key, "sequences", lambda: fleet.clear(key, "cutover"), holds)
        fleet.local.restart_pooler()
    fleet.wait_for_success(key)

    conclude(fleet, key, may_fail=True)
    first, *_, last = fleet.attempts(key)
    assert "flipped" not in first.steps
    assert last.steps == RECORDED["resumed"]
