"""The thread that keeps a throttle up to date. Nothing that it meets fails the work."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from tenantferry.errors import TenantferryError
from tenantferry.throttle.throttle import Throttle

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
# A gauge that cannot be asked is not asked again before.
RETRY_SECONDS = 30.0


class Gauge(Protocol):
    """Something that is measured against a limit; used by one thread."""

    @property
    def name(self) -> str:
        """What is measured, e.g. ``replica lag of the source``."""

    def look(self) -> str | None:
        """
        Return what is above the limit, e.g. ``replica lag of the source: 14 s``, or ``None``.

        :raises TenantferryError: if it cannot be told.
        """

    def close(self) -> None:
        """End its sessions."""


class Board(Protocol):
    """Where people see what slows down a tenant; used by one thread."""

    def show(self, reason: str | None) -> None:
        """
        Show it, or that nothing does any more.

        :raises TenantferryError: if it could not be shown.
        """

    def close(self) -> None:
        """End its session."""


@contextmanager
def watch_gauges(gauges: Sequence[Gauge], *, tenant: str, board: Board) -> Iterator[Throttle]:
    """
    Keep a throttle up to date while the block runs.

    It is off where a gauge cannot be asked; the log says so once.
    """
    throttle = Throttle()
    if not gauges:
        yield throttle
        return
    stop = threading.Event()
    watcher = _Watcher(throttle, gauges, tenant, board)
    thread = threading.Thread(
        target=watcher.run, args=(stop,), name=f"throttle {tenant}", daemon=True
    )
    thread.start()
    try:
        yield throttle
    finally:
        stop.set()
        thread.join()


class _Watcher:
    """The body of the thread."""

    def __init__(
        self, throttle: Throttle, gauges: Sequence[Gauge], tenant: str, board: Board
    ) -> None:
        self._throttle, self._gauges = throttle, gauges
        self._tenant, self._board = tenant, board
        self._retry_at: dict[str, float] = {}
        self._throttled_since: float | None = None
        self._is_board_broken = False

    def run(self, stop: threading.Event) -> None:
        """Look until told to stop."""
        try:
            while True:
                self._see(self._look())
                if stop.wait(LOOK_SECONDS):
                    break
            self._see(None)
        except Exception:  # a thread's boundary: a throttle that nobody looks after would stay on
            self._throttle.see(None)
            logger.exception("the throttle failed and is off tenant=%s", self._tenant)
        finally:
            for gauge in self._gauges:
                gauge.close()
            self._board.close()

    def _look(self) -> str | None:
        found = [reason for gauge in self._gauges if (reason := self._ask(gauge)) is not None]
        return "; ".join(found) or None

    def _ask(self, gauge: Gauge) -> str | None:
        name = gauge.name
        retry_at = self._retry_at.get(name)
        if retry_at is not None and time.monotonic() < retry_at:
            return None
        try:
            reason = gauge.look()
        except TenantferryError as error:
            if retry_at is None:
                logger.warning(
                    "cannot measure the %s, which slows down nothing meanwhile tenant=%s: %s",
                    name,
                    self._tenant,
                    error,
                )
            self._retry_at[name] = time.monotonic() + RETRY_SECONDS
            return None
        if self._retry_at.pop(name, None) is not None:
            logger.info("measures the %s again tenant=%s", name, self._tenant)
        return reason

    def _see(self, reason: str | None) -> None:
        self._throttle.see(reason)
        since = self._throttled_since
        if reason is None and since is None:
            return
        if since is None:
            self._throttled_since = time.monotonic()
            logger.info("throttled tenant=%s by=%s", self._tenant, reason)
        elif reason is None:
            self._throttled_since = None
            seconds = time.monotonic() - since
            logger.info("throttled no more tenant=%s seconds=%.0f", self._tenant, seconds)
        self._show(reason)

    def _show(self, reason: str | None) -> None:
        try:
            self._board.show(reason)
        except TenantferryError as error:
            if not self._is_board_broken:
                logger.warning("could not show the throttle tenant=%s: %s", self._tenant, error)
            self._is_board_broken = True
        else:
            self._is_board_broken = False
