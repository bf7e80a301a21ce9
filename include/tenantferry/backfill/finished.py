"""What a finished backfill copied, and whether it still holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from psycopg2.extensions import connection

from tenantferry.control.chunks import read_chunks, read_last_round
from tenantferry.control.streams import read_stream
from tenantferry.fleet import Tenant
from tenantferry.lsn import parse_lsn
from tenantferry.schema.model import Table

# invalidation_reason came with PostgreSQL 17; a key that is not there reads as null.
_SLOT_POSITION = """
SELECT slot.confirmed_flush_lsn::text
  FROM pg_catalog.pg_replication_slots AS slot
 WHERE slot.slot_name = %s AND slot.database = current_database() AND slot.plugin = 'pgoutput'
   AND slot.wal_status IS DISTINCT FROM 'lost'
   AND pg_catalog.to_jsonb(slot) ->> 'invalidation_reason' IS NULL
"""


@dataclass(frozen=True, slots=True)
class BackfillResult:
    """
    What a finished backfill copied.

    :ivar bytes: of COPY data.
    :ivar consistent_point: LSN of the snapshot; the stream begins there.
    """

    tables: int
    chunks: int
    rows: int
    bytes: int
    seconds: float
    rows_per_second: float
    consistent_point: int


def read_copied(target: connection, tenant: Tenant) -> BackfillResult | None:
    """
    Return what was copied, or ``None`` while it is not complete.

    :param target: open transaction or autocommit; only read.
    """
    last = read_last_round(target, tenant.key)
    if last is None or last.finished_at is None:
        return None
    chunks = read_chunks(target, tenant.key)
    if any(chunk.done_at is None for chunk in chunks):
        return None
    rows = sum(chunk.rows or 0 for chunk in chunks)
    seconds = (last.finished_at - last.started_at).total_seconds()
    return BackfillResult(
        tables=len({(chunk.schema, chunk.table) for chunk in chunks}),
        chunks=len(chunks),
        rows=rows,
        bytes=sum(chunk.bytes or 0 for chunk in chunks),
        seconds=seconds,
        rows_per_second=rows / seconds if seconds else 0.0,
        consistent_point=last.consistent_point,
    )


def read_finished_backfill(
    source: connection, target: connection, tenant: Tenant, tables: Sequence[Table]
) -> BackfillResult | None:
    """
    Return the result of a backfill that need not be repeated, else ``None``.

    That needs every chunk of exactly these tables, a stream that nothing is missing in, and a slot
    that still sends all that the stream has not applied.

    :param tables: those of the move, as the source describes them now.
    :param source: open transaction or autocommit; only read.
    :param target: open transaction or autocommit; only read.
    """
    stream = read_stream(target, tenant.key)
    if stream is None or stream.copy_again:
        return None
    copied = {(chunk.schema, chunk.table): chunk for chunk in read_chunks(target, tenant.key)}
    if {name: chunk.key_columns for name, chunk in copied.items()} != {
        table.qualified: table.key for table in tables
    }:
        return None
    with source.cursor() as cursor:
        cursor.execute(_SLOT_POSITION, (tenant.slot,))
        row = cursor.fetchone()
    # A slot of the same name that somebody made later, or consumed, begins too late. Our own
    # stream confirms beyond its position where the log held nothing of ours, but says so first.
    if row is None or row[0] is None or parse_lsn(row[0]) > stream.confirmed:
        return None
    return read_copied(target, tenant)
