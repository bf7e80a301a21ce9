"""Give up copied chunks, so that a later round copies them anew."""

from __future__ import annotations

from collections.abc import Sequence

from psycopg2 import sql
from psycopg2.extensions import cursor as cursor_type

from tenantferry.backfill.chunk import Chunk, chunk_predicate
from tenantferry.control.chunks import reopen_chunks
from tenantferry.fleet.declaration import Tenant
from tenantferry.schema.own_rows import Named, own_rows

_DELETE = sql.SQL(
    "DELETE FROM {table} AS rows WHERE rows.tenant_id = {tenant_id}::pg_catalog.uuid AND {in_chunk}"
)


def give_up_chunks(
    cursor: cursor_type, tenant: Tenant, table: Named, chunks: Sequence[Chunk]
) -> int:
    """
    Make chunks of one table pending, and delete their rows of this tenant.

    That is always allowed: the invariant speaks of copied chunks only.

    :param cursor: in an open transaction with ``session_replication_role = replica`` that has the
        stream's lock; the caller commits.
    :return: deleted rows.
    """
    deleted = 0
    for chunk in chunks:
        cursor.execute(
            _DELETE.format(
                table=own_rows(table),
                tenant_id=sql.Literal(str(tenant.id)),
                in_chunk=chunk_predicate(chunk, alias="rows"),
            )
        )
        deleted += cursor.rowcount
    reopen_chunks(
        cursor.connection,
        tenant.key,
        schema=table.schema,
        table=table.name,
        numbers=[chunk.number for chunk in chunks],
    )
    return deleted
