"""
The life of a stream: read, hand over, obey, report.

One thread waits for everything: changes of the source, results of the applier, commands. What it
may read at a moment follows from the order it was given:

* ``run``: everything; where the throttle makes a batch wait, nothing beyond that batch;
* ``hold``: nothing, but the rest of a transaction that has begun;
* ``advance``, ``stop``: transactions with ``commit_lsn`` below the order's LSN. It is known to have
  them all when the first other one comes, or a marker; it then moves P to the LSN.

The throttle has no say in any other order than ``run``: somebody waits for that, maybe clients.
What is not read stays in the socket and on the source, so that holding costs no memory.
"""

from __future__ import annotations

import select
import threading
import time

from tenantferry.control.streams import StreamCommand, StreamState
from tenantferry.failpoints import Point, reach
from tenantferry.stream.answers import Answers, Order, Report
from tenantferry.stream.heartbeat import Heartbeat
from tenantferry.stream.reading import Reader
from tenantferry.stream.walsender import Walsender
from tenantferry.stream.worker import Worker
from tenantferry.throttle.throttle import Turns

REPORT_SECONDS = 1.0
# An idle stream's slot is confirmed beyond P, so that it pins no log of other databases.
IDLE_CONFIRM_SECONDS = 10.0
_LONGEST_WAIT_SECONDS = 0.25
_TO_AN_LSN = frozenset({StreamCommand.ADVANCE, StreamCommand.STOP})
_LEASED = frozenset({StreamCommand.HOLD, StreamCommand.ADVANCE})


