"""What a backfill has copied so far, and whether it can be gone on from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from psycopg2.extensions import connection

from tenantferry.backfill.planning import chunk_key
from tenantferry.control.chunks import (
    ChunkRecord,
    RoundRecord,
    has_pending_chunks,
    read_chunks,
    read_rounds,
)
from tenantferry.control.streams import StreamRecord, origin_name, read_stream
from tenantferry.errors import PermanentError
from tenantferry.fleet import Tenant
from tenantferry.lsn import format_lsn, parse_lsn
from tenantferry.schema.model import Table
from tenantferry.schema.publication import read_entries, read_published

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
    :ivar seconds: of all rounds.
    :ivar consistent_point: LSN of the last round's snapshot; the stream begins there.
    :ivar longest_snapshot_seconds: for so long a snapshot kept the source from vacuuming. Of a
        round that was killed, the time until its last chunk.
    """

    tables: int
    chunks: int
    rows: int
    bytes: int
    seconds: float
    rows_per_second: float
    consistent_point: int
    rounds: int
    longest_snapshot_seconds: float


def read_copied(target: connection, tenant: Tenant) -> BackfillResult | None:
    """
    Return what was copied, or ``None`` while it is not complete.

    :param target: open transaction or autocommit; only read.
    """
    rounds = read_rounds(target, tenant.key)
    chunks = read_chunks(target, tenant.key)
    if not rounds or not chunks or any(chunk.done_at is None for chunk in chunks):
        return None
    rows = sum(chunk.rows or 0 for chunk in chunks)
    ages = [_measure(copied, chunks) for copied in rounds]
    seconds = sum(ages)
    return BackfillResult(
        tables=len({(chunk.schema, chunk.table) for chunk in chunks}),
        chunks=len(chunks),
        rows=rows,
        bytes=sum(chunk.bytes or 0 for chunk in chunks),
        seconds=seconds,
        rows_per_second=rows / seconds if seconds else 0.0,
        consistent_point=rounds[-1].consistent_point,
        rounds=len(rounds),
        longest_snapshot_seconds=max(ages),
    )


def read_finished_backfill(
    source: connection, target: connection, tenant: Tenant, tables: Sequence[Table]
) -> BackfillResult | None:
    """
    Return the result of a backfill that need not be repeated, else ``None``.

    :param tables: those of the move, as the source describes them now.
    :param source: open transaction or autocommit; only read.
    :param target: open transaction or autocommit; only read.
    """
    if find_obstacle(source, target, tenant, tables) is not None:
        return None
    if find_new_tables(source, target, tenant, tables) or find_gone(target, tenant, tables):
        return None
    return read_copied(target, tenant)


def find_obstacle(
    source: connection, target: connection, tenant: Tenant, tables: Sequence[Table]
) -> str | None:
    """
    Say why what is copied so far is of no use; ``None`` if it can be gone on from.

    That needs a stream that nothing is missing in, copied chunks of tables that have the same names
    and keys, and a slot that still sends all that the stream has not applied.

    :param tables: those of the move, as the source describes them now.
    :param source: open transaction or autocommit; only read.
    :param target: open transaction or autocommit; only read.
    :return: a clause for people.
    """
    # In this order: a stream that still runs records what it confirms before the slot knows of it.
    confirmed = _read_slot(source, tenant)
    stream = read_stream(target, tenant.key)
    if stream is None:
        return "nothing is copied yet"
    if stream.copy_again:
        return "the target is known to lack rows, or to have wrong ones"
    if stream.went_back_to is not None:
        return "the source went back in time, and lacks what the target has"
    return (
        _compare_tables(source, target, tenant, tables)
        or _look_at_slot(confirmed, tenant, stream)
        or _look_at_origin(target, tenant, stream)
    )


def find_new_tables(
    source: connection, target: connection, tenant: Tenant, tables: Sequence[Table]
) -> list[Table]:
    """
    Return published tables that were not planned as such: they came later, were dropped and made
    again under their name, were not published for a while, or got another key before anything of
    them was copied.

    One that is not published now is none of them: the stream would not be sent its changes.

    :param tables: those of the move, as the source describes them now.
    :param source: open transaction or autocommit; only read.
    :param target: open transaction or autocommit; only read.
    """
    chunks = read_chunks(target, tenant.key)
    planned = {(c.schema, c.table): (c.published_as, c.key_columns) for c in chunks}
    copied = _copied_names(chunks)
    entries = read_entries(source, tenant)
    found = []
    for table in tables:
        entry, key = planned.get(table.qualified, ("", ()))
        has_other_key = key != chunk_key(table) and table.qualified not in copied
        if table.qualified in entries and (entries[table.qualified] != entry or has_other_key):
            found.append(table)
    return found


