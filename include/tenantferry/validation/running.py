"""The whole validation of one tenant: exact, while writes flow."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import groupby, pairwise

import psycopg2
from psycopg2.extensions import connection

from tenantferry.backfill.chunk import TEXT_SETTINGS, Chunk, to_chunk
from tenantferry.backfill.failures import describe_failure
from tenantferry.backfill.planning import plan_chunks, read_key_columns
from tenantferry.connections import ConnectionParams, open_connection
from tenantferry.control.chunks import ChunkRecord, read_chunks
from tenantferry.control.direction import Direction
from tenantferry.control.touched import read_touched
from tenantferry.control.validations import (
    Difference,
    ValidationResult,
    record_validation,
)
from tenantferry.errors import CopyAgainError, PermanentError
from tenantferry.fleet import Tenant
from tenantferry.schema.model import Table
from tenantferry.validation.alignment import View, aligned_view
from tenantferry.validation.comparison import (
    MAX_NAMED,
    ChunkComparison,
    compare_chunks,
    sum_seconds,
)
from tenantferry.validation.isolation import probe_isolation
from tenantferry.validation.references import find_orphans
from tenantferry.validation.rewrites import Rewrites
from tenantferry.validation.touched import Recheck, with_whole

__all__ = [
    "TenantComparison",
    "ValidationResult",
    "compare_again",
    "compare_tenant",
    "compare_view",
    "load_chunks",
    "record_comparison",
]

logger = logging.getLogger(__name__)

# The stream stands still until its sender gives a snapshot, and somebody waits for a cutover or a
# rollback.
AGAIN_SLOT_TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class TenantComparison:
    """
    What the comparison of a whole tenant showed.

    :ivar position: LSN of the sending side at which both sides were compared.
    :ivar rows: of the source.
    :ivar differences: the first of *mismatches*.
    :ivar differing: the chunks whose rows differ.
    :ivar since: only what was written since this position was compared; ``None``: everything.
    :ivar table_seconds: of tables that were compared as a whole, see `sum_seconds`.
    :ivar witnessed: see `ValidationResult`; not of the comparison itself.
    """

    direction: Direction
    position: int
    started_at: datetime
    tables: int
    chunks: int
    rows: int
    mismatches: int
    differences: tuple[Difference, ...]
    differing: tuple[Chunk, ...]
    since: int | None = None
    table_seconds: Mapping[str, float] = field(default_factory=dict)
    witnessed: str | None = None


def compare_tenant(
    source_params: ConnectionParams,
    target_params: ConnectionParams,
    tenant: Tenant,
    tables: Sequence[Table],
    *,
    direction: Direction = Direction.FORWARD,
    slot_timeout_seconds: float | None = None,
    on_aligned: Callable[[], None] | None = None,
    only_rows: bool = False,
) -> TenantComparison:
    """
    Compare every row of the tenant at one position. Records nothing, and changes nothing.

    A mismatch is a result, not an error.

    :param tables: of the source.
    :param direction: of the stream that runs: forward for a tenant on its way, reverse for one in
        grace.
    :param slot_timeout_seconds: how long the stream may stand still until the sending side gives a
        snapshot.
    :param on_aligned: called when both sides are seen at one position and the stream goes on; from
        then on nothing that happens to the tenant changes the result.
    :param only_rows: leave out what concerns the target alone: references and isolation.
    :raises TransientError: if it could not be told, e.g. because the stream does not answer, or a
        table was truncated meanwhile.
    :raises CopyAgainError: if a tenant on its way was copied from other tables.
    """
    started_at = datetime.now(UTC)
    try:
        chunks = None
        lanes = tenant.backfill_workers
        if direction is Direction.FORWARD:
            chunks = _load_chunks(source_params, target_params, tenant, tables)
            lanes = max(1, min(lanes, len(chunks)))
        rewrites = Rewrites(source_params, tenant, tables)
        with aligned_view(
            source_params,
            target_params,
            tenant,
            lanes=lanes,
            direction=direction,
            slot_timeout_seconds=slot_timeout_seconds,
        ) as view:
            if on_aligned is not None:
                on_aligned()
            if chunks is None:
                chunks = _cut(view.lanes[0].source, tenant, tables)
            compared, differences, mismatches = compare_view(
                view, tenant, tables, chunks, only_rows=only_rows
            )
        if mismatches:
            rewrites.check()
    except psycopg2.Error as error:
        raise describe_failure(error, doing=f'validate tenant "{tenant.key}"') from None
    found = TenantComparison(
        direction=direction,
        position=view.position,
        started_at=started_at,
        tables=len(tables),
        chunks=len(chunks),
        rows=sum(comparison.rows for comparison in compared),
        mismatches=mismatches,
        differences=differences,
        differing=tuple(comparison.chunk for comparison in compared if comparison.mismatches),
        table_seconds=sum_seconds(compared),
    )
    logger.info(
        "validated tenant=%s direction=%s tables=%s chunks=%s rows=%s mismatches=%s seconds=%.2f",
        tenant.key,
        direction,
        found.tables,
        found.chunks,
        found.rows,
        mismatches,
        (datetime.now(UTC) - started_at).total_seconds(),
    )
    return found


def compare_again(
    source_params: ConnectionParams,
    target_params: ConnectionParams,
    tenant: Tenant,
    tables: Sequence[Table],
    chunks: Sequence[tuple[Chunk, Table]],
    *,
    since: int,
    rewritten: Sequence[Table] = (),
) -> TenantComparison | None:
    """
    Compare at one position what a forward stream has written since another one.

    :param since: P at which everything was compared, and was equal.
    :param rewritten: tables of which every row may have changed without the stream's knowing.
    :return: ``None`` if nobody knows what was written.
    :raises TransientError: if it could not be told, e.g. because the stream does not answer.
    """
    started_at = datetime.now(UTC)
    try:
        rewrites = Rewrites(source_params, tenant, tables)
        with aligned_view(
            source_params,
            target_params,
            tenant,
            # Whether rows or whole tables were written shows when they are open.
            lanes=max(1, min(tenant.backfill_workers, len(chunks))),
            slot_timeout_seconds=AGAIN_SLOT_TIMEOUT_SECONDS,
        ) as view:
            lane = view.lanes[0]
            touched = read_touched(lane.target, tenant.key, since=since)
            if touched is None:
                return None
            again = Recheck(lane, tables, chunks, tenant_id=tenant.id)
            found = again.compare(with_whole(touched, rewritten), view=view)
        if found.mismatches:
            rewrites.check()
    except psycopg2.Error as error:
        raise describe_failure(error, doing=f'validate tenant "{tenant.key}"') from None
    logger.info(
        "validated again tenant=%s tables=%s chunks=%s rows=%s mismatches=%s",
        tenant.key,
        found.tables,
        found.chunks,
        found.rows,
        found.mismatches,
    )
    return TenantComparison(
        direction=Direction.FORWARD,
        position=view.position,
        started_at=started_at,
        tables=found.tables,
        chunks=found.chunks,
        rows=found.rows,
        mismatches=found.mismatches,
        differences=found.differences,
        differing=found.differing,
        since=since,
        table_seconds=found.table_seconds,
    )


def record_comparison(
    target: connection, tenant: Tenant, found: TenantComparison, *, run_id: str | None
) -> ValidationResult:
    """
    Write down a comparison.

    :param target: open transaction; the caller commits.
    """
    recorded = record_validation(
        target,
        tenant.key,
        run_id=run_id,
        position=found.position,
        started_at=found.started_at,
        tables=found.tables,
        chunks=found.chunks,
        rows=found.rows,
        mismatches=found.mismatches,
        differences=found.differences,
        direction=found.direction,
        since=found.since,
        witnessed=found.witnessed,
    )
    return replace(recorded, table_seconds=found.table_seconds)


def _purpose(tenant: Tenant) -> str:
    return f"validation of {tenant.key}"


def _load_chunks(
    source_params: ConnectionParams,
    target_params: ConnectionParams,
    tenant: Tenant,
    tables: Sequence[Table],
) -> list[tuple[Chunk, Table]]:
    purpose = _purpose(tenant)
    with (
        closing(open_connection(target_params, purpose=purpose)) as target,
        closing(
            open_connection(source_params, purpose=purpose, autocommit=True, settings=TEXT_SETTINGS)
        ) as source,
    ):
        return load_chunks(source, target, tenant, tables)


def load_chunks(
    source: connection, target: connection, tenant: Tenant, tables: Sequence[Table]
) -> list[tuple[Chunk, Table]]:
    """
    Return the chunks of the backfill, the largest table first.

    :param source: open transaction or autocommit; only read.
    :param target: open transaction or autocommit; only read.
    :raises PermanentError: if a table has none.
    :raises CopyAgainError: if they do not hold every row that the tables can have.
    """
    records = read_chunks(target, tenant.key)
    by_table = {
        qualified: list(group)
        for qualified, group in groupby(records, key=lambda record: (record.schema, record.table))
    }
    found: list[tuple[Chunk, Table]] = []
    for table in tables:
        key_columns = read_key_columns(source, table)
        mine = by_table.get(table.qualified, [])
        _check_complete(table, mine, tuple(column.name for column in key_columns))
        found += [(to_chunk(record, key_columns), table) for record in mine]
    return found


def _cut(source: connection, tenant: Tenant, tables: Sequence[Table]) -> list[tuple[Chunk, Table]]:
    """Cut tables anew: in grace they come, and get other keys, without a backfill."""
    return [
        (chunk, table)
        for table in tables
        for chunk in plan_chunks(source, table, chunk_rows=tenant.chunk_rows)
    ]


def compare_view(
    view: View,
    tenant: Tenant,
    tables: Sequence[Table],
    chunks: Sequence[tuple[Chunk, Table]],
    *,
    only_rows: bool = False,
) -> tuple[list[ChunkComparison], tuple[Difference, ...], int]:
    """
    Compare both sides of a view: rows, references and isolation.

    :param only_rows: see `compare_tenant`.
    :return: what each chunk showed, the first differences, and how many there are.
    :raises TenantferryError: if it could not be told.
    """
    compared = compare_chunks(view, chunks, tenant_id=tenant.id)
    differences = [found for comparison in compared for found in comparison.differences]
    mismatches = sum(comparison.mismatches for comparison in compared)
    if only_rows:
        return compared, tuple(differences[:MAX_NAMED]), mismatches
    for orphans, named in find_orphans(view.probe, tenant, tables):
        differences += named
        mismatches += orphans
    leaks = list(
        probe_isolation(view.probe, tenant, _count_rows(tables, compared), is_live=view.is_live)
    )
    view.probe.rollback()
    # A leak is never the one that is not named.
    differences[:0] = leaks
    return compared, tuple(differences[:MAX_NAMED]), mismatches + len(leaks)


def _count_rows(tables: Iterable[Table], compared: Iterable[ChunkComparison]) -> dict[Table, int]:
    rows = {table.qualified: 0 for table in tables}
    for comparison in compared:
        rows[comparison.chunk.schema, comparison.chunk.table] += comparison.target_rows
    return {table: rows[table.qualified] for table in tables}


def _check_complete(table: Table, chunks: Sequence[ChunkRecord], key: tuple[str, ...]) -> None:
    """A row outside every chunk would never be compared."""
    if not chunks:
        raise PermanentError(
            f'table "{table.label}" is not copied yet',
            hint='Clear the task "preflight" and those after it, which copies this table only.',
        )
    complete = (
        chunks[0].lower is None
        and chunks[-1].upper is None
        and all(left.upper == right.lower for left, right in pairwise(chunks))
        and all(chunk.lower is not None for chunk in chunks[1:])
    )
    if not complete:
        raise CopyAgainError(
            f'table "{table.label}" was not copied as a whole',
            detail="The chunks of the backfill do not hold all rows that it may have.",
            hint='Clear the task "prepare" and those after it: the tenant is copied again.',
        )
    if any(chunk.key_columns != key for chunk in chunks):
        raise CopyAgainError(
            f'the key of table "{table.label}" was changed after it was copied',
            hint='Clear the task "prepare" and those after it: the tenant is copied again.',
        )
