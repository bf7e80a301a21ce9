"""What a client measures of its own requests."""

from __future__ import annotations

import json
import math
import threading
import time
from array import array
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

# A server that is down fails every request: the first texts tell why as well as all of them.
_KEPT_FAILURES = 50


@dataclass(frozen=True, slots=True)
class Summary:
    """
    A client's account of itself.

    :ivar requests: transactions that it sent, reading and writing.
    :ivar failed: those that did not end with the answer a user hopes for.
    :ivar acknowledged_writes: rows written by transactions whose COMMIT returned.
    :ivar p99_latency_ms: from the moment a request was due, so that waiting behind a slow one
        counts. The percentiles are ``None`` until the client has finished.
    :ivar failures: the first failures, told in sentences.
    :ivar note: what a reader of the numbers must know, or nothing.
    """

    requests: int
    failed: int
    acknowledged_writes: int
    p50_latency_ms: float | None
    p99_latency_ms: float | None
    max_latency_ms: float | None
    failures: tuple[str, ...]
    written_at: float
    finished: bool
    note: str = ""


class Measurements:
    """The counters of one client; used by all its threads."""

    def __init__(self, *, note: str = "") -> None:
        self._lock = threading.Lock()
        self._latencies = array("d")
        self._failed = 0
        self._writes = 0
        self._failures: list[str] = []
        self._note = note

    def record(self, latency_seconds: float, *, writes: int = 0, failure: str = "") -> None:
        """Count one request."""
        with self._lock:
            self._latencies.append(latency_seconds)
            self._writes += writes
            if failure:
                self._failed += 1
                if len(self._failures) < _KEPT_FAILURES:
                    self._failures.append(failure)

    def summarize(self, *, finished: bool) -> Summary:
        """Return the numbers so far; the percentiles, which need a sort, only at the end."""
        with self._lock:
            ordered = sorted(self._latencies) if finished else []
            return Summary(
                requests=len(self._latencies),
                failed=self._failed,
                acknowledged_writes=self._writes,
                p50_latency_ms=_percentile_ms(ordered, 0.50),
                p99_latency_ms=_percentile_ms(ordered, 0.99),
                max_latency_ms=_percentile_ms(ordered, 1.0),
                failures=tuple(self._failures),
                written_at=time.time(),
                finished=finished,
                note=self._note,
            )


def write_summary(summary: Summary, path: Path) -> None:
    """Replace the file at once, so that a reader never sees half of it."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(asdict(summary), indent=2), "utf-8")
    partial.replace(path)


def read_summary(path: Path) -> Summary | None:
    """Return the last summary, or ``None`` where there is none yet."""
    try:
        document: Mapping[str, object] = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    values = {field.name: document[field.name] for field in fields(Summary)}
    values["failures"] = tuple(document["failures"])  # type: ignore[arg-type]  # our own JSON
    return Summary(**values)  # type: ignore[arg-type]  # the same


def _percentile_ms(ordered: list[float], fraction: float) -> float | None:
    if not ordered:
        return None
    rank = max(math.ceil(fraction * len(ordered)), 1)
    return round(ordered[rank - 1] * 1000, 1)
