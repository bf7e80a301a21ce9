"""A whole move for every test."""

from __future__ import annotations

from abort_stage import other
from move_fixtures import move, pooler, stage
from retire_stage import in_grace, over
from rollback_stage import before, live

__all__ = ["before", "in_grace", "live", "move", "other", "over", "pooler", "stage"]
