"""Which cells of the fault table are run: a few of them always, all of them in a soak."""

from __future__ import annotations

import math
import os
import random
import time

import fault_kinds as kinds
from fault_kinds import FAULTS, Fault
from tenantferry.failpoints import Point

Place = tuple[Fault, str]

_STEPS = (
    "prepared", "begun", "paused", "fenced", "drained", "compared", "sequences", "files", "flipped",
    "resumed", "stopped", "dropped",
)  # fmt: skip
POINTS: tuple[str, ...] = (*map(str, Point), *(f"cutover.{step}" for step in _STEPS))

# Each fault where it hurts most; a killed process, which is what happens most, twice.
_FEW: tuple[Place, ...] = (
    (kinds.KILLED, "stream.position_written"),
    (kinds.KILLED, "cutover.flipped"),
    (kinds.SOURCE_KILLED, "stream.confirming"),
    (kinds.TARGET_KILLED, "cutover.dropped"),
    (kinds.POOLER_KILLED, "cutover.fenced"),
    (kinds.SOURCE_CUT, "backfill.chunk_copied"),
    (kinds.TARGET_CUT, "cutover.drained"),
    (kinds.SLOW, "validation.comparing"),
    (kinds.SOURCE_LOST, "stream.batch_received"),
    (kinds.TARGET_LOST, "cutover.paused"),
    (kinds.DISK_FULL, "stream.staged"),
    (kinds.NO_FILES, "cutover.sequences"),
    (kinds.NO_SLOTS, "validation.held"),
)


_soak_minutes = os.environ.get("SOAK_MINUTES")


def choose_cells() -> list[Place]:
    """Return the cells to run, in their order."""
    if not is_soak():
        return list(_FEW)
    others = [(fault, point) for fault in FAULTS for point in POINTS]
    others = [place for place in others if place not in _FEW]
    # A soak that ends early has seen something of everything, and the next one other things.
    random.shuffle(others)
    return [*_FEW, *others]


def is_soak() -> bool:
    """Tell whether all cells are wanted: ``make soak MINUTES=60``."""
    return _soak_minutes is not None


class Clock:
    """Ends a soak. It begins when the first cell does."""

    def __init__(self) -> None:
        self._ends_at = math.inf
        if _soak_minutes is not None:
            self._ends_at = time.monotonic() + float(_soak_minutes) * 60

    def is_over(self) -> bool:
        """Tell whether no other cell is to begin."""
        return time.monotonic() > self._ends_at
