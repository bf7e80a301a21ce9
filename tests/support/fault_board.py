"""The table of faults: which of them, at which point of a move, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE
from rich.table import Table

from fault_kinds import Fault

Place = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Result:
    """
    What came of one cell.

    :ivar seconds: until the step that was struck was done; ``None`` where it was not survived.
    """

    seconds: float | None


def build_table(
    results: Mapping[Place, Result], *, faults: Sequence[Fault], points: Sequence[str]
) -> Table:
    """
    Lay out what came of the cells.

    :param results: by the name of the fault and the point.
    """
    struck = [fault for fault in faults if any(name == fault.name for name, _ in results)]
    title = "Faults: seconds until the step that was struck was done"
    table = Table(title=title, title_justify="left", box=SIMPLE)
    table.add_column("struck at", no_wrap=True)
    for fault in struck:
        table.add_column(fault.name, justify="right")
    for point in points:
        cells = [_show(results.get((fault.name, point))) for fault in struck]
        if any(cells):
            table.add_row(point, *cells)
    return table


def _show(result: Result | None) -> str:
    if result is None:
        return ""
    if result.seconds is None:
        return "[red]lost[/red]"
    return f"[green]{result.seconds:.1f}[/green]"
