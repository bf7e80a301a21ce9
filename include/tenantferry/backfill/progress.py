"""How far a backfill has come."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BackfillProgress:
    """
    Progress at one moment.

    :ivar rows: of the chunks that are done.
    :ivar estimated_rows: of all chunks, from the sample that cut them.
    :ivar bytes: of COPY data, also of the chunks in flight.
    :ivar eta_seconds: ``None`` until a chunk is done.
    """

    rows: int
    estimated_rows: int
    chunks: int
    total_chunks: int
    bytes: int
    seconds: float
    rows_per_second: float
    eta_seconds: float | None


class ProgressMeter:
    """
    Counts for one thread, and reports at most once a second.

    :param report: called with the progress.
    """

    def __init__(
        self, report: Callable[[BackfillProgress], None], *, estimated_rows: int, chunks: int
    ) -> None:
        self._report = report
        self._estimated_rows, self._total_chunks = estimated_rows, chunks
        self._rows = self._chunks = 0
        self._started = time.monotonic()
        self._reported = self._started

    def add_chunk(self, rows: int) -> None:
        """Count a chunk that is done."""
        self._rows += rows
        self._chunks += 1

    def report(self, bytes_copied: int, *, always: bool = False) -> None:
        """Report, unless that happened less than a second ago."""
        now = time.monotonic()
        if not always and now - self._reported < 1.0:
            return
        self._reported = now
        seconds = now - self._started
        speed = self._rows / seconds if seconds else 0.0
        remaining = max(0, self._estimated_rows - self._rows)
        if self._chunks == self._total_chunks:
            remaining = 0
        self._report(
            BackfillProgress(
                rows=self._rows,
                estimated_rows=self._estimated_rows,
                chunks=self._chunks,
                total_chunks=self._total_chunks,
                bytes=bytes_copied,
                seconds=seconds,
                rows_per_second=speed,
                eta_seconds=remaining / speed if speed else None,
            )
        )
