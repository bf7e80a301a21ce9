"""Compare all chunks, a few at a time."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from uuid import UUID

import psycopg2

from tenantferry.backfill.chunk import Chunk
from tenantferry.backfill.failures import describe_failure
from tenantferry.control.validations import Difference
from tenantferry.errors import TransientError
from tenantferry.failpoints import Point, reach
from tenantferry.schema.model import Table
from tenantferry.validation.alignment import Lane, View
from tenantferry.validation.digest import RowSet, read_digest, rows_of_chunk
from tenantferry.validation.rows import Side, find_differences

# A person reads these; the total says how many more there are.
MAX_NAMED = 20


@dataclass(frozen=True, slots=True)
class ChunkComparison:
    """
    What one chunk showed.

    :ivar rows: on the source.
    :ivar target_rows: of the tenant in the target.
    :ivar differences: the first of *mismatches*.
    :ivar seconds: how long it took.
    """

    chunk: Chunk
    rows: int
    target_rows: int
    mismatches: int
    differences: tuple[Difference, ...]
    seconds: float


def sum_seconds(compared: Iterable[ChunkComparison]) -> dict[str, float]:
    """Return how long the chunks of each table took one lane, by ``schema.table``."""
    seconds: dict[str, float] = {}
    for found in compared:
        label = found.chunk.label
        seconds[label] = seconds.get(label, 0.0) + found.seconds
    return seconds


def compare_chunks(
    view: View, chunks: Sequence[tuple[Chunk, Table]], *, tenant_id: UUID
) -> list[ChunkComparison]:
    """
    Compare chunks on all lanes of a view.

    :raises TransientError: if the servers could not say; that is no mismatch.
    """
    pending: queue.SimpleQueue[tuple[Chunk, Table]] = queue.SimpleQueue()
    for item in chunks:
        pending.put(item)
    stop = threading.Event()
    with (
        ThreadPoolExecutor(len(view.lanes)) as helpers,
        ThreadPoolExecutor(len(view.lanes)) as lanes,
    ):
        work = _Work(pending, stop, helpers, tenant_id)
        futures = [lanes.submit(work.run, lane) for lane in view.lanes]
        try:
            return [found for future in futures for found in future.result()]
        finally:
            if not all(future.done() for future in futures):
                # A lane failed, or the caller was interrupted: do not wait for the others.
                stop.set()
                view.cancel()


@dataclass(frozen=True, slots=True)
class _Work:
    pending: queue.SimpleQueue[tuple[Chunk, Table]]
    stop: threading.Event
    helpers: ThreadPoolExecutor
    tenant_id: UUID

    def run(self, lane: Lane) -> list[ChunkComparison]:
        found: list[ChunkComparison] = []
        try:
            while not self.stop.is_set():
                try:
                    chunk, table = self.pending.get_nowait()
                except queue.Empty:
                    break
                found.append(compare_chunk(lane, chunk, table, self.tenant_id, self.helpers))
        except BaseException:
            self.stop.set()
            raise
        return found


def compare_chunk(
    lane: Lane, chunk: Chunk, table: Table, tenant_id: UUID, helpers: ThreadPoolExecutor
) -> ChunkComparison:
    """
    Compare one chunk, and name its differing rows if there are any.

    :param helpers: one thread of it digests the target's side meanwhile.
    """
    started = time.monotonic()
    found = compare_rows(
        lane,
        rows_of_chunk(chunk, table, tenant_id=None),
        rows_of_chunk(chunk, table, tenant_id=tenant_id),
        helpers,
    )
    seconds = time.monotonic() - started
    return ChunkComparison(
        chunk, found.rows, found.target_rows, found.mismatches, found.differences, seconds
    )


@dataclass(frozen=True, slots=True)
class RowComparison:
    """
    What rows of one table showed; see `ChunkComparison`.
    """

    rows: int
    target_rows: int
    mismatches: int
    differences: tuple[Difference, ...]


def compare_rows(
    lane: Lane, source_rows: RowSet, target_rows: RowSet, helpers: ThreadPoolExecutor
) -> RowComparison:
    """
    Compare rows of one table, and name those that differ.

    :param helpers: one thread of it digests the target's side meanwhile.
    """
    label = source_rows.table.label
    try:
        reach(Point.COMPARING)
        future = helpers.submit(read_digest, lane.target, target_rows)
        try:
            ours = read_digest(lane.source, source_rows)
        finally:
            theirs = future.result()
        if ours == theirs:
            return RowComparison(ours.rows, theirs.rows, 0, ())
        found = find_differences(
            Side(lane.source, source_rows),
            Side(lane.target, target_rows),
            count=max(ours.rows, theirs.rows),
        )
        named = tuple(islice(found, MAX_NAMED))
        mismatches = len(named) + sum(1 for _ in found)
    except psycopg2.Error as error:
        raise describe_failure(error, doing=f'compare table "{label}"') from None
    if not mismatches:
        raise TransientError(
            f'could not tell whether rows of table "{label}" match',
            detail="Their digests differ, but none of the rows does.",
        )
    return RowComparison(ours.rows, theirs.rows, mismatches, named)
