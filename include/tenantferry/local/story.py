"""What a demo shows."""

from __future__ import annotations

from enum import StrEnum

from tenantferry.control.direction import Direction


class Story(StrEnum):
    """
    What a demo shows.

    :cvar MIGRATE: all tenants move.
    :cvar ROLLBACK: they move, write, go back, write, and move again.
    """

    MIGRATE = "migrate"
    ROLLBACK = "rollback"

    @property
    def turns(self) -> tuple[Direction, ...]:
        """The write pauses of each tenant, in order."""
        if self is Story.MIGRATE:
            return (Direction.FORWARD,)
        return (Direction.FORWARD, Direction.REVERSE, Direction.FORWARD)