def find_gone(target: connection, tenant: Tenant, tables: Sequence[Table]) -> set[tuple[str, str]]:
    """
    Return schema and name of planned tables that are none of the move any more.

    :param tables: those of the move, as the source describes them now.
    :param target: open transaction or autocommit; only read.
    """
    planned = {(chunk.schema, chunk.table) for chunk in read_chunks(target, tenant.key)}
    return planned - {table.qualified for table in tables}


def check_all_copied(
    source: connection, target: connection, tenant: Tenant, tables: Sequence[Table]
) -> None:
    """
    Check that each published table was copied since it is published.

    :param tables: those of the move, as the source describes them now.
    :param source: open transaction or autocommit; only read.
    :param target: open transaction or autocommit; only read.
    :raises PermanentError: if one was not.
    """
    if found := find_new_tables(source, target, tenant, tables):
        raise PermanentError(
            f'tables of tenant "{tenant.key}" are not copied yet',
            detail="They came, were dropped and made again, or were not published for a while:"
            f" {', '.join(table.label for table in found)}.",
            hint='Clear the task "preflight" and those after it, which copies these tables only.',
        )


def _compare_tables(
    source: connection, target: connection, tenant: Tenant, tables: Sequence[Table]
) -> str | None:
    chunks = read_chunks(target, tenant.key)
    copied = _copied_names(chunks)
    keys = {table.qualified: chunk_key(table) for table in tables}
    new = {table.qualified for table in find_new_tables(source, target, tenant, tables)}
    # Where its entry is that of another name now, the rows are those of that name.
    names = {table.entry: table.qualified for table in read_published(source, tenant)}
    changed = {
        name
        for chunk in chunks
        if (name := (chunk.schema, chunk.table)) in copied - new
        and (
            names.get(chunk.published_as, name) != name
            if name not in keys
            else chunk.key_columns != keys[name]
        )
    }
    if not changed:
        return None
    listed = ", ".join(f'"{schema}.{table}"' for schema, table in sorted(changed))
    return f"tables were renamed, or have another key: {listed}"


def _copied_names(chunks: Iterable[ChunkRecord]) -> set[tuple[str, str]]:
    return {(chunk.schema, chunk.table) for chunk in chunks if chunk.done_at is not None}


def _read_slot(source: connection, tenant: Tenant) -> int | None:
    """Return up to where the slot is confirmed; ``None`` where it is of no use."""
    with source.cursor() as cursor:
        cursor.execute(_SLOT_POSITION, (tenant.slot,))
        row = cursor.fetchone()
    return None if row is None or row[0] is None else parse_lsn(row[0])


def _look_at_slot(confirmed: int | None, tenant: Tenant, stream: StreamRecord) -> str | None:
    if confirmed is None:
        return f'replication slot "{tenant.slot}" is gone or was invalidated'
    # A slot of the same name that somebody made later, or consumed, begins too late. Our own
    # stream confirms beyond its position where the log held nothing of ours, but says so first.
    if confirmed > stream.confirmed:
        return f'replication slot "{tenant.slot}" was consumed, or made again, by somebody else'
    return None


def _look_at_origin(target: connection, tenant: Tenant, stream: StreamRecord) -> str | None:
    if not has_pending_chunks(target, tenant.key):
        return None  # what is finished is the stream's, which looks for itself
    name = origin_name(tenant.key)
    with target.cursor() as cursor:
        cursor.execute(
            "SELECT pg_replication_origin_progress(%(name)s, true)::text"
            " WHERE pg_replication_origin_oid(%(name)s) IS NOT NULL",
            {"name": name},
        )
        row = cursor.fetchone()
    progress = None if row is None or row[0] is None else parse_lsn(row[0])
    if progress is None or progress < stream.position:
        known = "nothing" if progress is None else format_lsn(progress)
        return (
            f'positions disagree: replication origin "{name}" is at {known}, the stream at'
            f" {format_lsn(stream.position)}"
        )
    return None


def _measure(copied: RoundRecord, chunks: Sequence[ChunkRecord]) -> float:
    """Return for how many seconds a round held its snapshot."""
    until = copied.finished_at
    if until is None:
        done = [c.done_at for c in chunks if c.round == copied.number and c.done_at is not None]
        until = max(done, default=copied.started_at)
    return (until - copied.started_at).total_seconds()
