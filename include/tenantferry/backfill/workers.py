"""Copy many chunks with a few workers, and end all of them when one fails."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

import psycopg2
from psycopg2.extensions import connection

from tenantferry.backfill.chunk import TEXT_SETTINGS, Chunk
from tenantferry.backfill.copying import LOAD_SETTINGS, CopyJob, copy_chunk
from tenantferry.backfill.pipe import CopyStoppedError
from tenantferry.backfill.progress import BackfillProgress, ProgressMeter
from tenantferry.connections import ConnectionParams, open_connection

_REFUSED = (
    "SELECT FROM pg_catalog.pg_stat_activity"
    " WHERE pid = %s AND state = 'idle in transaction (aborted)'"
)


@dataclass(frozen=True, slots=True)
class _Done:
    chunk: Chunk
    rows: int


def copy_chunks(
    job: CopyJob,
    chunks: Sequence[Chunk],
    *,
    workers: int,
    report: Callable[[BackfillProgress], None],
) -> None:
    """
    Copy chunks in the given order until all are done. Commits each chunk.

    :raises TenantferryError: the first failure of a worker, after all have ended.
    """
    pool = _Pool(job, chunks)
    threads = [
        threading.Thread(target=pool.work, name=f"backfill {job.tenant} {number}", daemon=True)
        for number in range(min(workers, len(chunks)))
    ]
    meter = ProgressMeter(
        report, estimated_rows=sum(c.estimated_rows for c in chunks), chunks=len(chunks)
    )
    try:
        for thread in threads:
            thread.start()
        for _ in range(len(chunks)):
            meter.add_chunk(pool.wait_for_chunk(lambda: meter.report(pool.bytes)).rows)
            meter.report(pool.bytes)
    finally:
        # Also when the caller is interrupted: nothing is written behind its back.
        pool.stop()
        for thread in threads:
            thread.join()
        pool.close()
    meter.report(pool.bytes, always=True)


class _Pool:
    """Chunks to do, results to collect, and a way to end everything at once."""

    def __init__(self, job: CopyJob, chunks: Sequence[Chunk]) -> None:
        self._job = job
        self._pending: queue.SimpleQueue[Chunk] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[_Done | BaseException] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._sessions: list[connection] = []
        self._watch: connection | None = None
        self._watch_lock = threading.Lock()
        self.bytes = 0
        for chunk in chunks:
            self._pending.put(chunk)

    def wait_for_chunk(self, meanwhile: Callable[[], None]) -> _Done:
        """Return the next chunk that is done, calling *meanwhile* every second until then."""
        while True:
            try:
                result = self._results.get(timeout=1.0)
            except queue.Empty:
                meanwhile()
                continue
            if isinstance(result, BaseException):
                raise result
            return result

    def stop(self) -> None:
        """Make every worker end soon, whatever it waits for."""
        self._stop.set()
        with self._lock:
            for session in self._sessions:
                with contextlib.suppress(psycopg2.Error):
                    session.cancel()

    def close(self) -> None:
        """Give up what the workers shared, when they have ended."""
        if self._watch is not None:
            self._watch.close()

    def work(self) -> None:
        """Copy chunks until none are left; the body of a worker thread."""
        try:
            with (
                closing(self._open(self._job.source, {})) as source,
                closing(self._open(self._job.target, LOAD_SETTINGS)) as target,
            ):
                self._enlist(source, target)
                try:
                    self._copy_pending(source, target)
                finally:
                    self._dismiss(source, target)
        except CopyStoppedError:
            return
        except Exception as error:  # noqa: BLE001 - a thread's boundary: the caller raises it
            self._results.put(error)

    def _is_refused(self, pid: int) -> bool:
        """Whether a COPY into the target has failed, seen by another session."""
        with self._watch_lock:
            if self._watch is None:
                self._watch = open_connection(
                    self._job.target, purpose=self._job.purpose, autocommit=True
                )
            with self._watch.cursor() as cursor:
                cursor.execute(_REFUSED, (pid,))
                return bool(cursor.rowcount)

    def _open(self, params: ConnectionParams, settings: dict[str, str]) -> connection:
        return open_connection(
            params, purpose=self._job.purpose, settings={**TEXT_SETTINGS, **settings}
        )

    def _enlist(self, *sessions: connection) -> None:
        with self._lock:
            self._sessions += sessions

    def _dismiss(self, *sessions: connection) -> None:
        # A closed session cannot be cancelled; stop() must not meet one.
        with self._lock:
            for session in sessions:
                self._sessions.remove(session)

    def _copy_pending(self, source: connection, target: connection) -> None:
        while not self._stop.is_set():
            try:
                chunk = self._pending.get_nowait()
            except queue.Empty:
                return
            rows = copy_chunk(
                self._job,
                chunk,
                source,
                target,
                stop=self._stop,
                is_refused=lambda: self._is_refused(target.info.backend_pid),
                count_bytes=self._count_bytes,
            )
            self._results.put(_Done(chunk, rows))

    def _count_bytes(self, size: int) -> None:
        with self._lock:
            self.bytes += size
