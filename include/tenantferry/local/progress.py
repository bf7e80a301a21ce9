"""Show moves while they run: bars on a terminal, lines elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from psycopg2.extensions import connection
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

# Often enough to see that it moves; a log of an hour still reads well.
_PLAIN_INTERVAL_SECONDS = 5.0

_READ = """
SELECT tenant, phase, rows, estimated_rows, coalesce(chunks_done = nullif(chunks, 0), false),
       lag_seconds, changes, rows_per_second, eta_seconds
FROM tenantferry.progress
"""


@dataclass(frozen=True, slots=True)
class Progress:
    """
    Where the move of one tenant stands.

    :ivar rows: copied so far; the estimate comes from statistics and may be off.
    :ivar lag_seconds: ``None`` is unknown, which is not zero.
    :ivar rows_per_second: of the copy; ``None`` before its first rows.
    :ivar eta_seconds: until the copy ends; ``None`` is unknown.
    """

    tenant: str
    phase: str = "waiting"
    rows: int = 0
    estimated_rows: int = 0
    is_copied: bool = False
    lag_seconds: float | None = None
    changes: int = 0
    rows_per_second: float | None = None
    eta_seconds: float | None = None

    @property
    def copied_fraction(self) -> float:
        """How much is copied, from 0 to 1; 1 only when all is."""
        if self.is_copied:
            return 1.0
        return min(self.rows / self.estimated_rows, 0.99) if self.estimated_rows else 0.0


@dataclass(frozen=True, slots=True)
class View:
    """
    What is shown of one tenant.

    :ivar task: the Airflow tasks that run now, or how the run ended.
    :ivar is_over: nothing more will come of the run.
    """

    progress: Progress
    task: str
    requests: int
    failed: int
    is_over: bool = False


class Display(Protocol):
    """Somewhere to show moves."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def show(self, views: Sequence[View]) -> None:
        """Show the present state."""


def read_progress(target: connection) -> dict[str, Progress]:
    """
    Read the control schema; empty before the first preparation.

    :param target: in autocommit.
    """
    with target.cursor() as cursor:
        cursor.execute("SELECT to_regclass('tenantferry.progress') IS NOT NULL")
        if cursor.fetchone() == (False,):
            return {}
        cursor.execute(_READ)
        return {row[0]: Progress(*row) for row in cursor.fetchall()}


def choose_display(console: Console) -> Display:
    """Return bars for a terminal, plain lines for a file or a pipe."""
    return BarDisplay(console) if console.is_terminal else PlainDisplay()


class BarDisplay:
    """A table with a bar per tenant, drawn again in place."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=False)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._live.stop()

    def show(self, views: Sequence[View]) -> None:
        """Draw the present state."""
        table = Table(box=None, padding=(0, 2, 0, 0))
        for name in ("tenant", "phase", "copied", "rows", "rows/s", "left", "lag", "changes",
                     "requests", "failed", "running"):  # fmt: skip
            table.add_column(name)
        for view in views:
            progress = view.progress
            table.add_row(
                progress.tenant,
                progress.phase,
                ProgressBar(total=1.0, completed=progress.copied_fraction, width=24),
                f"{progress.rows:,}",
                tell_rate(progress.rows_per_second),
                tell_eta(progress.eta_seconds),
                tell_lag(progress.lag_seconds),
                f"{progress.changes:,}",
                f"{view.requests:,}",
                f"{view.failed:,}",
                view.task,
            )
        self._live.update(table, refresh=True)


class PlainDisplay:
    """
    A line per tenant when its phase or task changes, and every few seconds while it gets on.

    Nothing more is said of a tenant whose run is over, or of one that stands still.
    """

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._shown: dict[str, tuple[View, float]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        sys.stdout.flush()

    def show(self, views: Sequence[View]) -> None:
        """Print what is new."""
        now = time.monotonic()
        for view in views:
            tenant = view.progress.tenant
            if self._is_news(view, now):
                self._shown[tenant] = (view, now)
                print(f"{now - self._began:7.1f}s  {tell_line(view)}", flush=True)

    def _is_news(self, view: View, now: float) -> bool:
        if view.progress.tenant not in self._shown:
            return True
        last, at = self._shown[view.progress.tenant]
        if (last.progress.phase, last.task) != (view.progress.phase, view.task):
            return True
        if view.is_over or now - at < _PLAIN_INTERVAL_SECONDS:
            return False
        return _milestones(last.progress) != _milestones(view.progress)


def _milestones(progress: Progress) -> tuple[object, ...]:
    """Return what changes only when the move gets on; a rate changes by the clock alone."""
    return (progress.rows, progress.changes, progress.is_copied)


def tell_line(view: View) -> str:
    """Return one line about one tenant."""
    progress = view.progress
    pace = ""
    if not progress.is_copied and progress.rows_per_second is not None:
        pace = f", {tell_rate(progress.rows_per_second)} rows/s, {tell_eta(progress.eta_seconds)}"
    return (
        f"{progress.tenant:<12} {progress.phase:<12} copied {progress.copied_fraction:4.0%}"
        f" ({progress.rows:,} rows{pace})  lag {tell_lag(progress.lag_seconds)}"
        f"  changes {progress.changes:,}  requests {view.requests:,} ({view.failed:,} failed)"
        f"  {view.task}"
    )


def tell_lag(lag_seconds: float | None) -> str:
    """
    Return a lag to read.

    >>> tell_lag(None), tell_lag(0.0123), tell_lag(12.3)
    ('unknown', '12 ms', '12.3 s')
    """
    if lag_seconds is None:
        return "unknown"
    return f"{lag_seconds * 1000:.0f} ms" if lag_seconds < 1 else f"{lag_seconds:.1f} s"


def tell_rate(rows_per_second: float | None) -> str:
    """
    Return a rate to read.

    >>> tell_rate(None), tell_rate(12345.6)
    ('-', '12,346')
    """
    return "-" if rows_per_second is None else f"{rows_per_second:,.0f}"


def tell_eta(eta_seconds: float | None) -> str:
    """
    Return how long the copy will still take.

    >>> tell_eta(None), tell_eta(0), tell_eta(59.2), tell_eta(4000)
    ('-', '-', '1 min left', '67 min left')
    >>> tell_eta(12.2)
    '13 s left'
    """
    if not eta_seconds:
        return "-"
    seconds = math.ceil(eta_seconds)
    return f"{seconds} s left" if seconds < 60 else f"{math.ceil(seconds / 60)} min left"


def name_running(states: Mapping[str, str | None]) -> str:
    """
    Name the tasks that a person would look at now.

    >>> name_running({"prepare": "success", "backfill": "running", "probe": None})
    'backfill'
    >>> name_running({"backfill": "up_for_retry"})
    'backfill (up_for_retry)'
    """
    settled = (None, "success", "skipped", "scheduled", "queued", "removed")
    return ", ".join(
        task if state == "running" else f"{task} ({state})"
        for task, state in states.items()
        if state not in settled
    )
