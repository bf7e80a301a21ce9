"""What came of faults and drills is laid out, and printed whichever process ran them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table

import drill_board
import fault_board
from drill_board import Line
from fault_board import Result
from fault_kinds import DISK_FULL, KILLED, SLOW
from result_tables import render

# Reports as those of tests/faults and tests/drills.
REPORTED = """\
import pytest

def test_survived(record_property):
    record_property("cell", ("process killed", "stream.staged"))
    record_property("seconds", 2.34)

def test_lost(record_property):
    record_property("cell", ("slow network", "cutover.fenced"))
    record_property("seconds", 1.0)
    raise ValueError

@pytest.fixture
def broken(record_property):
    record_property("cell", ("no free slot", "cutover.paused"))
    yield
    raise ValueError

def test_lost_afterwards(broken, record_property):
    record_property("seconds", 1.0)

def test_skipped(record_property):
    record_property("cell", ("own disk full", "stream.staged"))
    pytest.skip()

def test_drilled(record_property):
    record_property("drill", ("a stream is killed", "passed", 5.67))
"""


def read_rows(table: Table) -> list[tuple[str, ...]]:
    """Return the header and the rows."""
    cells = zip(*(column.cells for column in table.columns), strict=True)
    rows = [tuple(map(str, row)) for row in cells]
    return [tuple(str(column.header) for column in table.columns), *rows]


def test_the_table_of_faults_has_what_was_struck_in_the_order_of_faults_and_points() -> None:
    results = {
        (SLOW.name, "stream.staged"): Result(None),
        (KILLED.name, "stream.staged"): Result(0.04),
        (SLOW.name, "backfill.caught_up"): Result(12.36),
    }

    table = fault_board.build_table(
        results,
        faults=(KILLED, DISK_FULL, SLOW),
        points=("backfill.caught_up", "cutover.fenced", "stream.staged"),
    )

    assert read_rows(table) == [
        ("struck at", "process killed", "slow network"),
        ("backfill.caught_up", "", "[green]12.4[/green]"),
        ("stream.staged", "[green]0.0[/green]", "[red]lost[/red]"),
    ]


def test_the_table_of_drills_has_a_row_for_each_in_their_order() -> None:
    lines = [Line("b[x]", "passed", 1.25), Line("a", "failed", 10.0)]

    table = drill_board.build_table(lines)

    shown = [line.split() for line in render(table, width=120).splitlines()]
    assert [line for line in shown if len(line) == 3] == [
        ["drill", "result", "seconds"],
        ["b[x]", "passed", "1.2"],
        ["a", "failed", "10.0"],
    ]
    assert [row.style for row in table.rows] == ["green", "red"]


@pytest.mark.parametrize("processes", [0, 2], ids=["one process", "two workers"])
def test_tables_are_printed_whichever_process_ran_the_tests(tmp_path: Path, processes: int) -> None:
    pytest.importorskip("xdist")
    (tmp_path / "test_reported.py").write_text(REPORTED, "utf-8")
    options = ["-p", "result_tables", "-p", "no:cacheprovider", f"--numprocesses={processes}"]

    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "--rootdir", tmp_path, tmp_path],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
    )

    lines = [line.split() for line in run.stdout.splitlines()]
    assert ["struck", "at", "process", "killed", "slow", "network", "no", "free", "slot"] in lines
    assert ["stream.staged", "2.3"] in lines
    assert ["cutover.fenced", "lost"] in lines
    assert ["cutover.paused", "lost"] in lines
    assert ["a", "stream", "is", "killed", "passed", "5.7"] in lines
