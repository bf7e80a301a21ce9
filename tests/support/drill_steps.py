"""Bring a cutover to one of its steps, keep it there, and clear its task."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass

import psycopg2

from drill_fleet import DrillFleet
from drill_holds import (
    hold_comparison,
    hold_fence,
    hold_publication,
    hold_registration,
    hold_resumed,
    hold_role,
    hold_sequence,
    hold_step,
    hold_stream_row,
    target_of,
)
from live_fleet import Attempt
from tenantferry.connections import ConnectionParams

FORGOTTEN = "forgotten console"
# What is recorded of an attempt that waits in a step.
RECORDED: dict[str, tuple[str, ...]] = {
    "ready": (),
    "begun": (),
    "paused": ("paused",),
    "fenced": ("paused", "fenced"),
    "drained": ("paused", "fenced", "drained"),
    "compared": ("paused", "fenced", "drained", "compared"),
    "sequences": ("paused", "fenced", "drained", "compared", "sequences"),
    "flipped": ("paused", "fenced", "drained", "compared", "sequences", "flipped"),
    "resumed": ("paused", "fenced", "drained", "compared", "sequences", "flipped", "resumed"),
}
STEPS = tuple(RECORDED)

_STEP_REQUEST = """
SELECT FROM pg_stat_activity WHERE application_name = 'forgotten session'
    AND query LIKE %s AND (state = 'active' OR state = 'idle in transaction')
"""


@dataclass(frozen=True, slots=True)
class Cleared:
    """
    A cutover whose task was cleared in one of its steps.

    :ivar recorded: the attempt at that moment; ``None`` where it was not begun.
    :ivar settled: what became of it.
    """

    recorded: Attempt | None
    settled: Attempt | None


def clear_in_steps(fleet: DrillFleet, key: str, steps: Sequence[str]) -> dict[str, Cleared]:
    """
    Clear the task "cutover" in one step after the other, each time in the try that follows.

    Returns when what the last one left is settled; the next try is on its way then.

    :param key: of a tenant that asks for approval.
    """
    cleared: dict[str, Cleared] = {}
    fleet.wait_until_asked(key)

    def approve() -> None:
        fleet.answer(key, "Approve")

    begin = approve
    with ThreadPoolExecutor(1) as waiter, ExitStack() as gates:
        for step in steps:
            with ExitStack() as holds:
                pid = bring_to(fleet, key, step, begin, holds)
                recorded = _find_open(fleet, key)
                fleet.clear(key, "cutover")
                fleet.wait_until_gone(pid)
                # The next try waits behind us, until we are ready for it.
                gate = waiter.submit(hold_step, fleet, key)
                fleet.wait_for(
                    "a gate", lambda: fleet.query(_STEP_REQUEST, f"%tenantferry step%{key}%")
                )
            held = gates.enter_context(gate.result())
            fleet.wait_for(f"an end of the attempt of {key}", lambda: not _find_open(fleet, key))
            settled = fleet.attempts(key)[-1] if recorded is not None else None
            cleared[step] = Cleared(recorded, settled)
            begin = held.let_go
    return cleared


def bring_to(
    fleet: DrillFleet, key: str, step: str, begin: Callable[[], object], holds: ExitStack
) -> int:
    """
    Begin a cutover and return when it waits in a step.

    :param begin: lets it begin.
    :param holds: gets what it waits for.
    :return: the process of the task.
    """
    source, target = fleet.local.source.superuser, target_of(fleet)
    cutover, handshake = f"cutover {key}", f"handshake {key}"
    if step == "resumed":  # the attempt is over, the tenant is live, and its source knows the move
        holds.enter_context(hold_publication(fleet, key))
        begin()
        return _wait_until_waiting(fleet, key, source, f"complete {key}", None)
    # Everything that the next holds would be in the way of is done when it waits for this one.
    registration = holds.enter_context(hold_registration(fleet, key))
    begin()
    pid = _wait_until_waiting(fleet, key, target, cutover, None)
    if step == "ready":
        return pid
    if step == "begun":
        holds.enter_context(sleeping_client(fleet, key))
        registration.let_go()
        fleet.wait_for(f"an attempt of {key}", lambda: _find_open(fleet, key), key=key)
        return pid
    if step == "drained":
        # Clients need the tables that it waits for until they are paused.
        with hold_stream_row(fleet, key):
            registration.let_go()
            _wait_until_waiting(fleet, key, target, handshake, RECORDED["fenced"])
            holds.enter_context(hold_comparison(fleet, key))
        return _wait_until_waiting(fleet, key, source, f"recheck {key}", RECORDED[step])
    hold, server, waiting = {
        "paused": (hold_fence, source, cutover),
        "fenced": (hold_stream_row, target, handshake),
        "compared": (hold_sequence, target, cutover),
        "sequences": (hold_role, target, cutover),
        "flipped": (hold_resumed, target, cutover),
    }[step]
    holds.enter_context(hold(fleet, key))
    registration.let_go()
    return _wait_until_waiting(fleet, key, server, waiting, RECORDED[step])


@contextmanager
def sleeping_client(fleet: DrillFleet, key: str) -> Iterator[None]:
    """Hold a transaction of the application open, through the pooler."""
    tenant = fleet.tenant(key)
    params = fleet.local.client_params(tenant)
    opened = psycopg2.connect(
        host=params.host, port=params.port, user=params.user, password=params.password,
        dbname=params.database, application_name=FORGOTTEN,
    )  # fmt: skip
    with closing(opened), opened.cursor() as cursor:
        cursor.execute("SELECT 1")
        yield


def _wait_until_waiting(
    fleet: DrillFleet,
    key: str,
    server: ConnectionParams,
    application: str,
    recorded: tuple[str, ...] | None,
) -> int:
    """Return the process of a session that waits, once so much is recorded."""

    def find() -> int | None:
        found = _find_open(fleet, key)
        steps = found.steps if found is not None else None
        return fleet.find_waiting(server, application) if steps == recorded else None

    pid: int = fleet.wait_for(f"{application} waiting after {recorded}", find, key=key)
    return pid


def _find_open(fleet: DrillFleet, key: str) -> Attempt | None:
    return next((attempt for attempt in fleet.attempts(key) if attempt.is_open), None)
