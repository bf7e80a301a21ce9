"""From what waits in a lane to batches for its source."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from operator import itemgetter

from tenantferry.reverse.change import INSERT, TRUNCATE, UPDATE_WHOLE, Piece
from tenantferry.reverse.lane import Lane
from tenantferry.reverse.tables import SourceTables
from tenantferry.stream.batch import Batch
from tenantferry.stream.netchange import BrokenStreamError, Changes
from tenantferry.stream.pgoutput import Field

_number_of = itemgetter(0)


class Collector:
    """
    Takes transactions from the front of a lane and nets them.

    What it has taken stays in the lane until the lane is told that it is applied.

    :param batch_bytes: about how much is netted at once.
    """

    def __init__(self, lane: Lane, tables: SourceTables, *, batch_bytes: int) -> None:
        self._lane = lane
        self._tables = tables
        self._batch_bytes = batch_bytes
        self._waiting: deque[Piece] = deque()
        # Number of the next entry of the lane.
        self._number = 0

    @property
    def following(self) -> Piece | None:
        """What was taken from the lane and not collected yet."""
        return self._waiting[0] if self._waiting else None

    def collect(self, *, position: int, limit: int | None) -> Iterator[Batch]:
        """
        Yield what the next transaction of the source shall do, in parts that fit into memory.

        Only the last part is complete. Nothing is yielded where nothing waits.

        :param position: transactions with a lower ``commit_lsn`` are applied already.
        :param limit: transactions with ``commit_lsn >= limit`` stay; ``None``: none does.
        :raises DriftError: if a table looks different in the source.
        """
        batch = Batch()
        is_inside = False
        while (piece := self._peek(position)) is not None:
            if not is_inside and self._has_to_wait(piece, batch, limit):
                break
            self._waiting.popleft()
            self._net(batch, piece)
            is_inside = not piece.end_lsn
            if not is_inside:
                batch.transactions += 1
                batch.position, batch.commit_time = piece.end_lsn, piece.commit_time
            if batch.size_bytes >= self._batch_bytes:
                if not is_inside:
                    break
                yield batch
                batch = Batch()
        if is_inside:
            raise BrokenStreamError("a transaction of the target is not complete")
        if batch.transactions:
            batch.is_complete = True
            yield batch

    def _peek(self, position: int) -> Piece | None:
        waiting = self._waiting
        while not waiting or waiting[0].commit_lsn < position:
            if waiting:
                waiting.popleft()
                continue
            found = self._lane.next_entry(self._number)
            if found is None:
                return None
            number, pieces = found
            self._number = number + 1
            waiting.extend(pieces)
        return waiting[0]

    def _has_to_wait(self, piece: Piece, batch: Batch, limit: int | None) -> bool:
        if limit is not None and piece.commit_lsn >= limit:
            return True
        # A table of a new shape may have to wait until its source has it, too: what was committed
        # before must not wait with it.
        return bool(batch.transactions) and not all(
            map(self._tables.knows, set(map(_number_of, piece.changes)))
        )

    def _net(self, batch: Batch, piece: Piece) -> None:
        batch.changes += len(piece.changes)
        batch.size_bytes += piece.size_bytes
        nets: dict[int, tuple[Changes | None, tuple[int, ...]]] = {}
        for number, kind, old, new in piece.changes:
            if kind == TRUNCATE:
                self._truncate(batch, number)
                nets.clear()
                continue
            net = nets.get(number)
            if net is None:
                table, computed = self._tables.find(number)
                net = nets[number] = (
                    None if table is None else batch.changes_of(table),
                    computed,
                )
            changes, computed = net
            if changes is None:
                continue
            before = _without(old, computed) if computed else old
            after = _without(new, computed) if computed else new
            if after is None:
                changes.delete(before or [])
            elif kind == INSERT:
                changes.insert(after)
            else:
                changes.update(before, after, is_whole=kind == UPDATE_WHOLE)

    def _truncate(self, batch: Batch, number: int) -> None:
        if not self._tables.exists(number):
            # Another tenant's table: this source has no rows of it.
            return
        table, _ = self._tables.find(number)
        if table is not None:
            batch.truncate([table])


def _without(row: list[Field] | None, positions: tuple[int, ...]) -> list[Field] | None:
    if row is None:
        return None
    return [field for i, field in enumerate(row) if i not in positions]
