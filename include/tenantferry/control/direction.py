"""Which way changes, or clients, go."""

from __future__ import annotations

from enum import StrEnum


class Direction(StrEnum):
    """
    The way of a stream, or of a write pause that moves clients.

    :cvar FORWARD: source to target; a cutover.
    :cvar REVERSE: target to source; a rollback.
    """

    FORWARD = "forward"
    REVERSE = "reverse"
