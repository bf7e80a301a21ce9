"""Drills that run side by side, and what came of all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from drill_fleet import DrillFleet

# More at the same time would only keep each other from two processors.
_SCRIPTS_AT_ONCE = 4

Script = Callable[[DrillFleet], Any]


@dataclass(frozen=True, slots=True)
class Line:
    """
    One drill.

    :ivar result: ``passed`` or ``failed``.
    """

    drill: str
    result: str
    seconds: float


class Board:
    """
    Scripts, each on a tenant of its own, some at the same time, in their order.

    :ivar seconds: how long each took, once it is over.
    """

    def __init__(self, fleet: DrillFleet, scripts: Sequence[Script]) -> None:
        self.seconds: dict[Script, float] = {}
        self._fleet = fleet
        self._pool = ThreadPoolExecutor(_SCRIPTS_AT_ONCE, thread_name_prefix="drill")
        self._results: dict[Script, Future[Any]] = {
            script: self._pool.submit(self._run, script) for script in scripts
        }

    def result(self, script: Script) -> Any:
        """Return what a script returned, or raise what it raised."""
        return self._results[script].result()

    def wait_for_all(self) -> None:
        """Wait until all are over, well or not."""
        wait(self._results.values())

    def close(self) -> None:
        """End what still runs."""
        self._fleet.give_up()
        self._pool.shutdown(cancel_futures=True)

    def _run(self, script: Script) -> Any:
        began = time.monotonic()
        try:
            return script(self._fleet)
        finally:
            self.seconds[script] = time.monotonic() - began


def build_table(lines: Sequence[Line]) -> Table:
    """Lay out what came of the drills."""
    table = Table("drill", title="Drills", title_justify="left", box=SIMPLE)
    table.add_column("result")
    table.add_column("seconds", justify="right")
    for line in lines:
        style = "green" if line.result == "passed" else "red"
        table.add_row(escape(line.drill), line.result, f"{line.seconds:.1f}", style=style)
    return table
