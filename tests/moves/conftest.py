"""A whole move for every test."""

from __future__ import annotations

from abort_stage import other
from move_fixtures import move, pooler, stage
from rollback_stage import before, live

__all__ = ["before", "live", "move", "other", "pooler", "stage"]
