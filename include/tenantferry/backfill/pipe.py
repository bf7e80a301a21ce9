"""
Binary COPY from one server into COPY on another, through a pipe of the kernel.

psycopg2 calls a file object once per row on the reading side of a COPY. A buffered file on a pipe
keeps that call in C, and the writing side takes a megabyte at a time. No row becomes a Python
object that outlives the call, and memory is bounded by the buffers.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import threading
import time
from collections.abc import Callable
from io import BufferedWriter, FileIO

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import connection

BUFFER_BYTES = 1 << 20
LOOK_SECONDS = 1.0
ASK_AGAIN_SECONDS = 0.1


class CopyStoppedError(Exception):
    """The copy was told to stop; somebody else knows why."""


class SourceFailedError(Exception):
    """
    The source side of a copy failed.

    :ivar cause: what the driver said.
    """

    def __init__(self, cause: Exception) -> None:
        super().__init__(cause)
        self.cause = cause


def copy_between(
    source: connection,
    target: connection,
    *,
    copy_out: sql.Composed,
    copy_in: sql.Composed,
    stop: threading.Event,
    is_refused: Callable[[], bool],
    count_bytes: Callable[[int], None],
    may_go: Callable[[], bool] = lambda: True,
) -> tuple[int, int]:
    """
    Run two COPY statements as one.

    After an error the source session is unusable, and the target's transaction is aborted.

    :param stop: set it to end the copy soon.
    :param is_refused: called every second; whether the target has given up already, which
        libpq tells only after the last row.
    :param count_bytes: called with the size of each piece.
    :param may_go: asked before each piece, again and again until it may be read.
    :return: rows read and rows written. The caller compares them.
    :raises SourceFailedError: if the source failed first.
    :raises CopyStoppedError: if *stop* was set.
    :raises psycopg2.Error: if the target failed.
    """
    read_end, write_end = os.pipe()
    _widen(write_end)
    outcome = _Source()
    reader = threading.Thread(target=outcome.run, args=(source, copy_out, write_end), daemon=True)
    with FileIO(read_end, "r") as piece_source, target.cursor() as cursor:
        pieces = _Pieces(
            piece_source, outcome, stop,
            is_refused=is_refused, count_bytes=count_bytes, may_go=may_go,
        )  # fmt: skip
        reader.start()
        try:
            cursor.copy_expert(copy_in, pieces, size=BUFFER_BYTES)
            written = cursor.rowcount
        except psycopg2.Error:
            # Our own refusal to go on comes back as an error of the server.
            if stop.is_set():
                raise CopyStoppedError from None
            outcome.raise_failure()
            raise
        finally:
            # The source's next write fails; a source that has nothing to write yet is cancelled.
            piece_source.close()
            if reader.is_alive() and not outcome.finished.is_set():
                with contextlib.suppress(psycopg2.Error):
                    source.cancel()
            reader.join()
    outcome.raise_failure()
    return outcome.rows, written


class _Source:
    """The thread that reads from the source, and how it ended."""

    def __init__(self) -> None:
        self.rows = 0
        self.failure: Exception | None = None
        self.finished = threading.Event()

    def run(self, source: connection, copy_out: sql.Composed, write_end: int) -> None:
        file = BufferedWriter(FileIO(write_end, "w"), BUFFER_BYTES)
        try:
            with source.cursor() as cursor:
                cursor.copy_expert(copy_out, file)
                self.rows = cursor.rowcount
            file.flush()
        except (psycopg2.Error, OSError) as error:
            # Before the pipe is closed: the other side must not take it for the end of the data.
            self.failure = error
        finally:
            self.finished.set()
            with contextlib.suppress(OSError):  # what is still buffered has no reader any more
                file.close()

    def raise_failure(self) -> None:
        # A broken pipe only says that the other side failed.
        if self.failure is not None and not isinstance(self.failure, OSError):
            raise SourceFailedError(self.failure)


class _Pieces:
    """The file that the target's COPY reads."""

    def __init__(
        self,
        file: FileIO,
        outcome: _Source,
        stop: threading.Event,
        *,
        is_refused: Callable[[], bool],
        count_bytes: Callable[[int], None],
        may_go: Callable[[], bool],
    ) -> None:
        self._file, self._outcome, self._may_go = file, outcome, may_go
        self._stop, self._is_refused, self._count_bytes = stop, is_refused, count_bytes
        self._next_look = time.monotonic() + LOOK_SECONDS

    def read(self, size: int = BUFFER_BYTES, /) -> bytes:
        self._look()
        while not self._may_go():
            self._stop.wait(ASK_AGAIN_SECONDS)
            self._look()
        # A source may take long to send its first row.
        while not select.select([self._file], [], [], LOOK_SECONDS)[0]:
            self._look()
        piece = self._file.read(size) or b""
        if not piece and self._outcome.failure is not None:
            raise SourceFailedError(self._outcome.failure)
        self._count_bytes(len(piece))
        return piece

    def _look(self) -> None:
        if self._stop.is_set():
            raise CopyStoppedError
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + LOOK_SECONDS
            if self._is_refused():
                raise CopyStoppedError

    # COPY asks for pieces; the driver's type wants a file to have lines, too.
    readline = read


def _widen(descriptor: int) -> None:
    # 64 kB is the default; 1 MB is the most that Linux gives an ordinary process.
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        with contextlib.suppress(OSError):
            fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, BUFFER_BYTES)
