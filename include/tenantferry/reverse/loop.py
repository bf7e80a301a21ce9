"""
The life of the reverse streams: read, route, obey, report.

One thread waits for everything: changes of the target, commands, what the followers have done. It
never waits for a source. What it reads is in the log until the slot is confirmed, and the slot is
confirmed only up to the oldest transaction that some source still lacks.
"""

from __future__ import annotations

import logging
import select
import threading
import time
from enum import Enum

from tenantferry.control.streams import StreamState
from tenantferry.reverse.board import Board, LaneReport, OpenGrace
from tenantferry.reverse.dispatching import Dispatcher
from tenantferry.reverse.duty import LEASED, Duty
from tenantferry.reverse.lane import Lane, LaneState
from tenantferry.reverse.lanes import Lanes
from tenantferry.stream.answers import Order
from tenantferry.stream.heartbeat import Heartbeat
from tenantferry.stream.walsender import Walsender

logger = logging.getLogger(__name__)

REPORT_SECONDS = 1.0
# How soon a table is followed that somebody adds to the target between two cutovers.
PUBLISH_SECONDS = 30.0
_LONGEST_WAIT_SECONDS = 0.25
# Between two looks at whether a transaction can be seen that the log already tells of.
_BARRIER_WAIT_SECONDS = 0.002


class Ending(Enum):
    """
    Why the reverse streams are not followed any more.

    :cvar INTERRUPTED: they were told to end; the next start goes on.
    :cvar GIVEN_UP: the slot was given up.
    :cvar TO_BE_READ_AGAIN: a source that can take it now lacks what there was no room to keep.
    """

    INTERRUPTED = "interrupted"
    GIVEN_UP = "given up"
    TO_BE_READ_AGAIN = "to be read again"


