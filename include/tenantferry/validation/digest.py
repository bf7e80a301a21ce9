"""Count and digest rows of one table inside Postgres."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from psycopg2 import sql
from psycopg2.extensions import connection

from tenantferry.backfill.chunk import Chunk, chunk_predicate
from tenantferry.schema.model import Table
from tenantferry.schema.own_rows import own_rows

# Of the hashes h of some rows. The sum of 128 bits per row does not depend on the order of rows.
# Postgres has no integer of 128 bits, so the two halves are added up apart; a sum of bigint is
# numeric and exact.
HASH_SUMS = sql.SQL(
    "count(*),"
    " coalesce(sum(('x' || left(h, 16))::bit(64)::bigint), 0)::text,"
    " coalesce(sum(('x' || right(h, 16))::bit(64)::bigint), 0)::text"
)
# OFFSET 0 keeps the planner from computing each row's md5 once per half.
_DIGEST = sql.SQL(
    "SELECT {number}, {sums} FROM ("
    "SELECT {md5} AS h FROM {relation} WHERE {condition} OFFSET 0) AS hashed"
)
# The text of a row tells NULL from an empty string, 1.0 from 1.00 and -0 from 0. It needs the
# same output settings on both sides.
_MD5 = sql.SQL("md5(ROW({columns})::pg_catalog.text)")


@dataclass(frozen=True, slots=True)
class Digest:
    """
    What two sets of the same rows have in common.

    :ivar high: sum of the upper 64 bits of each row's hash, as signed numbers.
    :ivar low: the same of the lower ones.
    """

    rows: int
    high: int
    low: int


@dataclass(frozen=True, slots=True)
class RowSet:
    """
    Rows of one table, on one side.

    :ivar key: names of the columns that tell them apart; may be none.
    :ivar relation: what stands behind ``FROM``; it calls each row *r*.
    :ivar condition: which of these rows are meant.
    """

    table: Table
    key: tuple[str, ...]
    relation: sql.Composable
    condition: sql.Composable


def rows_of_chunk(chunk: Chunk, table: Table, *, tenant_id: UUID | None) -> RowSet:
    """
    Return the rows of a chunk.

    :param tenant_id: whose rows, in the target; ``None`` on the source.
    """
    key = tuple(column.name for column in chunk.key_columns)
    relation = sql.SQL("{} AS r").format(own_rows(table))
    in_chunk = chunk_predicate(chunk, alias="r")
    condition = sql.SQL("{} AND {}").format(of_tenant(tenant_id), in_chunk)
    return RowSet(table, key, relation, condition)


def of_tenant(tenant_id: UUID | None) -> sql.Composable:
    """Build the condition that a row *r* is a tenant's; on a source, ``None``, every row is."""
    if tenant_id is None:
        return sql.SQL("true")
    return sql.SQL("r.tenant_id = {}::pg_catalog.uuid").format(sql.Literal(str(tenant_id)))


def read_digest(session: connection, rows: RowSet) -> Digest:
    """
    Digest rows.

    :param session: transaction with `TEXT_SETTINGS`; only read.
    """
    (digest,) = read_digests(session, [rows])
    return digest


def read_digests(session: connection, row_sets: Sequence[RowSet]) -> list[Digest]:
    """
    Digest several sets of rows with one statement, each for itself.

    :param session: transaction with `TEXT_SETTINGS`; only read.
    """
    digests = [
        _DIGEST.format(
            number=sql.Literal(number),
            sums=HASH_SUMS,
            md5=row_hash(rows.table),
            relation=rows.relation,
            condition=rows.condition,
        )
        for number, rows in enumerate(row_sets)
    ]
    with session.cursor() as cursor:
        cursor.execute(sql.SQL("{} ORDER BY 1").format(sql.SQL(" UNION ALL ").join(digests)))
        return [Digest(count, int(high), int(low)) for _, count, high, low in cursor]


def row_hash(table: Table) -> sql.Composed:
    """Build the hash of a row *r*: every column of the source, generated ones too."""
    columns = (sql.Identifier("r", column.name) for column in table.columns)
    return _MD5.format(columns=sql.SQL(", ").join(columns))
