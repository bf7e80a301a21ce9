"""Streams that run in a thread until a test tells them to stop."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Generic, Self, TypeVar

from tenantferry.connections import ConnectionParams
from tenantferry.control.direction import Direction
from tenantferry.errors import TransientError
from tenantferry.stream.handshake import wait_for_position

Result = TypeVar("Result")


class StreamThread(ABC, Generic[Result]):
    """One run of streams in a thread; leaving the block interrupts it."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.result: Result | None = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    @abstractmethod
    def call(self) -> Result:
        """Run until `stop` is set."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop.set()
        self.join()
        if kind is None and self.error is not None:
            raise self.error

    def join(self, timeout: float = 60) -> None:
        """Wait for its end."""
        self._thread.join(timeout)
        assert not self._thread.is_alive()

    def failure(self, timeout: float = 30) -> BaseException:
        """Wait until it fails, and return the error."""
        self._thread.join(timeout)
        assert self.error is not None, f"it did not fail: {self.result}"
        error, self.error = self.error, None
        return error

    def wait_for(
        self,
        target: ConnectionParams,
        key: str,
        lsn: int,
        *,
        timeout: float,
        direction: Direction = Direction.FORWARD,
    ) -> None:
        """Wait until it has applied everything of a tenant up to a position."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                wait_for_position(target, key, lsn, timeout_seconds=2, direction=direction)
            except TransientError:
                assert self.error is None, f"it failed: {self.error}"
                if time.monotonic() > deadline:
                    raise
            else:
                return

    def _run(self) -> None:
        try:
            self.result = self.call()
        except BaseException as error:  # noqa: BLE001  # the test looks at it
            self.error = error
