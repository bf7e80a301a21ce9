"""Copy one chunk under a snapshot: its rows and its mark are one commit."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from uuid import UUID

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import connection

from tenantferry.backfill.chunk import Chunk, chunk_predicate
from tenantferry.backfill.failures import describe_failure
from tenantferry.backfill.pipe import CopyStoppedError, SourceFailedError, copy_between
from tenantferry.backfill.snapshot import Snapshot, import_snapshot
from tenantferry.connections import ConnectionParams
from tenantferry.control.chunks import mark_chunk_done
from tenantferry.errors import TenantferryError, TransientError
from tenantferry.failpoints import Point, reach
from tenantferry.schema.model import Table
from tenantferry.schema.own_rows import own_rows
from tenantferry.throttle.throttle import UNTHROTTLED, Throttle

logger = logging.getLogger(__name__)

# Foreign keys and user triggers do not fire while rows are loaded: what they would do was done
# on the source.
LOAD_SETTINGS = {"session_replication_role": "replica"}

HeapFiles = dict[tuple[str, str], str | None]

# Not as of the transaction's snapshot, but as they are now.
_FILES = """
SELECT coalesce(
    (
        SELECT string_agg(
            format('%%s %%s', leaf.relid::oid, pg_catalog.pg_relation_filenode(leaf.relid)),
            ', ' ORDER BY leaf.relid::oid)
        FROM pg_catalog.pg_partition_tree(%(table)s::pg_catalog.regclass) AS leaf
        WHERE leaf.isleaf
    ),
    pg_catalog.pg_relation_filenode(%(table)s::pg_catalog.regclass)::text)
