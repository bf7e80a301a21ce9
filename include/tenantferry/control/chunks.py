"""Rounds and chunks of a backfill, as the control schema keeps them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from psycopg2.extensions import connection
from psycopg2.extras import execute_values

from tenantferry.control.witnesses import sign_writer
from tenantferry.lsn import format_lsn, parse_lsn

_MARK_DONE = """
UPDATE tenantferry.chunks AS chunk
   SET rows = %(rows)s, bytes = %(bytes)s, done_at = clock_timestamp()
  FROM tenantferry.rounds AS round
 WHERE chunk.tenant = %(tenant)s AND chunk.table_schema = %(schema)s
   AND chunk.table_name = %(table)s AND chunk.chunk = %(number)s AND chunk.done_at IS NULL
   AND round.tenant = chunk.tenant AND round.round = chunk.round
   AND round.consistent_point = %(consistent_point)s
"""


# The last that is known of a round whose process died; its snapshot went with the process.
_CLOSE_DEAD = """
UPDATE tenantferry.rounds AS round
   SET finished_at = greatest(round.started_at, (
       SELECT max(chunk.done_at) FROM tenantferry.chunks AS chunk
        WHERE chunk.tenant = round.tenant AND chunk.round = round.round))
 WHERE round.tenant = %s AND round.finished_at IS NULL