class Loop:
    """
    Runs a stream that is set up.

    :param position: P at the start.
    :param confirmed: LSN up to which the slot may be confirmed.
    :param byte_limit: size of a batch that is applied even if it is not complete.
    :param turns: of the throttle: when the next batch may be applied.
    :ivar position: P, durable.
    """

    def __init__(
        self,
        *,
        walsender: Walsender,
        reader: Reader,
        worker: Worker,
        answers: Answers,
        heartbeat: Heartbeat,
        position: int,
        confirmed: int,
        byte_limit: int,
        turns: Turns,
    ) -> None:
        self._walsender = walsender
        self._reader = reader
        self._worker = worker
        self._answers = answers
        self._heartbeat = heartbeat
        self._byte_limit = byte_limit
        self._turns = turns
        self._confirmed = max(position, confirmed)
        self._state = StreamState.STARTING
        self._answered_id: int | None = None
        self._markers: list[bytes] = []
        self._report_at = self._idle_confirm_at = 0.0
        self.position = position
        self._order = self._report()

    def run(self, stop: threading.Event) -> StreamState:
        """
        Stream until told to stop.

        :param stop: ends the stream at a commit of the source, to be started again.
        :return: STOPPED or INTERRUPTED.
        :raises TenantferryError: if it cannot go on; what is not committed is undone.
        """
        while not stop.is_set():
            self._collect()
            if self._answers.was_called():
                self._order = self._report()
            self._answers.announce(self.position)
            self._obey()
            if self._state is StreamState.STOPPED:
                return self._state
            self._submit()
            if self._may_read():
                self._reader.read(
                    byte_limit=self._byte_limit, until_commit=not self._worker.is_busy
                )
                self._submit()
            self._keep_alive()
            self._wait()
        while self._worker.is_busy:
            select.select([self._worker], [], [], _LONGEST_WAIT_SECONDS)
            self._collect()
        self._confirm(self.position)
        return StreamState.INTERRUPTED

    @property
    def _is_at_rest(self) -> bool:
        reader = self._reader
        return not (self._worker.is_busy or reader.in_transaction) and reader.batch.is_empty

    def _collect(self) -> None:
        done = self._worker.collect()
        if done is None:
            return
        self._markers += done.batch.markers
        if done.batch.is_complete:
            self.position = done.batch.position
            self._confirmed = max(self._confirmed, self.position)
            self._heartbeat.come_back(self._markers, done.at)
            self._markers.clear()

    def _obey(self) -> None:
        order = self._order
        if order.has_expired and order.command in _LEASED:
            self._answers.end_lease(order)
            self._order = order = self._report()
        if order.id == self._answered_id:
            return
        if order.command in _TO_AN_LSN:
            self._go_to(order)
            return
        self._reader.limit = None
        if order.command is StreamCommand.RUN:
            self._answer(StreamState.RUNNING)
        elif self._is_at_rest:
            self._answer(StreamState.HOLDING)

    def _go_to(self, order: Order) -> None:
        if self._reader.limit != order.lsn:
            self._reader.limit = order.lsn
            if self.position < order.lsn:
                self._heartbeat.nudge()
        if not (self._is_at_rest and self._has_everything_before(order.lsn)):
            return
        if self.position < order.lsn:
            self._worker.submit(order.lsn)
        elif order.command is StreamCommand.STOP:
            self._confirm(self.position)
            self._answer(StreamState.STOPPED)
        else:
            self._answer(StreamState.HOLDING)

    def _has_everything_before(self, lsn: int) -> bool:
        return self._reader.has_reached_limit or self.position >= lsn

    def _answer(self, state: StreamState) -> None:
        self._state = state
        if state is StreamState.HOLDING:
            # Before anybody hears of it: a comparison begins here.
            self._worker.remember()
        self._answers.acknowledge(self._order, state)
        self._answered_id = self._order.id

    @property
    def _has_batch_to_apply(self) -> bool:
        reader = self._reader
        if self._worker.is_busy or reader.batch.is_empty:
            return False
        return not reader.in_transaction or reader.batch.size_bytes >= self._byte_limit

    def _submit(self) -> None:
        if not self._has_batch_to_apply:
            return
        if self._order.command is not StreamCommand.RUN or self._turns.may_go():
            reach(Point.BATCH_RECEIVED)
            self._worker.submit(self._reader.take_batch())

    def _may_read(self) -> bool:
        if self._worker.is_busy and self._reader.batch.size_bytes >= self._byte_limit:
            return False
        if self._has_batch_to_apply:
            return False
        command = self._order.command
        if command is StreamCommand.RUN or self._reader.in_transaction:
            return True
        return command in _TO_AN_LSN and not self._has_everything_before(self._order.lsn)

    def _keep_alive(self) -> None:
        now = time.monotonic()
        if self._state is StreamState.RUNNING and self._heartbeat.is_due:
            self._heartbeat.beat()
        is_idle = self._reader.is_idle and not self._worker.is_busy
        if is_idle and (self._walsender.wants_reply or now >= self._idle_confirm_at):
            self._idle_confirm_at = now + IDLE_CONFIRM_SECONDS
            self._confirm_beyond(self._walsender.received)
        if self._walsender.wants_reply:
            self._confirm(self.position)
        if now >= self._report_at:
            self._order = self._report()
            self._confirm(self.position)

    def _confirm_beyond(self, received: int) -> None:
        """Let the server delete log that holds nothing of ours; P does not move by it."""
        if received > self._confirmed:
            self._confirmed = received
            # Durable first: a start that finds the slot beyond it knows that somebody else
            # has consumed changes.
            self._order = self._report()
            self._confirm(received)

    def _confirm(self, lsn: int) -> None:
        reach(Point.CONFIRMING)
        self._walsender.confirm(lsn)

    def _report(self) -> Order:
        self._report_at = time.monotonic() + REPORT_SECONDS
        heartbeat = self._heartbeat
        seen = max(self._walsender.received, heartbeat.lsn)
        return self._answers.report(
            Report(
                state=self._state,
                confirmed=self._confirmed,
                lag_seconds=heartbeat.lag_seconds,
                lag_age_seconds=heartbeat.lag_age_seconds,
                lag_bytes=max(0, seen - self.position) if heartbeat.lsn else None,
            )
        )

    def _wait(self) -> None:
        may_read = self._may_read()
        if may_read and self._reader.has_more:
            return
        watched: list[Answers | Worker | Walsender] = [self._answers, self._worker]
        if may_read:
            watched.append(self._walsender)
        select.select(watched, [], [], _LONGEST_WAIT_SECONDS)
