"""
The time in which a live tenant can go back, and the one slot on the target that serves all of them.

A grace begins in the transaction that moves a tenant's clients to the target, and ends in the one
that moves them back, or with retiring. The reverse streams read everything that happened between.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from psycopg2 import sql
from psycopg2.extensions import connection
from psycopg2.extras import Json

from tenantferry.control.direction import Direction
from tenantferry.control.streams import COMMAND_CHANNELS
from tenantferry.errors import PermanentError
from tenantferry.lsn import format_lsn, parse_lsn

# Of the target, for all tenants in grace together. No key makes it a tenant's own slot there.
REVERSE_SLOT = "tenantferry_reverse"


class GraceEnd(StrEnum):
    """Why a grace is over."""

    ROLLED_BACK = "rolled back"
    RETIRED = "retired"


@dataclass(frozen=True, slots=True)
class Grace:
    """
    One grace.

    :ivar attempt: the cutover that it began with.
    :ivar start_lsn: of the target; all that the tenant's clients wrote there comes after it.
    :ivar lost_at: from here on there is no way back: the source is not followed any more.
    """

    id: int
    tenant: str
    attempt: int
    start_lsn: int
    started_at: datetime
    ends_at: datetime
    lost_at: datetime | None
    lost_reason: str | None


_COLUMNS = "id, tenant, attempt, start_lsn::text, started_at, ends_at, lost_at, lost_reason"


def begin_grace(
    target: connection, tenant: str, *, attempt: int, start_lsn: int, hours: float
) -> int:
    """
    Begin a tenant's grace, and its reverse stream at *start_lsn*.

    :param target: open transaction; the caller commits it with the flip.
    :param hours: how long the tenant can go back, at least.
    :return: its id.
    """
    with target.cursor() as cursor:
        cursor.execute(
            "INSERT INTO tenantferry.graces (tenant, attempt, start_lsn, ends_at)"
            " VALUES (%s, %s, %s, clock_timestamp() + make_interval(secs => %s)) RETURNING id",
            (tenant, attempt, format_lsn(start_lsn), hours * 3600),
        )
        row = cursor.fetchone()
        cursor.execute(
            "DELETE FROM tenantferry.streams WHERE tenant = %s AND direction = %s",
            (tenant, Direction.REVERSE),
        )
        cursor.execute(
            "INSERT INTO tenantferry.streams (tenant, direction, position, confirmed)"
            " VALUES (%s, %s, %s, %s)",
            (tenant, Direction.REVERSE, format_lsn(start_lsn), format_lsn(start_lsn)),
        )
    grace: int = row[0] if row else 0
    return grace


def read_grace(target: connection, tenant: str) -> Grace | None:
    """Return the grace that a tenant is in, or ``None``."""
    found = _read(target, sql.SQL("tenant = {}").format(sql.Literal(tenant)))
    return found[0] if found else None


def read_graces(target: connection) -> list[Grace]:
    """Return all graces that are not over, the oldest first; also those that are lost."""
    return _read(target, sql.SQL("true"))


def record_source_files(
    target: connection, grace: int, files: Mapping[str, AbstractSet[str]]
) -> None:
    """
    Write down which files hold the rows of a source that are known to be those of the target.

    :param target: open transaction; the caller commits.
    :param files: by ``schema.table``.
    """
    listed = {label: sorted(names) for label, names in files.items()}
    with target.cursor() as cursor:
        cursor.execute(
            "UPDATE tenantferry.graces SET source_files = %s WHERE id = %s", (Json(listed), grace)
        )


def read_source_files(target: connection, grace: int) -> dict[str, frozenset[str]] | None:
    """
    Return what `record_source_files` wrote; ``None``: nobody knows, the grace began before that.

    :param target: open transaction or autocommit; only read.
    """
    with target.cursor() as cursor:
        cursor.execute("SELECT source_files FROM tenantferry.graces WHERE id = %s", (grace,))
        row = cursor.fetchone()
    if row is None or row[0] is None:
        return None
    return {label: frozenset(names) for label, names in row[0].items()}


def require_way_back(target: connection, tenant: str) -> Grace:
    """
    Return the grace of a tenant that can go back.

    :raises PermanentError: if there is no way back.
    """
    grace = read_grace(target, tenant)
    if grace is None:
        raise PermanentError(
            f'tenant "{tenant}" cannot go back', detail="It is not in its time of grace."
        )
    if grace.lost_at is not None:
        raise PermanentError(
            f'tenant "{tenant}" has lost its way back',
            detail=f"At {grace.lost_at:%Y-%m-%d %H:%M:%S %Z}: {grace.lost_reason}",
            hint="Its source lacks what was written since. Keep the tenant on the target.",
        )
    return grace


def lose_way_back(target: connection, grace: int, *, reason: str) -> None:
    """
    Record that a tenant cannot go back any more; the first reason stays. The caller commits.

    :param reason: a whole sentence.
    """
    with target.cursor() as cursor:
        cursor.execute(
            "UPDATE tenantferry.graces SET lost_at = clock_timestamp(), lost_reason = %s"
            " WHERE id = %s AND lost_at IS NULL AND ended_at IS NULL",
            (reason, grace),
        )
    _notify(target)


def end_grace(target: connection, tenant: str, *, why: GraceEnd) -> None:
    """
    End a tenant's grace, if it is in one: its reverse stream ends with it. The caller commits.
    """
    with target.cursor() as cursor:
        cursor.execute(
            "UPDATE tenantferry.graces SET ended_at = clock_timestamp(), end_reason = %s"
            " WHERE tenant = %s AND ended_at IS NULL",
            (why, tenant),
        )
        cursor.execute(
            "DELETE FROM tenantferry.streams WHERE tenant = %s AND direction = %s",
            (tenant, Direction.REVERSE),
        )
    _notify(target)


def _notify(target: connection) -> None:
    # Without a tenant: look at the graces.
    with target.cursor() as cursor:
        cursor.execute("SELECT pg_notify(%s, '')", (COMMAND_CHANNELS[Direction.REVERSE],))


def _read(target: connection, condition: sql.Composable) -> list[Grace]:
    query = sql.SQL(
        "SELECT {columns} FROM tenantferry.graces"
        " WHERE ended_at IS NULL AND {condition} ORDER BY id"
    )
    with target.cursor() as cursor:
        cursor.execute(query.format(columns=sql.SQL(_COLUMNS), condition=condition))
        rows = cursor.fetchall()
    return [Grace(row[0], row[1], row[2], parse_lsn(row[3]), *row[4:]) for row in rows]
