"""One world for all cells."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fault_matrix import Clock
from fault_world import World, running_world
from result_tables import CELL

_HERE = Path(__file__).parent


def pytest_configure(config: pytest.Config) -> None:
    """Know the marker."""
    config.addinivalue_line("markers", "cell(fault, point): strikes once, at that point of a move")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever a cell waits for has a limit of its own. Its reports say which one it is."""
    for item in items:
        if item.path.is_relative_to(_HERE):
            item.add_marker(pytest.mark.timeout(600))
        marker = item.get_closest_marker("cell")
        if marker is not None:
            fault, point = marker.args
            item.user_properties.append((CELL, (fault.name, point)))


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
