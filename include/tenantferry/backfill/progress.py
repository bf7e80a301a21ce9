"""How far a backfill has come."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BackfillProgress:
    """
    Progress at one moment.

    :ivar rows: of the chunks that are done, in all rounds.
    :ivar estimated_rows: of all chunks, from the sample that cut them.
    :ivar bytes: of COPY data, also of the chunks in flight.
    :ivar seconds: of this round.
    :ivar rows_per_second: of this round.
    :ivar eta_seconds: ``None`` until a chunk of this round is done.
    :ivar round: from 1.
    :ivar snapshot_seconds: age of the snapshot that this round copies.
    """

    rows: int
    estimated_rows: int
    chunks: int
    total_chunks: int
    bytes: int
    seconds: float
    rows_per_second: float
    eta_seconds: float | None
    round: int
    snapshot_seconds: float


@dataclass(frozen=True, slots=True)
class Copied:
    """What earlier rounds have copied."""

    rows: int = 0
    chunks: int = 0
    bytes: int = 0


class ProgressMeter:
    """
    Counts the chunks of one round for one thread, and reports at most once a second.

    :param report: called with the progress.
    :param estimated_rows: of all chunks of the backfill, as *chunks* is their number.
    :param snapshot_at: ``time.monotonic()`` when the round's snapshot was taken.
    """

    def __init__(
        self,
        report: Callable[[BackfillProgress], None],
        *,
        estimated_rows: int,
        chunks: int,
        before: Copied,
        round_number: int,
        snapshot_at: float,
    ) -> None:
        self._report = report
        self._estimated_rows, self._total_chunks = estimated_rows, chunks
        self._before = before
        self._round, self._snapshot_at = round_number, snapshot_at
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
        rows, chunks = self._before.rows + self._rows, self._before.chunks + self._chunks
        remaining = 0 if chunks == self._total_chunks else max(0, self._estimated_rows - rows)
        self._report(
            BackfillProgress(
                rows=rows,
                estimated_rows=self._estimated_rows,
                chunks=chunks,
                total_chunks=self._total_chunks,
                bytes=self._before.bytes + bytes_copied,
                seconds=seconds,
                rows_per_second=speed,
                eta_seconds=remaining / speed if speed else None,
                round=self._round,
                snapshot_seconds=now - self._snapshot_at,
            )
        )
