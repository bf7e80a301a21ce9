"""The thread that applies, so that reading and decoding go on meanwhile."""

from __future__ import annotations

import os
import queue
import threading
import time
from dataclasses import dataclass

from psycopg2.extensions import connection

from tenantferry.stream.applier import Applier
from tenantferry.stream.batch import Batch


@dataclass(frozen=True, slots=True)
class Done:
    """
    A batch that was applied.

    :ivar at: ``time.monotonic()`` when that was durable.
    """

    batch: Batch
    at: float


class Worker:
    """
    Applies one batch at a time.

    :param target: the applier's session; closed by `close`, which undoes what is open in it.
    """

    def __init__(self, applier: Applier, target: connection) -> None:
        self._applier = applier
        self._target = target
        self._orders: queue.SimpleQueue[Batch | int | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[Done | BaseException] = queue.SimpleQueue()
        self._readable, self._writable = os.pipe()
        self._thread = threading.Thread(target=self._run, name="apply", daemon=True)
        self._thread.start()
        self.is_busy = False

    def fileno(self) -> int:
        """Return the descriptor that is readable when `collect` has something."""
        return self._readable

    def submit(self, order: Batch | int) -> None:
        """Begin to apply a batch, or to move P to an LSN; only when not busy."""
        self.is_busy = True
        self._orders.put(order)

    def remember(self) -> None:
        """Remember from here on which rows are written; only when not busy."""
        self._applier.remember()

    def collect(self) -> Done | None:
        """
        Return what was applied since the last call.

        :raises TenantferryError: if it could not be.
        """
        if not self.is_busy or self._results.empty():
            return None
        os.read(self._readable, 1)
        self.is_busy = False
        result = self._results.get()
        if isinstance(result, BaseException):
            raise result
        return result

    def close(self) -> None:
        """End the thread and the session; what is not committed is undone."""
        if self.is_busy and not self._target.closed:
            self._target.cancel()
        self._orders.put(None)
        self._thread.join()
        self._target.close()
        os.close(self._readable)
        os.close(self._writable)

    def _run(self) -> None:
        while (order := self._orders.get()) is not None:
            try:
                self._results.put(self._carry_out(order))
            except BaseException as error:  # noqa: BLE001 - the thread's end: the main one raises it
                self._results.put(error)
            os.write(self._writable, b"!")

    def _carry_out(self, order: Batch | int) -> Done:
        if isinstance(order, Batch):
            self._applier.apply(order)
            return Done(order, time.monotonic())
        self._applier.move(order)
        return Done(Batch(position=order, is_complete=True), time.monotonic())
