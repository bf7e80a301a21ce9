"""From the source's messages to batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tenantferry.stream.batch import CHANGE_OVERHEAD_BYTES, Batch
from tenantferry.stream.drift import DriftError
from tenantferry.stream.marker import MARKER_PREFIX
from tenantferry.stream.netchange import BrokenStreamError, Changes
from tenantferry.stream.pgoutput import (
    Begin,
    Commit,
    Delete,
    Insert,
    LogicalMessage,
    Origin,
    Relation,
    Truncate,
    Type,
    Update,
    decode,
)
from tenantferry.stream.relations import Relations
from tenantferry.stream.walsender import Walsender

# After so many messages the stream looks at its other duties.
_MESSAGES_PER_TURN = 2000


class Reader:
    """
    Collects what the source sends into `batch`.

    :param position: transactions with a lower ``commit_lsn`` are applied already.
    :ivar batch: what was read and not yet taken.
    :ivar limit: the first transaction with ``commit_lsn >= limit`` is not read.
    :ivar has_reached_limit: whether such a transaction has come; it waits.
    :ivar in_transaction: whether the batch ends inside a transaction of the source.
    :ivar has_more: whether the last turn ended before the messages did.
    """

    def __init__(self, walsender: Walsender, relations: Relations, *, position: int) -> None:
        self._walsender = walsender
        self._relations = relations
        self._position = position
        self._changes: dict[int, Changes | None] = {}
        self._waiting: Begin | None = None
        self._size = 0
        self._commit_lsn = 0
        self.batch = Batch()
        self.limit: int | None = None
        self.in_transaction = False
        self.has_more = False
        self._take: dict[type, Callable[[Any], None]] = {
            Begin: self._begin,
            Commit: self._commit,
            Relation: self._relation,
            Insert: self._insert,
            Update: self._update,
            Delete: self._delete,
            Truncate: self._truncate,
            LogicalMessage: self._logical_message,
        }

    @property
    def has_reached_limit(self) -> bool:
        """Whether everything before the limit is read."""
        return self._waiting is not None and self._is_beyond(self._waiting)

    @property
    def is_idle(self) -> bool:
        """Whether everything that has come was taken."""
        return self.batch.is_empty and not self.in_transaction and self._waiting is None

    def take_batch(self) -> Batch:
        """Hand over what was collected, and start anew."""
        taken, self.batch = self.batch, Batch()
        taken.is_complete = not self.in_transaction
        self._changes.clear()
        return taken

    def read(self, *, byte_limit: int, until_commit: bool) -> None:
        """
        Collect what has arrived; never wait.

        :param byte_limit: end the turn when the batch is as large as that.
        :param until_commit: end the turn at the first commit.
        :raises TenantferryError: if the stream cannot go on.
        """
        self.has_more = False
        if self._waiting is not None:
            if self._is_beyond(self._waiting):
                return
            waiting, self._waiting = self._waiting, None
            self._begin(waiting)
        batch = self.batch
        for number, (message, size) in enumerate(self._walsender.read(decode)):
            kind = type(message)
            take = self._take.get(kind)
            if take is not None:
                self._size = size
                take(message)
            elif kind is not Type and kind is not Origin:
                raise BrokenStreamError(f"a message {kind.__name__} was not expected")
            if self._waiting is not None:
                return
            if (
                batch.size_bytes >= byte_limit
                or (until_commit and kind is Commit)
                or number >= _MESSAGES_PER_TURN
            ):
                self.has_more = True
                return

    def _is_beyond(self, begin: Begin) -> bool:
        return self.limit is not None and begin.final_lsn >= self.limit

    def _begin(self, message: Begin) -> None:
        if self._is_beyond(message):
            self._waiting = message
            return
        if message.final_lsn < self._position:
            # START_REPLICATION leaves these out; applying one twice would break the invariant.
            raise BrokenStreamError("the source sent a transaction that is applied already")
        self._commit_lsn = message.final_lsn
        self.in_transaction = True

    def _commit(self, message: Commit) -> None:
        self.in_transaction = False
        batch = self.batch
        batch.transactions += 1
        batch.position = self._position = message.end_lsn
        batch.commit_time = message.commit_time

    def _relation(self, message: Relation) -> None:
        with self._commit_lsn_told():
            self._relations.learn(message)
        # The next change is looked up anew, whatever it is of.
        self._changes.clear()

    @contextmanager
    def _commit_lsn_told(self) -> Iterator[None]:
        try:
            yield
        except DriftError as drift:
            drift.commit_lsn = self._commit_lsn
            raise

    def _insert(self, message: Insert) -> None:
        changes = self._changes_of(message.relation)
        if changes is not None:
            changes.insert(message.new)

    def _update(self, message: Update) -> None:
        changes = self._changes_of(message.relation)
        if changes is not None:
            changes.update(message.old, message.new, is_whole=message.is_whole)

    def _delete(self, message: Delete) -> None:
        changes = self._changes_of(message.relation)
        if changes is not None:
            changes.delete(message.old)

    def _truncate(self, message: Truncate) -> None:
        if tables := self._relations.truncated(message.relations):
            self.batch.truncate(tables)
            self.batch.changes += 1
            self._changes.clear()

    def _logical_message(self, message: LogicalMessage) -> None:
        # One that is not transactional comes out of order and says nothing about commits.
        if message.transactional and message.prefix == MARKER_PREFIX:
            self.batch.markers.append(message.content)

    def _changes_of(self, oid: int) -> Changes | None:
        try:
            changes = self._changes[oid]
        except KeyError:
            with self._commit_lsn_told():
                table = self._relations[oid]
            changes = None if table is None else self.batch.changes_of(table)
            self._changes[oid] = changes
        if changes is not None:
            batch = self.batch
            batch.changes += 1
            batch.size_bytes += self._size + CHANGE_OVERHEAD_BYTES
        return changes
