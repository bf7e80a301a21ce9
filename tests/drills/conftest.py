"""One fleet for all drills. Those that do not disturb others run side by side from the start."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from drill_board import Board, Script
from drill_fleet import DrillFleet
from drill_holds import make_resumed_wait
from result_tables import DRILL
from tenantferry.local.fleet import LocalTenant

_HERE = Path(__file__).parent
_ROWS = 3_000
# Longer than a step is kept waiting until its process is killed. PgBouncer ends clients that wait
# longer than its query_wait_timeout, which the cutover compares with this.
_LONG_PAUSE: Mapping[str, float | str] = {"max_write_pause_seconds": 35.0, "recheck_seconds": 35.0}
_CHUNKS: Mapping[str, float | str] = {"chunk_rows": 100, "backfill_workers": 1}
_SETTINGS: Mapping[str, Mapping[str, float | str]] = {"killed": _CHUNKS, "asked": {}}
# Moved by what knows of nobody to ask.
_NOT_ASKED = {"storied"}
# Those that begin first: the slot of a witness waits for every transaction of the target that has
# written, also for those that drills hold open.
_WITNESSED = {"early", "late", "cleared"}


def pytest_configure(config: pytest.Config) -> None:
    """Know the marker."""
    config.addinivalue_line(
        "markers",
        "drill(tenant, script=None): a drill on a tenant of its own. Its script runs beside the"
        " others, and its outcome is what that returned. Without one, the tenant waits for approval"
        " when the scripts of the others are over. May be given again for another tenant that it"
        " needs; the outcome is that of the closest one",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first one that needs the fleet waits for its start, and some for all scripts."""
    for item in items:
        if item.path.is_relative_to(_HERE):
            item.add_marker(pytest.mark.timeout(600))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let the report of a drill say what came of it."""
    report = yield
    if report.when == "call" or report.failed:
        script = _read_script(item)
        board = item.funcargs.get("board") if isinstance(item, pytest.Function) else None
        seconds = report.duration
        if script is not None and isinstance(board, Board):
            seconds = board.seconds.get(script, seconds)
        report.user_properties.append((DRILL, (_name(item), report.outcome, seconds)))
    return report


@pytest.fixture(scope="package")
def fleet(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DrillFleet]:
    """A fleet with a tenant for each drill that was selected."""
    tenants = [
        LocalTenant(
            key,
            _ROWS,
            approval=key not in _NOT_ASKED,
            settings={**_SETTINGS.get(key, _LONG_PAUSE), "witness": key in _WITNESSED},
        )
        for key in _find_drills(request)
    ]
    started = DrillFleet(tmp_path_factory.mktemp("drills") / ".local", tenants)
    try:
        started.start()
        make_resumed_wait(started)
        yield started
    finally:
        started.stop()


@pytest.fixture(scope="package")
def board(request: pytest.FixtureRequest, fleet: DrillFleet) -> Iterator[Board]:
    """The scripts of the drills that were selected, on their way."""
    scripts = dict.fromkeys(script for script in _find_drills(request).values() if script)
    others = [key for key, script in _find_drills(request).items() if script is None]
    begun = Board(fleet, [*scripts, *(partial(_bring_to_approval, key=key) for key in others)])
    try:
        yield begun
    finally:
        begun.close()


@pytest.fixture
def outcome(request: pytest.FixtureRequest, board: Board) -> Any:
    """What the script of a drill returned."""
    script = _read_script(request.node)
    assert script is not None
    return board.result(script)


@pytest.fixture
def quiet_fleet(fleet: DrillFleet, board: Board) -> DrillFleet:
    """The fleet, when all scripts are over: now it may be disturbed as a whole."""
    board.wait_for_all()
    return fleet


@pytest.fixture
def drilled_fleet(request: pytest.FixtureRequest) -> DrillFleet:
    """The fleet, after the drills."""
    if not _find_drills(request):
        pytest.skip("looks at what the drills left, and none was selected")
    found: DrillFleet = request.getfixturevalue("quiet_fleet")
    return found


def _find_drills(request: pytest.FixtureRequest) -> dict[str, Script | None]:
    """Return the tenant of each selected drill, and its script."""
    markers = [m for item in request.session.items for m in item.iter_markers("drill")]
    return {m.args[0]: m.kwargs.get("script") for m in markers}


def _bring_to_approval(fleet: DrillFleet, *, key: str) -> None:
    fleet.trigger(key)
    fleet.wait_until_asked(key)


def _read_script(item: pytest.Item) -> Script | None:
    marker = item.get_closest_marker("drill")
    return marker.kwargs.get("script") if marker is not None else None


def _name(item: pytest.Item) -> str:
    return item.name.removeprefix("test_").replace("_", " ")
