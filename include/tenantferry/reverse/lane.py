"""
One tenant in grace: what waits to be applied to its source, and how far that has come.

The reading thread fills a lane, a `Follower` of its own empties it. What both look at is guarded by
one lock; neither holds it while it waits for a server.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from tenantferry.control.graces import Grace
from tenantferry.errors import TransientError
from tenantferry.reverse.backlog import Backlog, Entry
from tenantferry.reverse.change import Change, Piece, Shape
from tenantferry.reverse.positions import Position

logger = logging.getLogger(__name__)

# Part of a large transaction that is kept in one piece.
_PIECE_BYTES = 256 * 1024
# A source that fails is tried again, each time after twice as long.
_FIRST_RETRY_SECONDS = 0.5
_LAST_RETRY_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class LaneState:
    """
    What a lane says of itself at one moment.

    :ivar position: LSN; every transaction of the target with ``commit_lsn`` below it is applied.
    :ivar floor: LSN; what waits has no lower ``commit_lsn``.
    :ivar is_pending: whether anything waits.
    :ivar oldest_commit_time: of what waits, microseconds since 2000-01-01 UTC.
    :ivar changes: applied since the grace began; ``None`` while the source was not asked.
    :ivar source_position: what the source itself has recorded, as far as it is known.
    :ivar error: why the source is not being followed, or ``None``.
    :ivar hopeless: why it never can be again, a whole sentence, or ``None``.
    """

    position: int
    floor: int
    source_position: int
    is_pending: bool
    oldest_commit_time: int | None
    changes: int | None
    transactions: int | None
    error: str | None
    hopeless: str | None


class _First(NamedTuple):
    """
    The oldest transaction that waits.

    :ivar commit_time: microseconds since 2000-01-01 UTC.
    """

    lsn: int
    commit_time: int


class Lane:
    """
    The way from the target to the source of one tenant.

    :param shapes: the dispatcher's; changes name them by number.
    :param source_position: the source has recorded it once; 0: nothing is known of that.
    :param poke: wakes the reading thread up, with what has happened here.
    :ivar changes: of the transaction that is being read; the reading thread's own.
    :ivar size_bytes: about what they take in memory.
    """

    def __init__(
        self,
        grace: Grace,
        shapes: list[Shape],
        *,
        source_position: int,
        memory_bytes: int,
        poke: Callable[[Lane], None],
    ) -> None:
        self.grace = grace
        self.shapes = shapes
        self.changes: list[Change] = []
        self.size_bytes = 0
        self._takes_part = False
        self._poke = poke
        self._lock = threading.Condition()
        self._backlog = Backlog(memory_bytes)
        # Apply what has a lower commit_lsn; None: everything.
        self._limit: int | None = None
        # Then move the position there.
        self._goal = 0
        self._position: Position | None = None
        self._source_position = source_position
        self._is_busy = False
        self._is_wanted = False
        self._has_follower = False
        self._is_closing = False
        self._is_forgotten = False
        # There was no room for it, nor for what came after it.
        self._missing: _First | None = None
        self._is_attached = False
        self._error: str | None = None
        self._hopeless: str | None = None
        self._failures = 0
        self._retry_at = 0.0

    # The reading thread's side.

    @property
    def is_full(self) -> bool:
        """Whether the transaction that is being read has come to the size of a piece."""
        return self.size_bytes >= _PIECE_BYTES

    def take(self, commit_lsn: int, commit_time: int, *, end_lsn: int) -> None:
        """
        Queue what was read of a transaction; seen by the follower after `flush`.

        Where the disk is full it is not kept, nor what comes after it: see `must_be_read_again`.
        """
        changes, size = self.changes, self.size_bytes
        self.changes, self.size_bytes = [], 0
        with self._lock:
            if self._missing is not None:
                return
            if not self._takes_part and commit_lsn < self._applied_before():
                return
            self._takes_part = not end_lsn
            with self._keeping():
                self._backlog.add(Piece(commit_lsn, commit_time, end_lsn, size, changes))

    def flush(self) -> None:
        """Let the follower see the complete transactions."""
        with self._lock:
            with self._keeping():
                self._backlog.flush()
            self._lock.notify_all()

    def order(self, *, limit: int | None, goal: int = 0) -> None:
        """
        Say how far to go.

        :param limit: apply transactions with ``commit_lsn < limit``, ``None`` for all.
        :param goal: move the position there when they are applied.
        """
        with self._lock:
            self._limit, self._goal = limit, goal
            # Somebody waits, so the session stays open, and an earlier failure is forgiven.
            self._is_wanted = limit is not None
            self._retry_at = 0.0
            self._lock.notify_all()

    @property
    def is_at_rest(self) -> bool:
        """Whether nothing is being applied, nor will be before the next order."""
        with self._lock:
            return not self._is_busy and not self._has_work()

    @property
    def durable_position(self) -> int:
        """The position that is recorded in the source, as far as it is known."""
        with self._lock:
            return self._position.lsn if self._position else 0

    def needs_follower(self) -> bool:
        """Tell whether there is work and nobody who does it; whoever asks starts one."""
        with self._lock:
            if self._has_follower or self._is_closing or self._hopeless:
                return False
            if time.monotonic() < self._retry_at:
                return False
            is_missing = self._missing is not None
            self._has_follower = self._is_wanted or is_missing or self._has_work()
            return self._has_follower

    def look(self, read_to: int) -> LaneState:
        """
        Return what the lane says of itself.

        :param read_to: LSN up to which all transactions are queued.
        """
        with self._lock:
            first = self._first
            position = self._position
            floor = read_to if first is None else first.lsn
            return LaneState(
                position=max(floor, self._applied_before()),
                floor=floor,
                source_position=self._source_position,
                is_pending=first is not None,
                oldest_commit_time=None if first is None else first.commit_time,
                changes=None if position is None else position.changes,
                transactions=None if position is None else position.transactions,
                error=self._error,
                hopeless=self._hopeless,
            )

    @property
    def must_be_read_again(self) -> bool:
        """Whether the source has all that was kept for it, and waits for what was not."""
        with self._lock:
            return self._is_attached and self._missing is not None and self._backlog.is_empty

    def limit_memory(self, memory_bytes: int) -> None:
        """Bound what comes from now on."""
        with self._lock:
            self._backlog.memory_bytes = memory_bytes

    def end(self) -> None:
        """Let the follower end at the next commit of the source, for good."""
        with self._lock:
            self._is_closing = True
            self._lock.notify_all()

    def forget(self) -> None:
        """End, and forget what waits, too: nobody will want it."""
        with self._lock:
            self._is_closing = self._is_forgotten = True
            if not self._has_follower:
                self._backlog.clear()
            self._lock.notify_all()

    # The follower's side.

    @property
    def source_position(self) -> int:
        """Where the source has stood at least, whichever process took it there."""
        with self._lock:
            return self._source_position

    def attached(self, position: Position) -> None:
        """Take note of where the source stands."""
        with self._lock:
            self._is_attached = True
            self._stand_at(position)
            self._backlog.applied(position.lsn, None)

    def wait_for_work(self, idle_seconds: float) -> tuple[int | None, int] | None:
        """
        Wait until there is something to do.

        :return: limit and goal; ``None`` when the follower shall end.
        """
        deadline = time.monotonic() + idle_seconds
        with self._lock:
            if self._is_busy:
                self._is_busy = False
                self._poke(self)
            while not self._is_closing:
                if self._has_work():
                    self._is_busy = True
                    return self._limit, self._goal
                if self._first is None:
                    self._error = None
                    self._failures = 0
                remaining = deadline - time.monotonic()
                if remaining <= 0 and not self._is_wanted:
                    break
                self._lock.wait(None if self._is_wanted else remaining)
            self._leave()
            return None

    def next_entry(self, number: int) -> tuple[int, list[Piece]] | None:
        """Return the pieces of the first entry with at least this number, and its number."""
        with self._lock:
            found = self._backlog.next_after(number)
        if found is None:
            return None
        number, entry = found
        return number, self._load(entry)

    def applied(self, position: Position, following: Piece | None) -> None:
        """Take note of what is durable in the source; *following* is what comes next, if known."""
        with self._lock:
            self._stand_at(position)
            self._backlog.applied(position.lsn, following)
            self._error = None
            self._failures = 0
            self._poke(self)

    def failed(self, error: str) -> None:
        """Take note that the follower has ended with an error."""
        with self._lock:
            self._error = error
            self._failures += 1
            backoff = _FIRST_RETRY_SECONDS * 2 ** min(self._failures - 1, 10)
            self._retry_at = time.monotonic() + min(_LAST_RETRY_SECONDS, backoff)
            self._is_busy = False
            if self._missing is not None:
                self._drop_all()
            self._leave()
            self._poke(self)

    def give_up(self, reason: str) -> None:
        """Take note that the source cannot be followed any more; *reason* is a whole sentence."""
        with self._lock:
            self._hopeless = reason
            self.failed(reason)

    def _stand_at(self, position: Position) -> None:
        self._position = position
        self._source_position = max(self._source_position, position.lsn)

    @contextmanager
    def _keeping(self) -> Iterator[None]:
        """Where there is no room for a transaction, keep none from there on."""
        try:
            yield
        except TransientError as error:
            logger.warning("tenant=%s has to be read again: %s", self.grace.tenant, error)
            self._error = str(error)
            dropped = self._backlog.drop_unseen()
            if dropped is not None:
                self._missing = _First(dropped.first_lsn, dropped.commit_time)
            if self._failures and not self._has_follower:
                self._drop_all()

    def _drop_all(self) -> None:
        """Let others have the room of what nobody takes, for some of it is missing anyway."""
        self._missing = self._first
        self._backlog.clear()

    @property
    def _first(self) -> _First | None:
        """The first transaction that the source lacks."""
        kept = self._backlog.first
        return self._missing if kept is None else _First(kept.first_lsn, kept.commit_time)

    def _load(self, entry: Entry) -> list[Piece]:
        return self._backlog.load(entry)

    def _leave(self) -> None:
        self._has_follower = self._is_attached = False
        if self._is_forgotten:
            self._backlog.clear()

    def _has_work(self) -> bool:
        if self._backlog.has_before(self._limit):
            return True
        first = self._first
        is_clear = first is None or first.lsn >= self._goal
        return is_clear and self._goal > (self._position.lsn if self._position else 0)

    def _applied_before(self) -> int:
        return max(self.grace.start_lsn, self._position.lsn if self._position else 0)
