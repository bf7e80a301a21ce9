"""
What waits to be applied to one source: little of it in memory, the rest in a file.

Transactions come in commit order and stay until they are committed in the source, so that after a
failure they are simply applied from the front again. They are kept apart, never netted here: a
position may turn out, or be wished for, between any two of them.

One thread adds, another one reads and removes. The caller holds a lock of its own around every
call, except `load`.
"""

from __future__ import annotations

import pickle
from collections import deque
from dataclasses import dataclass, field

from tenantferry.reverse.change import Piece
from tenantferry.reverse.spool import Place, Spool

# Written and read back in one go.
_ENTRY_BYTES = 256 * 1024


@dataclass(slots=True)
class Entry:
    """
    Consecutive pieces.

    :ivar first_lsn: ``commit_lsn`` of the first transaction in it that is not applied.
    :ivar last_lsn: ``commit_lsn`` of the last one.
    :ivar pieces: ``None`` where they are on disk.
    """

    first_lsn: int
    last_lsn: int = 0
    commit_time: int = 0
    size_bytes: int = 0
    pieces: list[Piece] | None = field(default_factory=list)
    place: Place | None = None


class Backlog:
    """
    The transactions of one tenant that are read and not yet applied.

    :param memory_bytes: beyond it, what comes is written to disk.
    """

    def __init__(self, memory_bytes: int) -> None:
        self.memory_bytes = memory_bytes
        self._entries: deque[Entry] = deque()
        self._open: Entry | None = None
        self._spool = Spool()
        self._in_memory = 0
        # Entries are numbered; the first and, beyond the last complete transaction, the end.
        self._first = 0
        self._visible = 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits."""
        return not self._entries and self._open is None

    @property
    def first(self) -> Entry | None:
        """The entry with the first transaction that waits."""
        return self._entries[0] if self._entries else self._open

    def has_before(self, limit: int | None) -> bool:
        """Tell whether a complete transaction with ``commit_lsn < limit`` waits."""
        if self._visible <= self._first:
            return False
        return limit is None or self._entries[0].first_lsn < limit

    def add(self, piece: Piece) -> None:
        """
        Append a piece; it is seen after `flush`.

        :raises TransientError: if the disk is full; see `drop_unseen`.
        """
        if not piece.end_lsn:
            # Part of a large transaction: what is complete must not wait for the rest of it.
            self.flush()
        entry = self._open
        if entry is None:
            entry = self._open = Entry(piece.commit_lsn, commit_time=piece.commit_time)
        if entry.pieces is not None:
            entry.pieces.append(piece)
        entry.last_lsn = piece.commit_lsn
        entry.size_bytes += piece.size_bytes
        if entry.size_bytes >= _ENTRY_BYTES:
            self._seal(entry, is_complete=bool(piece.end_lsn))

    def flush(self) -> None:
        """
        Let complete transactions be seen.

        :raises TransientError: if the disk is full; see `drop_unseen`.
        """
        entry = self._open
        if entry is not None and entry.pieces and entry.pieces[-1].end_lsn:
            self._seal(entry, is_complete=True)

    def next_after(self, number: int) -> tuple[int, Entry] | None:
        """
        Return the first visible entry with at least this number.

        :return: its number and itself.
        """
        number = max(number, self._first)
        if number >= self._visible:
            return None
        return number, self._entries[number - self._first]

    def load(self, entry: Entry) -> list[Piece]:
        """Return an entry's pieces; without the lock, for it may read from disk."""
        if entry.place is None:
            return entry.pieces or []
        pieces: list[Piece] = pickle.loads(self._spool.read(entry.place))  # noqa: S301  # our own
        return pieces

    def applied(self, position: int, following: Piece | None) -> None:
        """
        Forget transactions with ``commit_lsn < position``.

        :param following: the first one of the same entry that is left.
        """
        while self._first < self._visible and self._entries[0].last_lsn < position:
            entry = self._entries.popleft()
            self._first += 1
            if entry.place is None:
                self._in_memory -= entry.size_bytes
        if following is not None and self._entries:
            self._entries[0].first_lsn = following.commit_lsn
            self._entries[0].commit_time = following.commit_time
        place = next((e.place for e in self._entries if e.place is not None), None)
        if place is None:
            self._spool.clear()
        else:
            self._spool.drop_before(place)

    def drop_unseen(self) -> Entry | None:
        """
        Forget what could not be seen yet.

        :return: the first of it.
        """
        seen = self._visible - self._first
        unseen = [*self._entries][seen:]
        for entry in unseen:
            self._entries.pop()
            if entry.place is None:
                self._in_memory -= entry.size_bytes
        if self._open is not None:
            unseen.append(self._open)
            self._open = None
        return unseen[0] if unseen else None

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self._open = None
        self._first = self._visible
        self._in_memory = 0
        self._spool.clear()

    def _seal(self, entry: Entry, *, is_complete: bool) -> None:
        if self._in_memory + entry.size_bytes > self.memory_bytes:
            entry.place = self._spool.write(pickle.dumps(entry.pieces, pickle.HIGHEST_PROTOCOL))
            entry.pieces = None
        else:
            self._in_memory += entry.size_bytes
        self._open = None
        self._entries.append(entry)
        if is_complete:
            self._visible = self._first + len(self._entries)
