"""A file that others read and edit too: each edit swaps it as a whole, one at a time."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tenantferry.errors import PermanentError, TenantferryError, TransientError

# Two edits take milliseconds; who holds the lock longer is not alive.
LOCK_TIMEOUT_SECONDS = 5.0
_LOCK_RECHECK_SECONDS = 0.005
# What a person must change. A full disk, or a server of files that is away, may pass.
_FACTS = (PermissionError, FileNotFoundError, NotADirectoryError, IsADirectoryError)


def read_lines(path: Path) -> list[str]:
    """
    Return the lines of the file.

    :raises PermanentError: if it is not there or closed to us.
    :raises TransientError: if its disk does not answer.
    """
    try:
        return path.read_text("utf-8").splitlines()
    except OSError as error:
        raise _refusal(path, error) from None


def edit_lines(path: Path, edit: Callable[[list[str]], list[str]], *, force: bool = False) -> None:
    """
    Replace the lines of the file by what *edit* makes of them.

    :param force: swap the file even if nothing changes.
    :raises PermanentError: if it is not there or closed to us.
    :raises TransientError: if another process keeps it locked, or its disk is full.
    """
    # A symbolic link stays one.
    path = path.resolve()
    with _locked(path):
        lines = read_lines(path)
        edited = edit(lines)
        if edited != lines or force:
            try:
                _replace_file(path, "\n".join([*edited, ""]))
            except OSError as error:
                raise _refusal(path, error) from None


def _replace_file(path: Path, text: str) -> None:
    """Swap the file in one step: PgBouncer may read it at any moment."""
    status = path.stat()
    # One name, so that a killed process leaves at most one file behind, until the next edit.
    temporary = path.with_name(f".{path.name}.tenantferry")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        _keep_owner(file.fileno(), status, path)
        os.fchmod(file.fileno(), status.st_mode & 0o777)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _keep_owner(descriptor: int, status: os.stat_result, path: Path) -> None:
    created = os.fstat(descriptor)
    if (created.st_uid, created.st_gid) == (status.st_uid, status.st_gid):
        return
    try:
        os.fchown(descriptor, status.st_uid, status.st_gid)
    except PermissionError:
        # Only root gives files away. The group's right to read is then what PgBouncer has.
        if not status.st_mode & 0o040:
            raise PermanentError(
                f'alias file "{path.name}" would become unreadable for PgBouncer',
                detail="It belongs to another user, and its group may not read it.",
                hint="Give it to a group that both PgBouncer and Airflow are in, with mode 0660.",
            ) from None
        if created.st_gid != status.st_gid:
            os.fchown(descriptor, -1, status.st_gid)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other edits away: two tenants may be cut over at the same time."""
    deadline = time.monotonic() + LOCK_TIMEOUT_SECONDS
    try:
        descriptor = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o660)
    except OSError as error:
        raise _refusal(path, error) from None
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # flock() knows no timeout
                if time.monotonic() > deadline:
                    raise TransientError(
                        f'could not lock the alias file "{path.name}"',
                        detail=f"Another process edits it for {LOCK_TIMEOUT_SECONDS:g} s.",
                    ) from None
                time.sleep(_LOCK_RECHECK_SECONDS)  # whether it is free can only be tried
            else:
                break
        yield
    finally:
        os.close(descriptor)


def _refusal(path: Path, error: OSError) -> TenantferryError:
    detail = f"{error.strerror}: {path.parent}."
    if isinstance(error, _FACTS):
        return PermanentError(
            f'cannot read or replace the alias file "{path.name}"',
            detail=detail,
            hint="The user that Airflow's tasks run as must be able to write there.",
        )
    return TransientError(
        f'could not read or replace the alias file "{path.name}"',
        detail=detail,
        hint="Make room on that disk if it is full; the file is as it was.",
    )
