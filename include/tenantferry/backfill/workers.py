"""Copy many chunks with a few workers, and end all of them when one fails."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

import psycopg2
from psycopg2.extensions import connection

from tenantferry.backfill.chunk import TEXT_SETTINGS, Chunk
from tenantferry.backfill.copying import LOAD_SETTINGS, CopyJob, copy_chunk
from tenantferry.backfill.pace import Allowance
from tenantferry.backfill.pipe import ASK_AGAIN_SECONDS, CopyStoppedError
from tenantferry.backfill.progress import ProgressMeter
from tenantferry.connections import ConnectionParams, open_connection

_REFUSED = (
    "SELECT FROM pg_catalog.pg_stat_activity"
    " WHERE pid = %s AND state = 'idle in transaction (aborted)'"
)


@dataclass(frozen=True, slots=True)
class _Done:
    chunk: Chunk
    rows: int


class _Ended:
    """A worker has nothing more to do."""


def copy_chunks(
    job: CopyJob,
    chunks: Sequence[Chunk],
    *,
    workers: int,
    meter: ProgressMeter,
    allowance: Allowance,
    snapshot_at: float,
) -> int:
    """
    Copy chunks in the given order until all are done or the time is over. Commits each chunk.

    :param snapshot_at: ``time.monotonic()`` when the snapshot was taken.
    :return: how many were copied.
    :raises TenantferryError: the first failure of a worker, after all have ended.
    """
    pool = _Pool(job, chunks, allowance, deadline=snapshot_at + allowance.seconds)
    threads = [
        threading.Thread(target=pool.work, name=f"backfill {job.tenant} {number}", daemon=True)
        for number in range(min(workers, len(chunks)))
    ]
    copied = 0
    try:
        for thread in threads:
            thread.start()
        running = len(threads)
        while running:
            result = pool.wait_for_result(lambda: meter.report(pool.bytes))
            if isinstance(result, _Ended):
                running -= 1
                continue
            copied += 1
            meter.add_chunk(result.rows)
            meter.report(pool.bytes)
    finally:
        # Also when the caller is interrupted: nothing is written behind its back.
        pool.stop()
        for thread in threads:
            thread.join()
        pool.close()
    meter.report(pool.bytes, always=True)
    return copied


class _Pool:
    """Chunks to do, results to collect, and a way to end everything at once."""

    def __init__(
        self, job: CopyJob, chunks: Sequence[Chunk], allowance: Allowance, *, deadline: float
    ) -> None:
        self._job = job
        self._least_chunks = allowance.chunks
        self._deadline = deadline
        self._pending: queue.SimpleQueue[Chunk] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[_Done | _Ended | BaseException] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._sessions: list[connection] = []
        self._watch: connection | None = None
        self._watch_lock = threading.Lock()
        self.bytes = 0
        for chunk in chunks:
            self._pending.put(chunk)

    def wait_for_result(self, meanwhile: Callable[[], None]) -> _Done | _Ended:
        """
        Return the next chunk that is done, or the end of a worker.

        :param meanwhile: called every second until then.
        :raises TenantferryError: what a worker failed with.
        """
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
        """Copy chunks until none are left or the time is over; the body of a worker thread."""
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
            self._results.put(_Ended())
        except Exception as error:  # noqa: BLE001 - a thread's boundary: the caller raises it
            self._results.put(error)
        else:
            self._results.put(_Ended())

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
        copied = 0
        # A round is not held open by it: beyond the deadline the last chunks are copied at once.
        turns = self._job.throttle.turns(until=self._deadline)
        while not self._stop.is_set():
            if not turns.may_go():
                self._stop.wait(ASK_AGAIN_SECONDS)
                continue
            if copied >= self._least_chunks and time.monotonic() >= self._deadline:
                return
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
                may_go=turns.may_go,
            )
            copied += 1
            self._results.put(_Done(chunk, rows))

    def _count_bytes(self, size: int) -> None:
        with self._lock:
            self.bytes += size
