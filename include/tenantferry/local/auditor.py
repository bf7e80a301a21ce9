"""
Hold a client's journal against the database: is every promise kept?

A row must be in the state of its last acknowledged write. After a write of unknown outcome the
state before it and the state after it are both right, until the next acknowledged write.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from psycopg2.extensions import connection

from tenantferry.local.journal import Entry, Kind, Outcome, Write, read_journal
from tenantferry.local.rows import Shape, read_rows

# Keys per query: large enough to hide a round trip, small enough for any planner.
_KEYS_PER_QUERY = 500
_SHOWN_DIFFERENCES = 20


@dataclass(frozen=True, slots=True)
class Audit:
    """
    The result of one audit.

    :ivar acknowledged_writes: row writes that the client saw committed.
    :ivar unknown_writes: row writes whose commit got no answer.
    :ivar rows: distinct rows looked at.
    :ivar lost_writes: rows that are not in their last acknowledged state.
    :ivar differences: the first of them, each told in a sentence.
    """

    acknowledged_writes: int
    unknown_writes: int
    rows: int
    lost_writes: int
    differences: tuple[str, ...]
    seconds: float


@dataclass(slots=True)
class _Expected:
    """
    What a row may look like now.

    :ivar present: the answers that are right to "is there such a row?".
    :ivar values: column to the values that are right. A column that is not here may hold any.
    """

    present: frozenset[bool] = frozenset({True})
    values: dict[str, tuple[str | None, ...]] = field(default_factory=dict)


# Schema, table and key columns; and of those, the values of the key.
_Table = tuple[str, str, tuple[str, ...]]
_Rows = dict[tuple[str, ...], _Expected]


class _Expectations:
    """Every row that a journal speaks of, as its last entries leave it."""

    def __init__(self) -> None:
        self.tables: defaultdict[_Table, _Rows] = defaultdict(dict)
        self.digest_columns: defaultdict[_Table, set[str]] = defaultdict(set)
        self.writes = dict.fromkeys(Outcome, 0)

    def add(self, entry: Entry) -> None:
        """Take one more transaction into account."""
        self.writes[entry.outcome] += len(entry.writes)
        for write in entry.writes:
            table = (write.schema, write.table, tuple(write.key))
            self.digest_columns[table].update(write.digests)
            rows = self.tables[table]
            key = tuple(write.key.values())
            if entry.outcome is Outcome.ACKNOWLEDGED:
                rows[key] = _after_acknowledged(rows.get(key), write)
            else:
                rows[key] = _after_unknown(rows.get(key), write)


def audit(tenant: connection, journal: Path) -> Audit:
    """
    Read *journal* and look at each of its rows in the database.

    :param tenant: the tenant's own session, through the router; only read. The caller ends its
        transaction.
    """
    began = time.monotonic()
    expectations = _Expectations()
    for entry in read_journal(journal):
        expectations.add(entry)
    differences: list[str] = []
    for table, rows in expectations.tables.items():
        digests = expectations.digest_columns[table]
        differences.extend(_compare_table(tenant, table, rows, digests))
    return Audit(
        acknowledged_writes=expectations.writes[Outcome.ACKNOWLEDGED],
        unknown_writes=expectations.writes[Outcome.UNKNOWN],
        rows=sum(map(len, expectations.tables.values())),
        lost_writes=len(differences),
        differences=tuple(differences[:_SHOWN_DIFFERENCES]),
        seconds=time.monotonic() - began,
    )


def _after_acknowledged(before: _Expected | None, write: Write) -> _Expected:
    if write.kind is Kind.DELETE:
        return _Expected(frozenset({False}))
    kept = before.values if before is not None and write.kind is Kind.UPDATE else {}
    written = {**write.values, **write.digests}
    return _Expected(values={**kept, **{name: (value,) for name, value in written.items()}})


def _after_unknown(before: _Expected | None, write: Write) -> _Expected:
    known = before or _Expected(frozenset({write.kind is not Kind.INSERT}))
    values = dict(known.values)
    for name, value in {**write.values, **write.digests}.items():
        if write.kind is Kind.INSERT and before is None:
            values[name] = (value,)
        elif name in values:
            values[name] = (*values[name], value)
    return _Expected(known.present | {write.kind is not Kind.DELETE}, values)


def _compare_table(
    tenant: connection, table: _Table, rows: _Rows, digests: set[str]
) -> Iterator[str]:
    schema, name, key_columns = table
    columns = {column for expected in rows.values() for column in expected.values}
    shape = Shape(
        schema, name, key_columns, tuple(sorted(columns - digests)), tuple(sorted(digests))
    )
    keys = iter(rows)
    while batch := list(islice(keys, _KEYS_PER_QUERY)):
        with tenant.cursor() as cursor:
            found = read_rows(cursor, shape, batch)
        for key in batch:
            difference = _find_difference(rows[key], found.get(key))
            if difference:
                yield f"{schema}.{name} {_tell(key_columns, key)}: {difference}"


def _find_difference(expected: _Expected, found: Mapping[str, str | None] | None) -> str:
    if (found is not None) not in expected.present:
        return "the row is gone" if found is None else "the row was deleted, and is there"
    if found is None:
        return ""
    wrong = [
        f"{column} is {found[column]!r}, acknowledged was {' or '.join(map(repr, accepted))}"
        for column, accepted in expected.values.items()
        if found[column] not in accepted
    ]
    return "; ".join(wrong)


def _tell(columns: Sequence[str], values: Sequence[str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in zip(columns, values, strict=True))
