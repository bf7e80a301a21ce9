"""
Where dumps are kept: any storage with paths, such as a folder or a bucket.

A dump is written under a temporary name and renamed when it is complete. So what has the final name
is whole, wherever a process was killed.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

from tenantferry.errors import PermanentError, TenantferryError, TransientError

logger = logging.getLogger(__name__)

CHUNK_BYTES = 1024 * 1024
_REPORT_BYTES = 1024**3
_PARTIAL = ".partial"
_TRIAL = b"It can be deleted.\n"
# The last two: a scheme that nobody serves here, or a package that is not installed.
_REFUSALS = (FileNotFoundError, PermissionError, IsADirectoryError, ValueError, ImportError)


class StoragePath(Protocol):
    """What we ask of a path; `pathlib.Path` and Airflow's object storage paths have it."""

    @property
    def name(self) -> str:
        """The last part."""

    @property
    def parent(self) -> Any:
        """The folder."""

    def __truediv__(self, part: str) -> Any:
        """Return a path below this one."""

    def stat(self) -> Any:
        """Return facts of the file, ``st_size`` among them."""

    def open(self, mode: Any) -> Any:
        """Open the file: ``rb`` or ``wb``."""

    def mkdir(self, *, parents: bool, exist_ok: bool) -> None:
        """Make the folder, where the storage has folders."""

    def rename(self, target: Any) -> Any:
        """Give the file another name, in place of a file that has it."""

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete the file."""


class StorageLostError(TransientError):
    """The storage does not answer, or not as it should."""


class StorageRefusedError(PermanentError):
    """The storage does not let us, or does not have the file."""


@dataclass(frozen=True, slots=True)
class Written:
    """What a file holds; *sha256* in hexadecimal digits."""

    bytes: int
    sha256: str


def store(path: StoragePath, chunks: Iterable[bytes]) -> Written:
    """
    Write a file as a whole, in place of one that is there.

    :param chunks: its content; what they raise is raised, and nothing gets the name of *path*.
    :raises StorageLostError: if the storage failed.
    :raises StorageRefusedError: if the storage does not let us.
    """
    partial = path.parent / (path.name + _PARTIAL)
    with _explaining("write", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            written = _write(partial, chunks)
        except BaseException:
            # Why it was not completed is the better explanation.
            with suppress(Exception):
                partial.unlink(missing_ok=True)
            raise
        partial.rename(path)
    logger.info("wrote %s bytes=%s sha256=%s", path, written.bytes, written.sha256)
    return written


def read_chunks(path: StoragePath) -> Generator[bytes, None, None]:
    """
    Yield the content of a file, piece by piece.

    :raises StorageLostError: if the storage failed.
    :raises StorageRefusedError: if the file is not there, or the storage does not let us.
    """
    with _explaining("read", path), path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def read_size(path: StoragePath) -> int | None:
    """
    Return the size of a file in bytes, ``None`` where there is none.

    :raises StorageLostError: if the storage failed.
    :raises StorageRefusedError: if the storage does not let us.
    """
    with _explaining("look at", path):
        try:
            return int(path.stat().st_size)
        except FileNotFoundError:
            return None


def check_writable(path: StoragePath) -> None:
    """
    Write a small file, read it back, and delete it.

    :raises StorageLostError: if the storage failed.
    :raises StorageRefusedError: if the storage does not let us.
    """
    store(path, [_TRIAL])
    found = b"".join(read_chunks(path))
    with _explaining("delete", path):
        path.unlink(missing_ok=True)
    if found != _TRIAL:
        raise StorageLostError(f'"{path}" does not hold what was written there')


class Digest:
    """Counts and digests what passes through."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._bytes = 0

    def add(self, chunk: bytes) -> None:
        """Take the next piece into account."""
        self._hash.update(chunk)
        before = self._bytes
        self._bytes += len(chunk)
        if self._bytes // _REPORT_BYTES > before // _REPORT_BYTES:
            logger.info("dump so far bytes=%s", self._bytes)

    @property
    def written(self) -> Written:
        """All that passed."""
        return Written(self._bytes, self._hash.hexdigest())


def _write(partial: StoragePath, chunks: Iterable[bytes]) -> Written:
    digest = Digest()
    # Not closed before the last chunk came: a bucket would take what it got as the whole.
    with partial.open("wb") as file:
        for chunk in chunks:
            digest.add(chunk)
            file.write(chunk)
        _make_durable(file)
    return digest.written


def _make_durable(file: Any) -> None:
    """Have a file of a disk written through: soon the source is closed to everybody."""
    file.flush()
    # A bucket has no descriptor; it is durable when it is closed.
    with suppress(AttributeError, io.UnsupportedOperation):
        os.fsync(file.fileno())


@contextmanager
def _explaining(what: str, path: StoragePath) -> Iterator[None]:
    """Raise what a storage fails with as an error of ours; what chunks fail with stays."""
    try:
        yield
    except TenantferryError:
        raise
    except Exception as error:  # each storage has errors of its own; `_storage_failure` tells
        raise _storage_failure(what, path, error) from error


def _storage_failure(
    what: str, path: StoragePath, error: Exception
) -> StorageLostError | StorageRefusedError:
    return (StorageRefusedError if isinstance(error, _REFUSALS) else StorageLostError)(
        f'could not {what} "{path}"',
        detail=f"{type(error).__name__}: {error}",
        hint='See "archive" in the fleet file, and the Airflow connection of its url.',
    )
