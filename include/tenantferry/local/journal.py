"""What a client was promised: each acknowledged write, on disk before the next one is sent."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Self

from tenantferry.errors import PermanentError


class Kind(StrEnum):
    """What a write did to its row."""

    INSERT = "insert"
    UPDATE = "update"
    DELETE = "delete"


class Outcome(StrEnum):
    """What the client knows about a transaction."""

    ACKNOWLEDGED = "acknowledged"  # COMMIT returned
    UNKNOWN = "unknown"  # the connection died during COMMIT: either state is right


@dataclass(frozen=True, slots=True)
class Write:
    """
    One row as a transaction left it.

    :ivar key: key column to its value as text.
    :ivar values: column to its value as text, as the database returned it.
    :ivar digests: bytea column to the SHA-256 in hex of the bytes that the client sent.
    """

    schema: str
    table: str
    kind: Kind
    key: Mapping[str, str]
    values: Mapping[str, str | None] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)

    @property
    def identity(self) -> tuple[str, ...]:
        """The row, for comparison with other writes."""
        return (self.schema, self.table, *self.key.values())


@dataclass(frozen=True, slots=True)
class Entry:
    """
    The writes of one transaction, in order.

    :ivar at: seconds since 1970.
    """

    at: float
    outcome: Outcome
    request: str
    writes: tuple[Write, ...]


class Journal:
    """
    The file of one client, one JSON object per line; used by all its threads.

    :param path: continued if it exists.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab")
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._file.close()

    def append(self, outcome: Outcome, request: str, writes: Sequence[Write]) -> None:
        """Return when the entry is on disk."""
        line = {
            "at": time.time(),
            "outcome": outcome,
            "request": request,
            "writes": [asdict(write) for write in writes],
        }
        with self._lock:
            self._file.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())


def read_journal(path: Path) -> Iterator[Entry]:
    """
    Yield the entries in the order they were written.

    A last line without its end belongs to a client that was killed while it wrote: it had not
    promised that write to anyone, so it is left out.

    :raises PermanentError: if any other line is damaged.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                yield _parse(line)
            except (ValueError, KeyError, TypeError) as error:
                raise PermanentError(
                    f'journal "{path}" is damaged', detail=f"Line {number}: {error}."
                ) from None


def _parse(line: bytes) -> Entry:
    fields = json.loads(line)
    writes = tuple(
        Write(
            schema=write["schema"],
            table=write["table"],
            kind=Kind(write["kind"]),
            key=write["key"],
            values=write["values"],
            digests=write["digests"],
        )
        for write in fields["writes"]
    )
    return Entry(fields["at"], Outcome(fields["outcome"]), fields["request"], writes)
