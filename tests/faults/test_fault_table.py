"""Whatever breaks, wherever a move is: it goes on, nothing is lost, and clients come back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fault_cell import open_cell
from fault_kinds import DISK_FULL, Fault
from fault_matrix import Clock, choose_cells, is_soak
from fault_world import World

_SOAK = [pytest.mark.soak] if is_soak() else []


@pytest.mark.parametrize(
    ("fault", "point"),
    [
        pytest.param(
            fault, point, marks=[pytest.mark.cell(fault, point), *_SOAK], id=f"{fault} at {point}"
        )
        for fault, point in choose_cells()
    ],
)
def test_a_move_survives(
    *,
    world: World,
    clock: Clock,
    journals: Path,
    record_property: Callable[[str, object], None],
    fault: Fault,
    point: str,
) -> None:
    if clock.is_over():
        pytest.skip("the time of the soak is over")
    if fault is DISK_FULL and world.disk is None:
        pytest.skip("only root can give the target a small disk")

    with open_cell(world, journals) as (cell, _):
        survived = cell.run(fault, point)

    record_property("seconds", survived.seconds)
