"""What validations found, as the control schema keeps it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from psycopg2.extensions import connection
from psycopg2.extras import Json, execute_values

from tenantferry.control.direction import Direction
from tenantferry.lsn import format_lsn, parse_lsn


class MismatchKind(StrEnum):
    """
    How source and target disagree.

    :cvar MISSING: a row of the source is not in the target.
    :cvar EXTRA: a row of the tenant in the target is not in the source.
    :cvar DIFFERENT: the rows of one key differ.
    :cvar ORPHAN: a row in the target references none.
    :cvar ISOLATION: the tenant's role sees or may do too much, or too little; or the move has
        changed rows of others.
    """

    MISSING = "missing"
    EXTRA = "extra"
    DIFFERENT = "different"
    ORPHAN = "orphan"
    ISOLATION = "isolation"


@dataclass(frozen=True, slots=True)
class Difference:
    """
    One mismatch, named.

    :ivar row_key: e.g. ``id=5``; ``None`` where the table has no key or no row is meant.
    """

    schema: str
    table: str
    kind: MismatchKind
    row_key: str | None
    detail: str

    def __str__(self) -> str:
        row = f"row {self.row_key} of " if self.row_key else ""
        return f'{self.kind}: {row}table "{self.schema}.{self.table}": {self.detail}'


@dataclass(frozen=True, slots=True)
class ValidationResult:
    """
    One comparison of both sides.

    :ivar position: LSN of the sending side at which both sides were compared.
    :ivar rows: of the source.
    :ivar mismatches: differing rows, orphans and failed probes; 0 is a match.
    :ivar differences: the first of them.
    :ivar witnessed: what the target's log says about rows of other tenants; ``None``: nobody
        looked at it.
    :ivar table_seconds: how long each table that was compared as a whole took; not on record.
    """

    validation_id: int
    position: int
    tables: int
    chunks: int
    rows: int
    mismatches: int
    seconds: float
    differences: tuple[Difference, ...]
    witnessed: str | None = None
    table_seconds: Mapping[str, float] = field(default_factory=dict)


def record_validation(
    target: connection,
    tenant: str,
    *,
    run_id: str | None,
    position: int,
    started_at: datetime,
    tables: int,
    chunks: int,
    rows: int,
    mismatches: int,
    differences: Sequence[Difference],
    direction: Direction = Direction.FORWARD,
    since: int | None = None,
    witnessed: str | None = None,
) -> ValidationResult:
    """
    Write down a comparison that came to an end, whatever it found.

    :param target: open transaction; the caller commits.
    :param direction: of the stream that ran; *position* is an LSN of the side that it comes from.
    :param since: only what was written since this position was compared; ``None``: everything.
    :param witnessed: see `ValidationResult`.
    """
    with target.cursor() as cursor:
        cursor.execute(
            "INSERT INTO tenantferry.validations"
            " (tenant, direction, run_id, position, started_at, tables, chunks, rows, mismatches,"
            " since, witnessed) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"
            " RETURNING id, extract(epoch FROM finished_at - started_at)::float8",
            (
                tenant,
                direction,
                run_id,
                format_lsn(position),
                started_at,
                tables,
                chunks,
                rows,
                mismatches,
                None if since is None else format_lsn(since),
                witnessed,
            ),
        )
        validation_id, seconds = cursor.fetchone() or (0, 0.0)
        execute_values(
            cursor,
            "INSERT INTO tenantferry.mismatches"
            " (validation_id, number, table_schema, table_name, kind, row_key, detail) VALUES %s",
            [
                (validation_id, number, found.schema, found.table, found.kind, found.row_key,
                 found.detail)
                for number, found in enumerate(differences, start=1)
            ],
        )  # fmt: skip
    return ValidationResult(
        validation_id,
        position,
        tables,
        chunks,
        rows,
        mismatches,
        seconds,
        tuple(differences),
        witnessed,
    )


def read_latest_validation(
    target: connection, tenant: str, *, direction: Direction = Direction.FORWARD
) -> ValidationResult | None:
    """
    Return the last comparison of a tenant that came to an end, of that direction.

    :param target: open transaction or autocommit; only read.
    """
    with target.cursor() as cursor:
        cursor.execute(
            "SELECT id, position::text, tables, chunks, rows, mismatches,"
            " extract(epoch FROM finished_at - started_at)::float8, witnessed"
            " FROM tenantferry.validations WHERE tenant = %s AND direction = %s"
            " ORDER BY id DESC LIMIT 1",
            (tenant, direction),
        )
        row = cursor.fetchone()
        if row is None:
            return None
        cursor.execute(
            "SELECT table_schema, table_name, kind, row_key, detail"
            " FROM tenantferry.mismatches WHERE validation_id = %s ORDER BY number",
            (row[0],),
        )
        differences = tuple(
            Difference(schema, table, MismatchKind(kind), row_key, detail)
            for schema, table, kind, row_key, detail in cursor
        )
    validation_id, position, tables, chunks, rows, mismatches, seconds, witnessed = row
    return ValidationResult(
        validation_id,
        parse_lsn(position),
        tables,
        chunks,
        rows,
        mismatches,
        seconds,
        differences,
        witnessed,
    )


def record_tables(
    target: connection, validation_id: int, states: Mapping[str, tuple[str, str]]
) -> None:
    """
    Write down for which tables of the source a comparison holds.

    :param target: open transaction; the caller commits.
    :param states: see `tenantferry.schema.table_states`; read before the comparison began.
    """
    with target.cursor() as cursor:
        cursor.execute(
            "UPDATE tenantferry.validations SET source_tables = %s WHERE id = %s",
            (Json(dict(states)), validation_id),
        )


def read_validated_tables(target: connection, validation_id: int) -> dict[str, tuple[str, str]]:
    """
    Return for which tables of the source a comparison holds.

    :param target: open transaction or autocommit; only read.
    """
    with target.cursor() as cursor:
        cursor.execute(
            "SELECT source_tables FROM tenantferry.validations WHERE id = %s", (validation_id,)
        )
        row = cursor.fetchone()
    found = (row[0] if row else None) or {}
    return {label: (shape, files) for label, (shape, files) in found.items()}