"""

# tenant_id is the last column of every table in the target.
_COPY_OUT = sql.SQL(
    "COPY (SELECT {columns}{tenant_id}::pg_catalog.uuid FROM {table} WHERE {predicate})"
    " TO STDOUT (FORMAT binary)"
)
_COPY_IN = sql.SQL("COPY {table} ({columns}{tenant_id}) FROM STDIN (FORMAT binary)")


@dataclass(frozen=True, slots=True)
class CopyJob:
    """
    What all workers of a round share.

    :ivar purpose: of their sessions; names the tenant.
    :ivar files: identity of each table's heap before the snapshot, see `read_heap_files`.
    :ivar throttle: slows down the workers.
    """

    source: ConnectionParams
    target: ConnectionParams
    tenant: str
    tenant_id: UUID
    purpose: str
    snapshot: Snapshot
    tables: dict[tuple[str, str], Table]
    files: HeapFiles
    throttle: Throttle = UNTHROTTLED


def copy_chunk(
    job: CopyJob,
    chunk: Chunk,
    source: connection,
    target: connection,
    *,
    stop: threading.Event,
    is_refused: Callable[[], bool],
    count_bytes: Callable[[int], None],
    may_go: Callable[[], bool] = lambda: True,
) -> int:
    """
    Copy one chunk and mark it done, in one transaction of the target; commits it.

    :param is_refused: see `copy_between`, also of *may_go*.
    :param source: session outside a transaction. Each chunk is a transaction of its own, so that
        no lock on the application's tables outlives a chunk.
    :return: rows.
    :raises TenantferryError: if it could not be copied; nothing of it is written then.
    """
    started = time.monotonic()
    table = job.tables[chunk.schema, chunk.table]
    sizes: list[int] = []

    def count(size: int) -> None:
        sizes.append(size)
        count_bytes(size)

    try:
        with target:
            import_snapshot(source, job.snapshot)
            rows = _copy_rows(
                job, chunk, source, target, stop=stop, is_refused=is_refused, count_bytes=count,
                may_go=may_go,
            )  # fmt: skip
            _check_heap_file(job, table, source)
            source.rollback()
            reach(Point.CHUNK_COPIED)
            _mark_done(job, chunk, target, rows, sum(sizes))
            reach(Point.CHUNK_MARKED)
        reach(Point.CHUNK_COMMITTED)
    except SourceFailedError as failure:
        raise _describe(failure.cause, f'read table "{table.label}"') from None
    except psycopg2.Error as error:
        if stop.is_set():
            raise CopyStoppedError from None
        raise _describe(error, f'copy table "{table.label}"') from None
    logger.info(
        "copied chunk table=%s chunk=%s rows=%s bytes=%s seconds=%.2f",
        chunk.label,
        chunk.number,
        rows,
        sum(sizes),
        time.monotonic() - started,
    )
    return rows


def copy_out_query(chunk: Chunk, table: Table, tenant_id: UUID) -> sql.Composed:
    """Build the statement that reads *chunk* on the source, each row ended by *tenant_id*."""
    return _COPY_OUT.format(
        columns=_columns(table),
        tenant_id=sql.Literal(str(tenant_id)),
        table=own_rows(table),
        predicate=chunk_predicate(chunk),
    )


def copy_in_query(table: Table) -> sql.Composed:
    """Build the statement that writes to the target what `copy_out_query` reads."""
    return _COPY_IN.format(
        table=sql.Identifier(*table.qualified),
        columns=_columns(table),
        tenant_id=sql.Identifier("tenant_id"),
    )


def read_heap_files(source: connection, tables: Sequence[Table]) -> HeapFiles:
    """
    Return which file holds each table, or which files hold its partitions.

    ``TRUNCATE``, a rewriting ``ALTER TABLE``, ``ATTACH`` and ``DETACH`` change them. They are not
    transactional for an older snapshot: it sees an empty table afterwards, or other partitions.

    :param source: open transaction or autocommit; only read.
    """
    files: HeapFiles = {}
    with source.cursor() as cursor:
        for table in tables:
            name = sql.Identifier(*table.qualified).as_string(source)
            cursor.execute(_FILES, {"table": name})
            row = cursor.fetchone()
            files[table.qualified] = row[0] if row else None
    return files


def _copy_rows(
    job: CopyJob,
    chunk: Chunk,
    source: connection,
    target: connection,
    *,
    stop: threading.Event,
    is_refused: Callable[[], bool],
    count_bytes: Callable[[int], None],
    may_go: Callable[[], bool],
) -> int:
    table = job.tables[chunk.schema, chunk.table]
    read, written = copy_between(
        source,
        target,
        copy_out=copy_out_query(chunk, table, job.tenant_id),
        copy_in=copy_in_query(table),
        stop=stop,
        is_refused=is_refused,
        count_bytes=count_bytes,
        may_go=may_go,
    )
    if read != written:
        raise TransientError(
            f'could not copy table "{table.label}" completely',
            detail=f"The source sent {read} rows, the target has {written} of them.",
        )
    return written


def _check_heap_file(job: CopyJob, table: Table, source: connection) -> None:
    # The transaction that has just read the table keeps it from being replaced now.
    if read_heap_files(source, [table])[table.qualified] != job.files[table.qualified]:
        raise TransientError(
            f'table "{table.label}" was truncated or rewritten while it was copied',
            detail="Its rows as of the snapshot are not there any more.",
            hint="The retry goes on with a new snapshot. Keep TRUNCATE, VACUUM FULL and"
            " ALTER TABLE away from the source while it is copied.",
        )


def _mark_done(job: CopyJob, chunk: Chunk, target: connection, rows: int, size: int) -> None:
    if not mark_chunk_done(
        target,
        job.tenant,
        schema=chunk.schema,
        table=chunk.table,
        number=chunk.number,
        consistent_point=job.snapshot.consistent_point,
        rows=rows,
        bytes_copied=size,
    ):
        raise TransientError(
            f'backfill of tenant "{job.tenant}" was taken over by another process',
            detail="This one wrote nothing more.",
        )


def _describe(error: Exception, doing: str) -> Exception:
    if isinstance(error, psycopg2.Error):
        hint = ""
        if isinstance(error, psycopg2.IntegrityError):
            hint = (
                "Rows that are unique on the source clash in the target: compare its unique"
                " indexes, each of which must include tenant_id."
            )
        return describe_failure(error, doing=doing, hint=hint)
    if isinstance(error, TenantferryError):
        return error
    return TransientError(f"could not {doing}", detail=str(error))


def _columns(table: Table) -> sql.Composed:
    return sql.Composed(
        [sql.SQL("{}, ").format(sql.Identifier(column.name)) for column in table.copied_columns]
    )
