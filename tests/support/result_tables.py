"""
Prints what came of the faults and of the drills, whichever process ran them.

A worker of pytest-xdist prints nothing, and the process that prints never loads what lies beside
the tests. What crosses over is the properties of a report.
"""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

# Names of properties. A cell: fault and point, beside the property "seconds" where it was survived.
# A drill: its name, what came of it, and its seconds.
CELL = "cell"
DRILL = "drill"

_cells: dict[tuple[str, str], float | None] = {}
_drills: list[tuple[str, str, float]] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Remember what came of a cell or of a drill."""
    told: dict[str, Any] = dict(report.user_properties)
    if DRILL in told:
        _drills.append(told[DRILL])
    if CELL in told and (report.when == "call" or report.failed) and not report.skipped:
        fault, point = told[CELL]
        _cells[fault, point] = told.get("seconds") if report.passed else None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the tables, for people."""
    if _cells:
        terminalreporter.write(render(_lay_out_cells(), width=170))
    if _drills:
        terminalreporter.write(render(_lay_out_drills(), width=120))


def render(table: Table, *, width: int) -> str:
    """
    Return a table as text without colours.

    :param width: characters of a line at most.
    """
    text = io.StringIO()
    Console(file=text, width=width).print(table)
    return text.getvalue()


# Both import the whole engine, which most runs of some tests do without.
def _lay_out_cells() -> Table:
    from fault_board import Result, build_table  # noqa: PLC0415
    from fault_kinds import FAULTS  # noqa: PLC0415
    from fault_matrix import POINTS  # noqa: PLC0415

    results = {place: Result(seconds) for place, seconds in _cells.items()}
    return build_table(results, faults=FAULTS, points=POINTS)


def _lay_out_drills() -> Table:
    from drill_board import Line, build_table  # noqa: PLC0415

    return build_table([Line(*drill) for drill in _drills])
