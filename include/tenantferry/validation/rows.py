"""Find the rows in which two chunks differ, by merging both sides in key order."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from uuid import UUID

from psycopg2 import sql
from psycopg2.extensions import connection

from tenantferry.backfill.chunk import Chunk
from tenantferry.control.validations import Difference, MismatchKind
from tenantferry.schema.model import Table
from tenantferry.schema.own_rows import own_rows
from tenantferry.validation.digest import row_condition, row_hash

FETCH_ROWS = 5_000

# Ordered by the bytes of the key's text: the one order that both servers and Python share.
_ROWS = sql.SQL("SELECT {texts}{hash} AS h FROM {table} AS r WHERE {condition} ORDER BY {order}h")
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


def find_differences(
    source: connection, target: connection, chunk: Chunk, table: Table, *, tenant_id: UUID
) -> Iterator[Difference]:
    """
    Yield every row in which the two sides of a chunk differ.

    :param source: transaction with `TEXT_SETTINGS`; only read.
    :param target: transaction with `TEXT_SETTINGS`; only read.
    """
    names = [column.name for column in chunk.key_columns]
    with (
        closing(_read_rows(source, chunk, table, tenant_id=None)) as ours,
        closing(_read_rows(target, chunk, table, tenant_id=tenant_id)) as theirs,
    ):
        for kind, row in merge_rows(ours, theirs):
            row_key = ", ".join(f"{name}={text}" for name, text in zip(names, row.key, strict=True))
            detail = _DETAILS[kind] if row_key else f"{_DETAILS[kind]} The row's md5 is {row.hash}."
            yield Difference(chunk.schema, chunk.table, kind, row_key or None, detail)


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


def _read_rows(
    session: connection, chunk: Chunk, table: Table, *, tenant_id: UUID | None
) -> Generator[HashedRow, None, None]:
    names = [sql.Identifier("r", column.name) for column in chunk.key_columns]
    query = _ROWS.format(
        texts=sql.Composed([sql.SQL("{}::pg_catalog.text, ").format(name) for name in names]),
        hash=row_hash(table),
        table=own_rows(table),
        condition=row_condition(chunk, tenant_id=tenant_id),
        order=sql.Composed(
            [sql.SQL("convert_to({}::pg_catalog.text, 'UTF8'), ").format(name) for name in names]
        ),
    )
    # A cursor of the server: the rows of a chunk never stand in our memory together.
    with session.cursor("tenantferry_rows") as cursor:
        cursor.itersize = FETCH_ROWS
        cursor.execute(query)
        for *key, digest in cursor:
            yield HashedRow(tuple(key), digest)
