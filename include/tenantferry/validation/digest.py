"""Count and digest the rows of a chunk inside Postgres."""

from __future__ import annotations

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
    "SELECT {sums} FROM (SELECT {md5} AS h FROM {table} AS r WHERE {condition} OFFSET 0) AS hashed"
)
# The text of a row tells NULL from an empty string, 1.0 from 1.00 and -0 from 0. It needs the
# same output settings on both sides.
_MD5 = sql.SQL("md5(ROW({columns})::pg_catalog.text)")


@dataclass(frozen=True, slots=True)
class Digest:
    """
    What two chunks with the same rows have in common.

    :ivar high: sum of the upper 64 bits of each row's hash, as signed numbers.
    :ivar low: the same of the lower ones.
    """

    rows: int
    high: int
    low: int


def read_digest(
    session: connection, chunk: Chunk, table: Table, *, tenant_id: UUID | None
) -> Digest:
    """
    Digest the rows of a chunk.

    :param session: transaction with `TEXT_SETTINGS`; only read.
    :param tenant_id: whose rows, in the target; ``None`` on the source.
    """
    with session.cursor() as cursor:
        cursor.execute(digest_query(chunk, table, tenant_id=tenant_id))
        rows, high, low = cursor.fetchone() or (0, "0", "0")
    return Digest(rows, int(high), int(low))


def digest_query(chunk: Chunk, table: Table, *, tenant_id: UUID | None) -> sql.Composed:
    """Build the query that digests a chunk."""
    return _DIGEST.format(
        sums=HASH_SUMS,
        md5=row_hash(table),
        table=own_rows(table),
        condition=row_condition(chunk, tenant_id=tenant_id),
    )


def row_hash(table: Table) -> sql.Composed:
    """Build the hash of a row *r*: every column of the source, generated ones too."""
    columns = (sql.Identifier("r", column.name) for column in table.columns)
    return _MD5.format(columns=sql.SQL(", ").join(columns))


def row_condition(chunk: Chunk, *, tenant_id: UUID | None) -> sql.Composed:
    """Build the condition that a row *r* belongs to the chunk, and in the target to the tenant."""
    in_chunk = chunk_predicate(chunk, alias="r")
    if tenant_id is None:
        return in_chunk
    return sql.SQL("r.tenant_id = {}::pg_catalog.uuid AND {}").format(
        sql.Literal(str(tenant_id)), in_chunk
    )
