"""What one lane is told, how far it has done it, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass

from tenantferry.control.streams import StreamCommand, StreamState
from tenantferry.reverse.lane import Lane
from tenantferry.stream.answers import Order

LEASED = frozenset({StreamCommand.HOLD, StreamCommand.ADVANCE})
_TO_AN_LSN = frozenset({StreamCommand.ADVANCE, StreamCommand.STOP})


@dataclass(frozen=True, slots=True)
class Answer:
    """
    An order is carried out.

    :ivar position: P: where the lane stands while it holds.
    """

    order: Order
    state: StreamState
    position: int


class Duty:
    """
    The orders of one lane, one after the other.

    Of ``run``, ``hold`` and ``advance`` see `tenantferry.stream.handshake`. To hold costs the
    others nothing: what is read meanwhile waits in the lane.

    :ivar state: as it was answered last.
    :ivar waited_for: positions that somebody waits for.
    """

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.state = StreamState.STARTING
        self.waited_for: set[int] = set()
        self._order: Order | None = None
        self._is_answered = False
        self._has_goal = False
        self._held_at: int | None = None

    @property
    def is_answered(self) -> bool:
        """Whether nothing is left to be done for the last order."""
        return self._is_answered

    def hear(self, order: Order) -> bool:
        """
        Take an order; one that is known already changes nothing.

        :return: whether it is new.
        """
        if self._order is not None and order.id == self._order.id:
            return False
        self._order, self._is_answered, self._has_goal = order, False, False
        self._held_at = None
        limits = {StreamCommand.RUN: None, StreamCommand.HOLD: 0}
        self.lane.order(limit=limits.get(order.command, order.lsn))
        return True

    def wants(self, read_to: int) -> bool:
        """Tell whether it cannot go on before more of the target's log was read."""
        order = self._order
        if order is None or self._is_answered:
            return False
        return order.command in _TO_AN_LSN and read_to < order.lsn

    def answer(self, read_to: int) -> Answer | None:
        """
        Return the answer as soon as the order is carried out, once.

        :param read_to: LSN; everything with a lower ``commit_lsn`` is in the lane, or never was.
        """
        order = self._order
        if order is None or self._is_answered:
            return None
        if order.command is StreamCommand.RUN:
            return self._answer(order, StreamState.RUNNING, self.lane.look(read_to).position)
        is_hold = order.command is StreamCommand.HOLD
        position = self._hold(read_to) if is_hold else self._go_to(order.lsn, read_to)
        if position is None:
            return None
        self._held_at = position
        return self._answer(order, StreamState.HOLDING, position)

    def _hold(self, read_to: int) -> int | None:
        return self.lane.look(read_to).position if self.lane.is_at_rest else None

    def _go_to(self, lsn: int, read_to: int) -> int | None:
        if read_to < lsn:
            return None
        if not self._has_goal:
            self._has_goal = True
            self.lane.order(limit=lsn, goal=lsn)
        position = self.lane.durable_position
        return position if self.lane.is_at_rest and position >= lsn else None

    def position(self, read_to: int) -> int:
        """Return P: all transactions before it are applied, and while it holds no later one."""
        if self._held_at is not None:
            return self._held_at
        position, order = self.lane.look(read_to).position, self._order
        if order is not None and order.command in _TO_AN_LSN:
            # Where nothing waits, all that was read is applied; who asked wants it to stand there.
            return min(position, order.lsn)
        return position

    def _answer(self, order: Order, state: StreamState, position: int) -> Answer:
        self.state = state
        self._is_answered = True
        return Answer(order, state, position)
