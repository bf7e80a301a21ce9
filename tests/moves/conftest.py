"""A whole move for every test."""

from __future__ import annotations

from move_fixtures import move, pooler, stage

__all__ = ["move", "pooler", "stage"]
