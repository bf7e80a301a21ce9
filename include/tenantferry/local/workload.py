"""What a client can be asked to do, and how it remembers what it did."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from psycopg2.extensions import cursor as cursor_type

from tenantferry.local.journal import Kind, Write
from tenantferry.local.rows import read_rows, shape_of

# As many as a user would still remember.
_REMEMBERED_WRITES = 200


class UnexpectedAnswerError(Exception):
    """The database answered, but not what a user of this application may expect."""


@dataclass(frozen=True, slots=True)
class Request:
    """
    One transaction.

    :ivar run: sends the statements, and returns the rows that they wrote.
    """

    name: str
    run: Callable[[cursor_type], list[Write]]


class Workload(Protocol):
    """The requests of one worker. No row is written by two workers of a client."""

    def next_request(self) -> Request:
        """Choose what to do next."""

    def learn(self, writes: Sequence[Write]) -> None:
        """Remember what was committed."""


class Memory:
    """The last rows that a worker wrote, to be read back: one must see one's own writes."""

    def __init__(self) -> None:
        self._writes: OrderedDict[tuple[str, ...], Write] = OrderedDict()

    def __len__(self) -> int:
        return len(self._writes)

    def learn(self, writes: Sequence[Write]) -> None:
        """Remember committed writes, the latest of each row."""
        for write in writes:
            self._writes.pop(write.identity, None)
            self._writes[write.identity] = write
        while len(self._writes) > _REMEMBERED_WRITES:
            self._writes.popitem(last=False)

    def read_back(self, cursor: cursor_type, chance: random.Random) -> list[Write]:
        """
        Look at one remembered row.

        :raises UnexpectedAnswerError: if it is not as it was written.
        """
        write = chance.choice(list(self._writes.values()))
        found = read_rows(cursor, shape_of(write), [tuple(write.key.values())])
        row = found.get(tuple(write.key.values()))
        expected = None if write.kind is Kind.DELETE else {**write.values, **write.digests}
        if row != expected:
            raise UnexpectedAnswerError(
                f'row {dict(write.key)} of table "{write.table}" is not as this client wrote it'
            )
        return []
