"""
Find the rows in which two sides differ.

First each side adds up its rows by the first digits of a hash of their keys, and only the buckets
in which the sums differ are looked at any further. So a wrong row is found without moving, or
sorting, the others, however many there are. Those buckets are then merged in key order.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import TypeAlias

from psycopg2 import sql
from psycopg2.extensions import connection

from tenantferry.control.validations import Difference, MismatchKind
from tenantferry.validation.digest import HASH_SUMS, RowSet, row_hash

# By the digits of a bucket: what `HASH_SUMS` says.
Sums: TypeAlias = Mapping[str, tuple[object, ...]]

FETCH_ROWS = 5_000

# A bucket has about so many rows, or the table too many for MAX_DIGITS.
BUCKET_ROWS = 500
MAX_DIGITS = 4

_BUCKETS = sql.SQL(
    "SELECT {bucket}, {sums} FROM (SELECT {place} AS place, {hash} AS h FROM {relation}"
    " WHERE {condition} OFFSET 0) AS hashed GROUP BY 1"
)
_BUCKET = sql.SQL("left({place}, {digits})")
_PLACE = sql.SQL("md5(ROW({key})::pg_catalog.text)")
# Ordered by the bytes of the key's text: the one order that both servers and Python share.
_ROWS = sql.SQL(
    "SELECT {texts}{hash} AS h FROM {relation}"
    " WHERE {condition} AND {bucket} = ANY ({wanted}::pg_catalog.text[]) ORDER BY {order}h"
)
_DETAILS = {
    MismatchKind.MISSING: "it is in the source and not in the target.",
    MismatchKind.EXTRA: "it is in the target and not in the source.",
    MismatchKind.DIFFERENT: "its values differ between source and target.",
}


@dataclass(frozen=True, slots=True)
class HashedRow:
    """
    A row for comparison.

    :ivar key: text of each key column; empty for a table without a key.
    """

    key: tuple[str, ...]
    hash: str

    @property
    def order(self) -> tuple[bytes, ...]:
        """Where the row stands on both sides; rows without a key are told by their hash."""
        return tuple(text.encode() for text in self.key or (self.hash,))


@dataclass(frozen=True, slots=True)
class Buckets:
    """
    Some of the rows: those whose hashed key begins with one of these digits.

    :ivar digits: how many hexadecimal digits tell a bucket; 0: there is one, with all rows.
    """

    digits: int
    wanted: frozenset[str]


@dataclass(frozen=True, slots=True)
class Side:
    """
    Rows to be compared with those of another side.

    :ivar session: transaction with `TEXT_SETTINGS`; only read.
    """

    session: connection
    rows: RowSet

    def sum_buckets(self, digits: int) -> Sums:
        """Add up the rows by the first digits of the hash of their keys."""
        query = _BUCKETS.format(
            bucket=_BUCKET.format(place=sql.Identifier("place"), digits=sql.Literal(digits)),
            sums=HASH_SUMS,
            place=self._place(),
            hash=row_hash(self.rows.table),
            relation=self.rows.relation,
            condition=self.rows.condition,
        )
        with self.session.cursor() as cursor:
            cursor.execute(query)
            return {place: tuple(sums) for place, *sums in cursor}

    def read_rows(self, buckets: Buckets) -> Generator[HashedRow, None, None]:
        """Yield the rows of some buckets in `HashedRow.order`."""
        texts = [sql.SQL("{}::pg_catalog.text").format(name) for name in self._key()]
        query = _ROWS.format(
            texts=sql.Composed([sql.SQL("{}, ").format(text) for text in texts]),
            hash=row_hash(self.rows.table),
            relation=self.rows.relation,
            condition=self.rows.condition,
            bucket=_BUCKET.format(place=self._place(), digits=sql.Literal(buckets.digits)),
            wanted=sql.Literal(sorted(buckets.wanted)),
            order=sql.Composed([sql.SQL("convert_to({}, 'UTF8'), ").format(t) for t in texts]),
        )
        # A cursor of the server: the rows never stand in our memory together.
        with self.session.cursor("tenantferry_rows") as cursor:
            cursor.itersize = FETCH_ROWS
            cursor.execute(query)
            for *key, digest in cursor:
                yield HashedRow(tuple(key), digest)

    def _key(self) -> list[sql.Identifier]:
        return [sql.Identifier("r", name) for name in self.rows.key]

    def _place(self) -> sql.Composed:
        """Build what tells the bucket of a row; without a key it is told by its hash."""
        if not self.rows.key:
            return row_hash(self.rows.table)
        return _PLACE.format(key=sql.SQL(", ").join(self._key()))


def find_differences(source: Side, target: Side, *, count: int) -> Iterator[Difference]:
    """
    Yield every row in which two sides differ.

    :param count: about how many rows there are.
    """
    digits = choose_digits(count)
    buckets = find_buckets(source.sum_buckets(digits), target.sum_buckets(digits))
    table, names = source.rows.table, source.rows.key
    with (
        closing(source.read_rows(buckets)) as ours,
        closing(target.read_rows(buckets)) as theirs,
    ):
        for kind, row in merge_rows(ours, theirs):
            row_key = ", ".join(f"{name}={text}" for name, text in zip(names, row.key, strict=True))
            detail = _DETAILS[kind] if row_key else f"{_DETAILS[kind]} The row's md5 is {row.hash}."
            yield Difference(table.schema, table.name, kind, row_key or None, detail)


def choose_digits(rows: int) -> int:
    """
    Return how many digits make buckets of about `BUCKET_ROWS`.

    >>> [choose_digits(rows) for rows in (1, 500, 501, 50_000, 10**12)]
    [0, 0, 1, 2, 4]
    """
    digits = 0
    while digits < MAX_DIGITS and rows > BUCKET_ROWS * 16**digits:
        digits += 1
    return digits


def find_buckets(ours: Sums, theirs: Sums) -> Buckets:
    """Return the buckets in which two sides differ."""
    places = ours.keys() | theirs.keys()
    wanted = frozenset(place for place in places if ours.get(place) != theirs.get(place))
    return Buckets(len(next(iter(wanted), "")), wanted)


def merge_rows(
    source: Iterable[HashedRow], target: Iterable[HashedRow]
) -> Iterator[tuple[MismatchKind, HashedRow]]:
    """
    Yield what differs between two sides that are both in `HashedRow.order`.

    >>> one, two, other = HashedRow(("1",), "a"), HashedRow(("2",), "b"), HashedRow(("2",), "c")
    >>> [(str(kind), row.key) for kind, row in merge_rows([one, two], [other])]
    [('missing', ('1',)), ('different', ('2',))]
    """
    ours, theirs = iter(source), iter(target)
    our, their = next(ours, None), next(theirs, None)
    while our is not None or their is not None:
        if their is None or (our is not None and our.order < their.order):
            if our is not None:
                yield MismatchKind.MISSING, our
            our = next(ours, None)
        elif our is None or their.order < our.order:
            yield MismatchKind.EXTRA, their
            their = next(theirs, None)
        else:
            if our.hash != their.hash:
                yield MismatchKind.DIFFERENT, our
            our, their = next(ours, None), next(theirs, None)
