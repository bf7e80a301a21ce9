"""How much a round may copy."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Allowance:
    """
    What one round may copy.

    :ivar seconds: how old its snapshot may be when a worker begins a chunk.
    :ivar chunks: so many a worker copies in any case.
    """

    seconds: float = math.inf
    chunks: int = 1


class Pace:
    """
    Sees to it that rounds get ahead.

    A row that comes into a copied chunk without all its values makes the chunk pending again. Where
    an application does that as fast as a round copies chunks, rounds of the same size would never
    end: each one that finds no less to do than the one before may copy twice as much.

    :param budget_seconds: of an ordinary round.
    """

    def __init__(self, budget_seconds: float) -> None:
        self._budget_seconds = budget_seconds
        self._factor = 1
        self._pending: float = math.inf

    def next(self, pending: int) -> Allowance:
        """
        Return what the next round may copy.

        :param pending: chunks that are to be copied when it begins.
        """
        if pending >= self._pending:
            self._factor *= 2
        self._pending = pending
        return Allowance(self._budget_seconds * self._factor, self._factor)
