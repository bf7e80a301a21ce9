"""One world for all cells, and the table of what came of them."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from fault_board import Place, Result, build_table
from fault_kinds import FAULTS
from fault_matrix import POINTS, Clock
from fault_world import World, running_world

_HERE = Path(__file__).parent
_results: dict[Place, Result] = {}


def pytest_configure(config: pytest.Config) -> None:
    """Know the marker."""
    config.addinivalue_line("markers", "cell(fault, point): strikes once, at that point of a move")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever a cell waits for has a limit of its own."""
    for item in items:
        if item.path.is_relative_to(_HERE):
            item.add_marker(pytest.mark.timeout(600))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember what came of a cell."""
    report = yield
    marker = item.get_closest_marker("cell")
    if marker is not None and (report.when == "call" or report.failed) and not report.skipped:
        fault, point = marker.args
        told = [seconds for name, seconds in item.user_properties if name == "seconds"]
        survived = [seconds for seconds in told if report.passed and isinstance(seconds, float)]
        _results[fault.name, point] = Result(survived[0] if survived else None)
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table, for people."""
    if _results:
        text = io.StringIO()
        table = build_table(_results, faults=FAULTS, points=POINTS)
        Console(file=text, width=170).print(table)
        terminalreporter.write(text.getvalue())


@pytest.fixture(scope="session")
def world() -> Iterator[World]:
    """Servers, pooler and proxies."""
    with running_world() as started:
        yield started


@pytest.fixture(scope="session")
def clock() -> Clock:
    """How long cells go on."""
    return Clock()


@pytest.fixture
def journals() -> Iterator[Path]:
    """A folder for what clients were promised; in memory: each promise waits until it is there."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)
