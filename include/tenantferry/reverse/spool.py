"""A queue of bytes on disk: what is taken from its front gives its room back."""

from __future__ import annotations

import os
import tempfile
from collections import deque
from dataclasses import dataclass
from typing import BinaryIO

from tenantferry.errors import TransientError

_FILE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record lies."""

    file: int
    offset: int
    size: int


class Spool:
    """
    Temporary files without a name: they are gone with the process, however it ends.

    One thread may read while another one writes.
    """

    def __init__(self) -> None:
        self._files: deque[BinaryIO] = deque()
        self._first = 0
        self._end = 0

    def write(self, record: bytes) -> Place:
        """
        Append a record.

        :raises TransientError: if there is no room for it.
        """
        try:
            if not self._files or self._end + len(record) > _FILE_BYTES:
                # Unbuffered, so that pread sees what was written.
                self._files.append(tempfile.TemporaryFile(prefix="tenantferry-", buffering=0))  # noqa: SIM115  # close() does
                self._end = 0
            place = Place(self._first + len(self._files) - 1, self._end, len(record))
            view = memoryview(record)
            while view:
                written = os.pwrite(self._files[-1].fileno(), view, self._end)
                view, self._end = view[written:], self._end + written
        except OSError as error:
            raise TransientError(
                "could not keep changes in a temporary file",
                detail=f"{error.strerror or error} in {tempfile.gettempdir()}.",
                hint="Give the worker more room there, or set TMPDIR.",
            ) from None
        return place

    def read(self, place: Place) -> bytes:
        """Return a record."""
        descriptor = self._files[place.file - self._first].fileno()
        parts: list[bytes] = []
        offset, left = place.offset, place.size
        while left:
            part = os.pread(descriptor, left, offset)
            if not part:
                raise TransientError("could not read changes back from a temporary file")
            parts.append(part)
            offset, left = offset + len(part), left - len(part)
        return b"".join(parts)

    def drop_before(self, place: Place) -> None:
        """Give back the files that hold only records before this one."""
        while self._first < place.file:
            self._files.popleft().close()
            self._first += 1

    def clear(self) -> None:
        """Give back everything."""
        self._first += len(self._files)
        while self._files:
            self._files.popleft().close()
