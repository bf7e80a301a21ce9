"""Show moves while they run: bars on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from types import TracebackType
from typing import Protocol, Self

from psycopg2.extensions import connection
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

# Often enough to see that it moves; a log of an hour still reads well.
_PLAIN_INTERVAL_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Progress:
    """
    Where the move of one tenant stands.

    :ivar rows: copied so far; the estimate comes from statistics and may be off.
    :ivar lag_seconds: ``None`` is unknown, which is not zero.
    :ivar error: why its stream is not running, or nothing.
    """

    tenant: str
    phase: str = "waiting"
    rows: int = 0
    estimated_rows: int = 0
    is_copied: bool = False
    lag_seconds: float | None = None
    changes: int = 0
    error: str | None = None

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

    :ivar task: the Airflow tasks that run now.
    """

    progress: Progress
    task: str
    requests: int
    failed: int


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
        cursor.execute("SELECT to_regclass('tenantferry.tenants') IS NOT NULL")
        if cursor.fetchone() == (False,):
            return {}
        query = resources.files("tenantferry.local").joinpath("progress.sql")
        cursor.execute(query.read_text("utf-8"))
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
        for name in ("tenant", "phase", "copied", "rows", "lag", "changes", "requests", "failed",
                     "running"):  # fmt: skip
            table.add_column(name)
        for view in views:
            progress = view.progress
            table.add_row(
                progress.tenant,
                progress.phase,
                ProgressBar(total=1.0, completed=progress.copied_fraction, width=24),
                f"{progress.rows:,}",
                tell_lag(progress.lag_seconds),
                f"{progress.changes:,}",
                f"{view.requests:,}",
                f"{view.failed:,}",
                view.task,
            )
        self._live.update(table, refresh=True)


class PlainDisplay:
    """A line per tenant, when its phase changes or some seconds have passed."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._shown: dict[str, tuple[str, str, float]] = {}

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
            progress = view.progress
            phase, task, at = self._shown.get(progress.tenant, ("", "", 0.0))
            is_new = (phase, task) != (progress.phase, view.task)
            if is_new or (view.task and now - at >= _PLAIN_INTERVAL_SECONDS):
                self._shown[progress.tenant] = (progress.phase, view.task, now)
                print(f"{now - self._began:7.1f}s  {tell_line(view)}", flush=True)


def tell_line(view: View) -> str:
    """Return one line about one tenant."""
    progress = view.progress
    return (
        f"{progress.tenant:<12} {progress.phase:<12} copied {progress.copied_fraction:4.0%}"
        f" ({progress.rows:,} rows)  lag {tell_lag(progress.lag_seconds)}"
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