class Loop:
    """
    Runs reverse streams that are set up.

    :param confirmed: LSN up to which the slot may be confirmed.
    :param wal_budget_bytes: a lane that is further behind loses its way back.
    """

    def __init__(
        self,
        *,
        walsender: Walsender,
        dispatcher: Dispatcher,
        lanes: Lanes,
        board: Board,
        heartbeat: Heartbeat,
        confirmed: int,
        wal_budget_bytes: int,
    ) -> None:
        self._walsender = walsender
        self._dispatcher = dispatcher
        self._lanes = lanes
        self._board = board
        self._heartbeat = heartbeat
        self._wal_budget_bytes = wal_budget_bytes
        self._report_at = self._publish_at = 0.0
        self._ending: Ending | None = None
        self.confirmed = confirmed

    def run(self, stop: threading.Event) -> Ending:
        """
        Follow the target until told to stop.

        :param stop: ends the streams at commits of their sources, to be started again.
        :raises TenantferryError: if they cannot go on; what is not committed is undone.
        """
        self._look_at_graces(None)
        while not stop.is_set() and self._ending is None:
            self._lanes.collect()
            self._hear()
            self._read()
            self._obey()
            self._keep_alive()
            self._wait()
        self._lanes.end()
        if self._ending is None:
            self._ending = Ending.INTERRUPTED
            for duty in self._lanes:
                duty.state = StreamState.INTERRUPTED
        if self._ending is not Ending.GIVEN_UP:
            self._report()
        return self._ending

    def lose(self, lane: Lane, reason: str) -> None:
        """Give up a tenant's way back; the others go on."""
        logger.error("tenant=%s lost its way back: %s", lane.grace.tenant, reason)
        self._board.lose(lane.grace, reason)
        self._drop(lane)

    def _hear(self) -> None:
        calls = self._board.read_calls()
        if calls.graces:
            self._look_at_graces(None)
        if calls.tenants:
            self._take(self._board.read_orders(calls.tenants))
        for tenant, lsn in calls.waited_for:
            if (duty := self._lanes.of(tenant)) is not None:
                duty.waited_for.add(lsn)

    def _take(self, orders: dict[str, Order]) -> None:
        for tenant, order in orders.items():
            duty = self._lanes.of(tenant)
            if duty is None:
                continue
            if order.has_expired and order.command in LEASED:
                # The next report reads what it is replaced by.
                self._board.end_lease(tenant, order)
            elif duty.hear(order):
                self._lanes.start(duty.lane)
                if duty.wants(self._dispatcher.read_to):
                    # An idle target would tell nothing of how far its log goes.
                    self._heartbeat.nudge()

    def _read(self) -> None:
        dispatcher = self._dispatcher
        if dispatcher.barrier is not None:
            if not self._board.is_visible(dispatcher.barrier.xid):
                return
            self._look_at_graces(dispatcher.barrier.tenant)
            dispatcher.barrier = None
        for lane in dispatcher.read():
            self._lanes.start(lane)
        self._heartbeat.come_back(dispatcher.markers, time.monotonic())
        dispatcher.markers.clear()

    def _look_at_graces(self, announced: str | None) -> None:
        """Open and close lanes; *announced* is the tenant whose marker has just come."""
        graces = self._board.read_graces()
        still_open = {found.grace.id for found in graces}
        for duty in self._lanes:
            if duty.lane.grace.id not in still_open:
                logger.info("reverse stream is over tenant=%s", duty.lane.grace.tenant)
                self._drop(duty.lane)
        for found in graces:
            if found.grace.id not in self._lanes and self._may_follow(found, announced):
                self._follow(found)

    def _may_follow(self, found: OpenGrace, announced: str | None) -> bool:
        """Tell whether no change since the beginning of the grace was passed over."""
        return (
            found.is_followed
            or found.grace.start_lsn >= self._dispatcher.read_to
            # Nothing of this tenant was committed before the transaction with the marker.
            or found.grace.tenant == announced
        )

    def _follow(self, found: OpenGrace) -> None:
        tenant = found.grace.tenant
        if not found.is_followed:
            self._board.follow(tenant)
        lane = self._lanes.open(found.grace, source_position=found.source_position)
        self._dispatcher.add_lane(lane, found.tenant_id)
        logger.info("reverse stream begins tenant=%s", tenant)
        self._take(self._board.read_orders([tenant]))

    def _drop(self, lane: Lane) -> None:
        self._dispatcher.drop_lane(lane)
        self._lanes.drop(lane)

    def _obey(self) -> None:
        read_to = self._dispatcher.read_to
        for duty in self._lanes:
            tenant = duty.lane.grace.tenant
            if not duty.is_answered and (answer := duty.answer(read_to)) is not None:
                self._board.acknowledge(tenant, answer.order, answer.state, answer.position)
            if duty.waited_for:
                position = duty.position(read_to)
                if min(duty.waited_for) <= position:
                    duty.waited_for = {lsn for lsn in duty.waited_for if lsn > position}
                    self._board.announce(tenant, position)

    def _keep_alive(self) -> None:
        now = time.monotonic()
        if self._heartbeat.is_due:
            self._heartbeat.beat()
        if now >= self._publish_at:
            self._publish_at = now + PUBLISH_SECONDS
            self._board.publish()
        if now >= self._report_at:
            self._lanes.start_all()
        if now >= self._report_at or self._walsender.wants_reply:
            self._report()

    def _report(self) -> None:
        self._report_at = time.monotonic() + REPORT_SECONDS
        read_to, heartbeat = self._dispatcher.read_to, self._heartbeat
        states = [(duty, duty.lane.look(read_to)) for duty in self._lanes]
        orders = self._board.report(
            [_describe(duty, state, read_to) for duty, state in states],
            confirmed=self.confirmed,
            read_to=read_to,
            seen=max(self._walsender.received, heartbeat.lsn),
            read_lag_seconds=heartbeat.lag_seconds,
        )
        self._take(orders)
        # What a source has must be known for good before its log may go, or nobody would notice
        # that it has lost that again.
        if len(orders) == len(states):
            floors = [state.floor for _, state in states]
            self.confirmed = max(self.confirmed, min([read_to, *floors]))
        # Durable first: a start that finds the slot beyond it knows that somebody else has
        # consumed changes.
        if not self._board.record_slot(confirmed=self.confirmed, read_to=read_to):
            self._ending = Ending.GIVEN_UP
            return
        self._walsender.confirm(self.confirmed)
        self._check_ways(read_to)
        if self._ending is None and any(duty.lane.must_be_read_again for duty in self._lanes):
            self._ending = Ending.TO_BE_READ_AGAIN

    def _check_ways(self, read_to: int) -> None:
        """Give up the tenants that cannot go back any more, or not within their budget."""
        for duty in self._lanes:
            state = duty.lane.look(read_to)
            behind = read_to - state.floor
            if state.hopeless:
                self.lose(duty.lane, state.hopeless)
            elif state.is_pending and behind > self._wal_budget_bytes:
                why = f" Its error: {state.error}" if state.error else ""
                self.lose(
                    duty.lane,
                    f"The target kept {behind} bytes of log for its source, more than"
                    f" wal_budget_bytes = {self._wal_budget_bytes} allow.{why}",
                )

    def _wait(self) -> None:
        if self._dispatcher.barrier is not None:
            time.sleep(_BARRIER_WAIT_SECONDS)  # when a commit is seen can only be asked for
        elif not self._dispatcher.has_more:
            watched: list[Board | Lanes | Walsender] = [self._board, self._lanes, self._walsender]
            select.select(watched, [], [], _LONGEST_WAIT_SECONDS)


def _describe(duty: Duty, state: LaneState, read_to: int) -> LaneReport:
    return LaneReport(
        tenant=duty.lane.grace.tenant,
        state=StreamState.FAILED if state.error else duty.state,
        position=duty.position(read_to),
        source_position=state.source_position,
        changes=state.changes,
        transactions=state.transactions,
        commit_time=state.oldest_commit_time,
        error=state.error,
    )
