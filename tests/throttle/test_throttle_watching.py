"""The thread that keeps a throttle up to date, and the turns of those who ask it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import pytest

from tenantferry.connections import SESSION_SETTINGS
from tenantferry.errors import TransientError
from tenantferry.throttle import throttle as throttle_module
from tenantferry.throttle import watching
from tenantferry.throttle.throttle import Throttle
from tenantferry.throttle.watching import watch_gauges

WaitFor = Callable[[Callable[[], object]], None]


class Dial:
    """A gauge that shows what the test says; an exception is raised."""

    name = "dial"

    def __init__(self, shown: str | TransientError | None) -> None:
        self.shown = shown
        self.looks = 0

    def look(self) -> str | None:
        self.looks += 1
        if isinstance(self.shown, TransientError):
            raise self.shown
        return self.shown

    def close(self) -> None:
        self.looks = -1


class Wall:
    """A board that remembers what it showed."""

    def __init__(self) -> None:
        self.shown: list[str | None] = []

    def show(self, reason: str | None) -> None:
        self.shown.append(reason)

    def close(self) -> None:
        self.shown.append("closed")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks follow each other at once."""
    monkeypatch.setattr(watching, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(watching, "RETRY_SECONDS", 0.02)


def test_watch_gauges_says_when_it_begins_and_when_it_ends(
    caplog: pytest.LogCaptureFixture, wait_for: WaitFor
) -> None:
    caplog.set_level(logging.INFO)
    dial, wall = Dial("dial: 7 s"), Wall()

    with watch_gauges([dial], tenant="acme", board=wall) as throttle:
        wait_for(lambda: throttle.reason == "dial: 7 s" and dial.looks > 3)
        dial.shown = None
        wait_for(lambda: throttle.reason is None)

    assert [record.getMessage() for record in caplog.records] == [
        "throttled tenant=acme by=dial: 7 s",
        "throttled no more tenant=acme seconds=0",
    ]
    assert wall.shown[0] == "dial: 7 s"
    assert wall.shown[-2:] == [None, "closed"]
    assert dial.looks == -1


def test_watch_gauges_is_off_and_says_so_once_where_a_gauge_cannot_be_asked(
    caplog: pytest.LogCaptureFixture, wait_for: WaitFor
) -> None:
    caplog.set_level(logging.INFO)
    dial = Dial("dial: 7 s")

    with watch_gauges([dial], tenant="acme", board=Wall()) as throttle:
        wait_for(lambda: throttle.reason)
        dial.shown = TransientError("could not ask the dial")
        looks = dial.looks
        wait_for(lambda: dial.looks > looks + 4)
        assert throttle.reason is None
        dial.shown = "dial: 8 s"
        wait_for(lambda: throttle.reason == "dial: 8 s")

    messages = [record.getMessage() for record in caplog.records]
    assert sum(message.startswith("cannot measure the dial") for message in messages) == 1
    assert messages.count("measures the dial again tenant=acme") == 1


def test_throttle_forgets_what_nobody_has_looked_at_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    throttle = Throttle()
    throttle.see("dial: 7 s")
    before = throttle.reason

    monkeypatch.setattr(throttle_module, "STALE_SECONDS", 0.0)

    assert (before, throttle.reason) == ("dial: 7 s", None)


def test_turns_let_a_worker_wait_but_never_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throttle_module, "LONGEST_WAIT_SECONDS", 0.2)
    throttle = Throttle()
    throttle.see("dial: 7 s")
    turns = throttle.turns()
    began = time.monotonic()

    asked = 1
    while not turns.may_go():
        asked += 1

    assert asked > 1
    assert time.monotonic() - began >= 0.2
    assert not turns.may_go()


def test_no_wait_is_so_long_that_a_server_takes_the_reader_for_dead() -> None:
    timeout_seconds = int(SESSION_SETTINGS["tcp_user_timeout"]) / 1000

    assert timeout_seconds >= 3 * throttle_module.LONGEST_WAIT_SECONDS


def test_turns_come_at_once_when_the_time_of_the_worker_is_over() -> None:
    throttle = Throttle()
    throttle.see("dial: 7 s")

    assert not throttle.turns(until=time.monotonic() + 60).may_go()
    assert throttle.turns(until=time.monotonic()).may_go()
