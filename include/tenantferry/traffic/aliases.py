"""
The file of aliases that a PgBouncer instance includes: one line per tenant.

Other lines may be managed by others, so an edit replaces one line and nothing else. The former
line stays above it as a comment with the number of the attempt, and that attempt alone may put it
back.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from tenantferry.errors import PermanentError, TransientError

# Two edits take milliseconds; who holds the lock longer is not alive.
LOCK_TIMEOUT_SECONDS = 5.0
_LOCK_RECHECK_SECONDS = 0.005

# A name, or a name in double quotes, and what PgBouncer is told about it.
_LINE = re.compile(r'\s*(?:"((?:[^"]|"")+)"|([^\s"=;#\[%][^\s=]*))\s*=\s*(.*?)\s*')
_PARAMETER = re.compile(r"\s*([a-z_]+)\s*=\s*(?:'((?:[^']|'')*)'|([^'\s]*))(?=\s|$)")
_BARE_NAME = re.compile(r"[0-9A-Za-z_]+")
_BARE_VALUE = re.compile(r"[0-9A-Za-z_.:/\-]+")
_FORMER = re.compile(r"; before \S+ tenantferry (\d+): (.*)")


def parse_entry(text: str) -> dict[str, str]:
    """
    Read what stands behind the ``=`` of an alias.

    :raises PermanentError: if PgBouncer could not read it either.

    >>> parse_entry("host=db1 port=5432 dbname='it''s'")
    {'host': 'db1', 'port': '5432', 'dbname': "it's"}
    """
    entry: dict[str, str] = {}
    position, text = 0, text.strip()
    while position < len(text):
        match = _PARAMETER.match(text, position)
        if match is None:
            # The rest may hold a password.
            raise PermanentError(f"alias is malformed at character {position + 1}")
        quoted, bare = match[2], match[3]
        entry[match[1]] = bare if quoted is None else quoted.replace("''", "'")
        position = match.end()
    return entry


def format_entry(entry: Mapping[str, str]) -> str:
    """
    Write what stands behind the ``=`` of an alias.

    :raises PermanentError: if a value holds a line break, which PgBouncer cannot read.

    >>> format_entry({"host": "db1", "dbname": "it's"})
    "host=db1 dbname='it''s'"
    """
    return " ".join(f"{name}={_quote_value(name, value)}" for name, value in entry.items())


def read_entry(path: Path, alias: str) -> dict[str, str]:
    """
    Return the parameters of one alias.

    :raises PermanentError: if the file does not hold it.
    """
    lines = _read_lines(path)
    return parse_entry(_split(lines[_find(lines, alias, path)])[1])


def replace_entry(path: Path, alias: str, entry: Mapping[str, str], *, attempt: int) -> None:
    """
    Point an alias elsewhere and keep the former line for `restore_entry`.

    Doing it again changes nothing.

    :param attempt: number of the cutover attempt, from the control schema.
    """

    def edit(lines: list[str]) -> list[str]:
        index = _find(lines, alias, path)
        line = f"{_quote_name(alias)} = {format_entry(entry)}"
        if lines[index] == line:
            return lines
        start = index - 1 if _is_former(lines, index, alias) else index
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        former = f"; before {now} tenantferry {attempt}: {lines[index].strip()}"
        return [*lines[:start], former, line, *lines[index + 1 :]]

    _edit(path, edit)


def restore_entry(path: Path, alias: str, *, attempt: int) -> bool:
    """
    Put back the line that *attempt* replaced.

    :return: whether there was anything to put back.
    """
    restored = False

    def edit(lines: list[str]) -> list[str]:
        nonlocal restored
        index = _find(lines, alias, path)
        match = _FORMER.fullmatch(lines[index - 1]) if index else None
        if match is None or int(match[1]) != attempt or _split(match[2])[0] != alias:
            return lines
        restored = True
        return [*lines[: index - 1], match[2], *lines[index + 1 :]]

    _edit(path, edit)
    return restored


def put_entry(path: Path, alias: str, entry: Mapping[str, str]) -> None:
    """Set an alias of our own, below the others; without a memory of what it was."""

    def edit(lines: list[str]) -> list[str]:
        kept = [line for line in lines if _split(line)[0] != alias]
        return [*kept, f"{_quote_name(alias)} = {format_entry(entry)}"]

    _edit(path, edit)


def remove_entry(path: Path, alias: str) -> None:
    """Remove an alias of our own; one that is not there stays so."""
    _edit(path, lambda lines: [line for line in lines if _split(line)[0] != alias])


def check_editable(path: Path) -> None:
    """
    Check that an edit would leave a file that PgBouncer can still read. Rewrites it as it is.

    :raises PermanentError: if not.
    """
    _edit(path, list, force=True)


def _split(line: str) -> tuple[str | None, str]:
    match = _LINE.fullmatch(line)
    if match is None:
        return None, ""
    name = match[2] if match[1] is None else match[1].replace('""', '"')
    return name, match[3]


def _find(lines: list[str], alias: str, path: Path) -> int:
    found = [index for index, line in enumerate(lines) if _split(line)[0] == alias]
    if len(found) != 1:
        raise PermanentError(
            f'alias "{alias}" stands {len(found)} times in the alias file "{path.name}"',
            hint="Every tenant needs exactly one line there before it is moved, like"
            f" {alias} = host=<host> port=<port> dbname=<database>",
        )
    return found[0]


def _is_former(lines: list[str], index: int, alias: str) -> bool:
    match = _FORMER.fullmatch(lines[index - 1]) if index else None
    return match is not None and _split(match[2])[0] == alias


def _quote_name(name: str) -> str:
    return name if _BARE_NAME.fullmatch(name) else '"{}"'.format(name.replace('"', '""'))


def _quote_value(name: str, value: str) -> str:
    if "\n" in value or "\r" in value:
        raise PermanentError(f'parameter "{name}" of an alias holds a line break')
    return value if _BARE_VALUE.fullmatch(value) else "'{}'".format(value.replace("'", "''"))


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8").splitlines()
    except OSError as error:
        raise _refusal(path, error) from None


def _edit(path: Path, edit: Callable[[list[str]], list[str]], *, force: bool = False) -> None:
    # A symbolic link stays one.
    path = path.resolve()
    with _locked(path):
        lines = _read_lines(path)
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
                time.sleep(_LOCK_RECHECK_SECONDS)  # so it is tried again
            else:
                break
        yield
    finally:
        os.close(descriptor)


def _refusal(path: Path, error: OSError) -> PermanentError:
    return PermanentError(
        f'cannot read or replace the alias file "{path.name}"',
        detail=f"{error.strerror}: {path.parent}.",
        hint="The user that Airflow's tasks run as must be able to write there.",
    )
