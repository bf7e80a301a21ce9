"""One cell of a fault table: a whole move under load, struck once, and what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path

from fault_kinds import Clients, Fault
from fault_verbs import ClientProcess, Compared, Ended, Order, Outcome, VerbProcess
from fault_world import Stay, World
from tenantferry.connections import open_client_connection, open_connection
from tenantferry.control.streams import require_stream
from tenantferry.local.auditor import audit
from tenantferry.local.client import JOURNAL_NAME, SUMMARY_NAME
from tenantferry.local.measurements import read_summary
from tenantferry.stream.marker import emit_marker

# Requests a second; after each cell so many more must have been answered.
_RATE, _LAST_WRITES = 40.0, 10
# For everything that must come to pass, one thing after the other, on a loaded machine.
_PATIENCE_SECONDS = 120.0
_VERBS = {
    "backfill": "backfill",
    "stream": "stream",
    "validation": "validate",
    "cutover": "cutover",
}
# From these steps of a cutover on, clients may be at the target.
_AT_TARGET = frozenset({"files", "flipped", "resumed", "stopped", "dropped"})


class CellLostError(Exception):
    """The move did not survive; the message says why."""


@dataclass(frozen=True, slots=True)
class Survived:
    """
    What a cell that survived tells.

    :ivar seconds: from the fault until the step that it struck was done.
    :ivar points: that were reached on the way.
    """

    seconds: float
    points: frozenset[str]


class Cell:
    """
    A move, from nothing to live.

    :param directory: takes journals.
    :param sabotage: how the engine of the struck step is broken; ``None``: it is not.
    """

    def __init__(
        self, world: World, stay: Stay, directory: Path, *, sabotage: str | None = None
    ) -> None:
        self._world, self._stay, self._sabotage = world, stay, sabotage
        self._journal = directory / JOURNAL_NAME
        self._summary = directory / SUMMARY_NAME
        self._client = ClientProcess(stay.client, str(directory), rate=_RATE)
        self._struck: VerbProcess | None = None
        self._stream: VerbProcess | None = None
        self._others: list[VerbProcess] = []
        self._armed: dict[str, str] = {}
        self._compared: list[Compared] = []
        self._points: set[str] = set()
        self._fault: Fault | None = None
        self._struck_at = 0.0
        self._seconds: float | None = None

    def run(self, fault: Fault | None, point: str | None) -> Survived:
        """
        Move the tenant; strike when *point* is reached.

        :raises CellLostError: if that does not end well.
        """
        self._fault = fault
        if point is not None:
            self._armed = {_VERBS[point.partition(".")[0]]: point}
        self._see_writes()
        for verb in ("prepare", "backfill"):
            self._carry_out(verb)
        self._begin_stream()
        self._carry_out("validate")
        self._carry_out("cutover")
        self._pump(lambda: self._stream is None, "the stream to end")
        self._see_writes()
        if self._seconds is None and point is not None:
            raise CellLostError(f"{point} was never reached")
        self._audit(may_fail=fault is not None and _hits_clients(fault, point or ""))
        return Survived(self._seconds or 0.0, frozenset(self._points))

    def close(self) -> None:
        """End every process."""
        self._client.kill()
        for process in self._running():
            process.kill()

    def _running(self) -> list[VerbProcess]:
        return [*self._others, *([] if self._stream is None else [self._stream])]

    def _start(self, verb: str) -> VerbProcess:
        return VerbProcess(
            Order(
                verb,
                self._stay.move,
                self._stay.source,
                self._stay.target,
                point=self._armed.pop(verb, None),
                sabotage=self._sabotage,
            )
        )

    def _carry_out(self, verb: str) -> None:
        """Run a step again and again, until it is done."""
        while True:
            process = self._start(verb)
            self._others.append(process)
            self._pump(lambda: process.ended is not None, f"the end of {verb}")  # noqa: B023
            self._others.remove(process)
            if self._is_done(process):
                break
        if self._struck is not None and self._struck.order.verb == verb:
            self._seconds = time.monotonic() - self._struck_at

    def _is_done(self, process: VerbProcess) -> bool:
        """Look at how a process ended: may it be tried again?"""
        ended = process.ended or Ended(Outcome.DIED, "")
        fault, was_struck = self._fault, process is self._struck
        may_be = {
            Outcome.FINISHED: True,
            # Without a fault, too: e.g. a probe and the stream may want the same row.
            Outcome.FAILED: True,
            Outcome.REFUSED: was_struck and fault is not None and fault.may_refuse,
            # A cutover that hangs is killed by its guard.
            Outcome.DIED: self._struck is not None,
        }
        if not may_be[ended.outcome]:
            raise CellLostError(f"{process.order.verb} {ended.outcome.value}: {ended.reason}")
        return ended.outcome is Outcome.FINISHED

    def _begin_stream(self) -> None:
        point = self._armed.get("stream")
        self._stream = self._start("stream")
        if point is not None:
            self._pump(lambda: self._struck is not None, point)
            self._see_caught_up()
            self._seconds = time.monotonic() - self._struck_at

    def _pump(self, is_over: Callable[[], bool], what: str) -> None:
        """Serve all processes until something is so."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not is_over():
            if time.monotonic() > deadline:
                raise CellLostError(f"waited in vain for {what}")
            self._serve(self._running(), seconds=0.05)

    def _serve(self, processes: list[VerbProcess], *, seconds: float) -> None:
        ready = wait([process.pipe for process in processes], seconds)
        for process in processes:
            if process.pipe in ready:
                process.take()
            if process.is_stopped:
                self._strike(process)
            if process.ended is not None:
                self._take_end(process)

    def _take_end(self, process: VerbProcess) -> None:
        self._compared += process.compared
        process.compared.clear()
        self._points |= process.points
        if process is self._stream:
            self._stream = None if self._is_done(process) else self._start("stream")

    def _strike(self, process: VerbProcess) -> None:
        fault = self._fault
        if fault is None:
            raise CellLostError("nothing is to strike")
        self._struck, self._struck_at = process, time.monotonic()
        fault.strike(self._world, process)
        if process.is_stopped:
            process.go_on()
        self._wait_for_end(process, self._struck_at + fault.lasts_seconds)
        fault.heal(self._world)

    def _wait_for_end(self, process: VerbProcess, deadline: float) -> None:
        while process.ended is None and (left := deadline - time.monotonic()) > 0:
            if wait([process.pipe], left):
                process.take()

    def _see_caught_up(self) -> None:
        """See the stream apply what is written now."""
        stay = self._stay
        with closing(open_connection(stay.source, purpose="look", autocommit=True)) as source:
            lsn = emit_marker(source, stay.move.tenant)
        with closing(open_connection(stay.target, purpose="look", autocommit=True)) as target:
            self._pump(
                lambda: require_stream(target, stay.move.tenant.key).position >= lsn,
                "the stream to catch up",
            )

    def _see_writes(self) -> None:
        """See further writes of the client acknowledged."""
        wanted = self._count_writes() + _LAST_WRITES
        self._pump(lambda: self._count_writes() >= wanted, "clients to go on")

    def _count_writes(self) -> int:
        return self._journal.read_bytes().count(b"\n") if self._journal.exists() else 0

    def _audit(self, *, may_fail: bool) -> None:
        """Look for what clients were promised, and for what both sides held when they were held."""
        self._client.stop()
        summary = read_summary(self._summary)
        with closing(open_client_connection(self._stay.client, purpose="audit")) as tenant:
            audited = audit(tenant, self._journal)
        problems = [*audited.differences, *(d for c in self._compared for d in c.differences)]
        if summary is None or (summary.failed and not may_fail):
            problems.append(f"requests failed: {summary and summary.failures[:3]}")
        if not self._compared:
            problems.append("both sides were never compared")
        if problems:
            raise CellLostError("; ".join(problems))


def _hits_clients(fault: Fault, point: str) -> bool:
    """Tell whether a fault may fail requests of clients where they are at that point."""
    verb, _, step = point.partition(".")
    at_target = verb == "cutover" and step in _AT_TARGET
    return fault.clients is Clients.EVERYBODY or fault.clients is (
        Clients.AT_TARGET if at_target else Clients.AT_SOURCE
    )


@contextmanager
def open_cell(
    world: World, directory: Path, *, sabotage: str | None = None
) -> Iterator[tuple[Cell, Stay]]:
    """Bring in a tenant for one cell, and take everything of it away."""
    with world.tenant() as stay:
        cell = Cell(world, stay, directory, sabotage=sabotage)
        try:
            yield cell, stay
        finally:
            cell.close()