"""


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """
    The chunks copied under one snapshot.

    :ivar consistent_point: LSN of the snapshot; it tells one attempt from another.
    :ivar started_at: when the snapshot was taken ...
    :ivar finished_at: ... and when it was let go; ``None`` until then.
    """

    number: int
    consistent_point: int
    started_at: datetime
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class ChunkRecord:
    """
    One chunk, see `tenantferry.backfill.chunk.Chunk`.

    :ivar round: the round that copies it, or has copied it; ``None`` between two rounds.
    :ivar rows: copied rows; ``None`` until it is done.
    :ivar bytes: of the COPY data.
    :ivar published_as: of its table, see `tenantferry.schema.publication.PublishedTable.entry`;
        empty where it was cut before that was recorded: it counts for nothing.
    """

    schema: str
    table: str
    number: int
    key_columns: tuple[str, ...]
    lower: tuple[str, ...] | None
    upper: tuple[str, ...] | None
    estimated_rows: int
    published_as: str
    round: int | None = None
    rows: int | None = None
    bytes: int | None = None
    done_at: datetime | None = None


def start_round(target: connection, tenant: str, *, number: int, consistent_point: int) -> None:
    """
    Record that a snapshot was taken. The round has no chunks yet.

    :param target: open transaction; the caller commits.
    """
    with target.cursor() as cursor:
        cursor.execute(
            "INSERT INTO tenantferry.rounds (tenant, round, consistent_point) VALUES (%s, %s, %s)",
            (tenant, number, format_lsn(consistent_point)),
        )


def finish_round(target: connection, tenant: str, *, number: int, consistent_point: int) -> bool:
    """
    Record that the snapshot of a round was let go, unless a later attempt replaced the round.

    :param target: open transaction; the caller commits.
    """
    with target.cursor() as cursor:
        cursor.execute(
            "UPDATE tenantferry.rounds SET finished_at = clock_timestamp()"
            " WHERE tenant = %s AND round = %s AND consistent_point = %s AND finished_at IS NULL",
            (tenant, number, format_lsn(consistent_point)),
        )
        return bool(cursor.rowcount == 1)


def close_dead_rounds(target: connection, tenant: str) -> None:
    """
    Give the rounds of processes that died an end: when their last chunk was done.

    :param target: open transaction; the caller commits.
    """
    with target.cursor() as cursor:
        cursor.execute(_CLOSE_DEAD, (tenant,))


def read_rounds(target: connection, tenant: str) -> list[RoundRecord]:
    """Return the rounds of a tenant in their order."""
    with target.cursor() as cursor:
        cursor.execute(
            "SELECT round, consistent_point::text, started_at, finished_at"
            " FROM tenantferry.rounds WHERE tenant = %s ORDER BY round",
            (tenant,),
        )
        return [RoundRecord(row[0], parse_lsn(row[1]), row[2], row[3]) for row in cursor]


def store_chunks(target: connection, tenant: str, chunks: Iterable[ChunkRecord]) -> None:
    """
    Write planned chunks.

    :param target: open transaction; the caller commits.
    """
    with target.cursor() as cursor:
        execute_values(
            cursor,
            "INSERT INTO tenantferry.chunks (tenant, table_schema, table_name, chunk,"
            " key_columns, lower, upper, estimated_rows, round, published_as) VALUES %s",
            (
                (
                    tenant,
                    chunk.schema,
                    chunk.table,
                    chunk.number,
                    list(chunk.key_columns),
                    None if chunk.lower is None else list(chunk.lower),
                    None if chunk.upper is None else list(chunk.upper),
                    chunk.estimated_rows,
                    chunk.round,
                    chunk.published_as,
                )
                for chunk in chunks
            ),
            # An empty array has no type of its own.
            template="(%s, %s, %s, %s, %s::text[], %s::text[], %s::text[], %s, %s, %s)",
        )


def read_chunks(target: connection, tenant: str) -> list[ChunkRecord]:
    """Return all chunks of a tenant, per table in key order."""
    with target.cursor() as cursor:
        cursor.execute(
            "SELECT table_schema, table_name, chunk, key_columns, lower, upper, estimated_rows,"
            " published_as, round, rows, bytes, done_at FROM tenantferry.chunks WHERE tenant = %s"
            " ORDER BY table_schema, table_name, chunk",
            (tenant,),
        )
        return [
            ChunkRecord(
                schema,
                table,
                number,
                tuple(key_columns),
                None if lower is None else tuple(lower),
                None if upper is None else tuple(upper),
                *rest,
            )
            for schema, table, number, key_columns, lower, upper, *rest in cursor
        ]


def read_chunk_tables(target: connection, tenant: str) -> set[tuple[str, str]]:
    """Return schema and name of the tables that have chunks."""
    with target.cursor() as cursor:
        cursor.execute(
            "SELECT DISTINCT table_schema, table_name FROM tenantferry.chunks WHERE tenant = %s",
            (tenant,),
        )
        return {(schema, name) for schema, name in cursor}


def has_pending_chunks(target: connection, tenant: str) -> bool:
    """Tell whether a chunk of a tenant is still to be copied."""
    with target.cursor() as cursor:
        cursor.execute(
            "SELECT EXISTS (SELECT FROM tenantferry.chunks WHERE tenant = %s AND done_at IS NULL)",
            (tenant,),
        )
        return bool(cursor.fetchone() == (True,))


def take_back_chunks(target: connection, tenant: str) -> None:
    """
    Take the pending chunks away from every round: from the commit on nobody can finish one.

    Waits for a chunk that is being committed right now.

    :param target: open transaction that the caller commits, or autocommit.
    """
    with target.cursor() as cursor:
        cursor.execute(
            "UPDATE tenantferry.chunks SET round = NULL"
            " WHERE tenant = %s AND done_at IS NULL AND round IS NOT NULL",
            (tenant,),
        )


def assign_chunks(target: connection, tenant: str, *, number: int) -> None:
    """
    Give the pending chunks to a round.

    :param target: open transaction that has seen P at the round's consistent point, and in which
        nobody else can move P; the caller commits.
    """
    with target.cursor() as cursor:
        cursor.execute(
            "UPDATE tenantferry.chunks SET round = %s WHERE tenant = %s AND done_at IS NULL",
            (number, tenant),
        )


def reopen_chunks(
    target: connection, tenant: str, *, schema: str, table: str, numbers: Collection[int]
) -> None:
    """
    Make copied chunks pending again.

    :param target: open transaction that deletes their rows; the caller commits both.
    """
    with target.cursor() as cursor:
        cursor.execute(
            "UPDATE tenantferry.chunks SET round = NULL, rows = NULL, bytes = NULL, done_at = NULL"
            " WHERE tenant = %s AND table_schema = %s AND table_name = %s AND chunk = ANY (%s)",
            (tenant, schema, table, list(numbers)),
        )
        sign_writer(cursor, tenant)


def mark_chunk_done(
    target: connection,
    tenant: str,
    *,
    schema: str,
    table: str,
    number: int,
    consistent_point: int,
    rows: int,
    bytes_copied: int,
) -> bool:
    """
    Mark a chunk as copied, if it still belongs to the attempt that copied it.

    :param target: open transaction that holds the chunk's rows; the caller commits both, or
        rolls back when this returns false: a later attempt has started over meanwhile.
    :param consistent_point: LSN of the snapshot that the rows were read under.
    """
    with target.cursor() as cursor:
        cursor.execute(
            _MARK_DONE,
            {
                "tenant": tenant,
                "schema": schema,
                "table": table,
                "number": number,
                "consistent_point": format_lsn(consistent_point),
                "rows": rows,
                "bytes": bytes_copied,
            },
        )
        is_ours = bool(cursor.rowcount == 1)
        sign_writer(cursor, tenant)
    return is_ours


def forget_tables(target: connection, tenant: str, names: Iterable[tuple[str, str]]) -> None:
    """
    Delete the chunks of some tables, so that no earlier attempt can finish one of them.

    Waits for a chunk that is being committed right now.

    :param target: open transaction; the caller commits **before** it deletes rows.
    :param names: schema and name of each.
    """
    with target.cursor() as cursor:
        for schema, name in names:
            cursor.execute(
                "DELETE FROM tenantferry.chunks"
                " WHERE tenant = %s AND table_schema = %s AND table_name = %s",
                (tenant, schema, name),
            )


def record_published(
    target: connection, tenant: str, entries: Mapping[tuple[str, str], str]
) -> None:
    """
    Record that tables are published anew, and that the next stream begins after that, and where
    both sides are equal.

    :param target: open transaction; the caller commits.
    :param entries: by schema and name, see `ChunkRecord`.
    """
    with target.cursor() as cursor:
        execute_values(
            cursor,
            "UPDATE tenantferry.chunks AS chunk SET published_as = entry.published_as"
            " FROM (VALUES %s) AS entry (tenant, table_schema, table_name, published_as)"
            " WHERE (chunk.tenant, chunk.table_schema, chunk.table_name)"
            " = (entry.tenant, entry.table_schema, entry.table_name)",
            [(tenant, schema, name, entry) for (schema, name), entry in entries.items()],
        )


def forget_chunks(target: connection, tenant: str) -> None:
    """
    Delete all chunks and rounds of a tenant, so that no earlier attempt can finish a chunk.

    Waits for a chunk that is being committed right now. So rows deleted *after* the commit of
    this include those of every chunk that any earlier attempt can ever commit.

    :param target: open transaction; the caller commits.
    """
    with target.cursor() as cursor:
        cursor.execute("DELETE FROM tenantferry.chunks WHERE tenant = %s", (tenant,))
        cursor.execute("DELETE FROM tenantferry.rounds WHERE tenant = %s", (tenant,))
