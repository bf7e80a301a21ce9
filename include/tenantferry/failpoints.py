"""
Moments at which a fault would matter most, so that a test can reach exactly them.

Nobody listens unless a test does, and then a point is one comparison. Points lie beside chunks,
batches and rounds, never beside rows. The steps of a write pause are told by its own ``on_step``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum


class Point(StrEnum):
    """Where a step has just got to."""

    CAUGHT_UP_TO_NOW = "backfill.caught_up_to_now"
    SNAPSHOT_TAKEN = "backfill.snapshot_taken"
    ROUND_BEGUN = "backfill.round_begun"
    CAUGHT_UP = "backfill.caught_up"
    CHUNKS_GIVEN = "backfill.chunks_given"
    CHUNK_COPIED = "backfill.chunk_copied"
    CHUNK_MARKED = "backfill.chunk_marked"
    CHUNK_COMMITTED = "backfill.chunk_committed"
    ROUND_ENDED = "backfill.round_ended"

    BATCH_RECEIVED = "stream.batch_received"
    STAGED = "stream.staged"
    WRITTEN = "stream.written"
    POSITION_WRITTEN = "stream.position_written"
    COMMITTED = "stream.committed"
    CONFIRMING = "stream.confirming"

    HELD = "validation.held"
    ALIGNED = "validation.aligned"
    COMPARING = "validation.comparing"


Listener = Callable[[Point], object]

_listener: Listener | None = None


def reach(point: Point) -> None:
    """Tell whoever listens, in the thread that got there; what it raises is raised here."""
    if _listener is not None:
        _listener(point)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Let all threads of this process tell *listener* of the points they reach."""
    global _listener  # noqa: PLW0603 - a parameter would go through every function of the engine
    before, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = before
