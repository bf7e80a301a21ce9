"""
Whether work has to wait, and for how long at most.

Invariant: work that asks goes on after `LONGEST_WAIT_SECONDS` at the latest, whatever is measured:
it slows down, and never stands still. What is not measured any more slows down nobody.
"""

from __future__ import annotations

import math
import time

# Well below the tcp_user_timeout of our sessions: a server takes a reader that has not read for so
# long for dead.
LONGEST_WAIT_SECONDS = 10.0
# A look that hangs must not hold work by what it saw before.
STALE_SECONDS = 10.0


class Throttle:
    """What was measured last; one thread writes it, any may ask."""

    def __init__(self) -> None:
        self._seen: tuple[str | None, float] = (None, 0.0)

    @property
    def reason(self) -> str | None:
        """Why work has to wait now, e.g. ``replica lag of the source: 14 s``."""
        reason, seen_at = self._seen
        if reason is None or time.monotonic() - seen_at > STALE_SECONDS:
            return None
        return reason

    def see(self, reason: str | None) -> None:
        """Take note of what was measured; ``None``: nobody has to wait."""
        self._seen = reason, time.monotonic()

    def turns(self, *, until: float = math.inf) -> Turns:
        """
        Return the turns of one worker.

        :param until: ``time.monotonic()`` from which on it does not wait any more.
        """
        return Turns(self, until=until)


class Turns:
    """When one worker may take its next step; for one thread."""

    def __init__(self, throttle: Throttle, *, until: float) -> None:
        self._throttle = throttle
        self._until = until
        self._waiting_since: float | None = None

    def may_go(self) -> bool:
        """Tell whether to take the next step now; who may not asks again soon."""
        if self._throttle.reason is None:
            self._waiting_since = None
            return True
        now = time.monotonic()
        if self._waiting_since is None:
            self._waiting_since = now
        if now < min(self._until, self._waiting_since + LONGEST_WAIT_SECONDS):
            return False
        self._waiting_since = None
        return True


# Of work that nothing slows down.
UNTHROTTLED = Throttle()
