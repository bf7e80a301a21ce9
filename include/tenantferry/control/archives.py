"""What became of the sources of retired tenants: one row each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg2 import sql
from psycopg2.extensions import connection
from psycopg2.extras import Json

from tenantferry.errors import PermanentError


@dataclass(frozen=True, slots=True)
class Archive:
    """
    The row of one tenant.

    :ivar attempt: the cutover that brought it to the target.
    :ivar token: what tells its dump's file from those of other targets.
    :ivar sha256: of the dump, hexadecimal digits.
    :ivar contents: of the dump.
    :ivar server_major: version of the source.
    :ivar unlock: SQL that lets the application into the source again, for a superuser.
    :ivar locking_at: from here on the source may be closed, to us, too.
    """

    tenant: str
    attempt: int
    token: str
    url: str | None
    bytes: int | None
    sha256: str | None
    tables: int | None
    rows: int | None
    contents: Mapping[str, Any] | None
    server_major: int | None
    dumped_at: datetime | None
    verified_at: datetime | None
    unlock: str | None
    locking_at: datetime | None
    locked_at: datetime | None


_COLUMNS = (
    "tenant, attempt, token, url, bytes, sha256, tables, rows, contents, server_major, dumped_at,"
    " verified_at, unlock, locking_at, locked_at"
)


def begin_archive(target: connection, tenant: str, *, attempt: int) -> None:
    """
    Open the record of a tenant that begins to be retired.

    :param target: open transaction; the caller commits it with the phase.
    """
    with target.cursor() as cursor:
        cursor.execute(
            "INSERT INTO tenantferry.archives (tenant, attempt) VALUES (%s, %s)", (tenant, attempt)
        )


def require_archive(target: connection, tenant: str) -> Archive:
    """
    Return the record of a tenant that is being retired, or is.

    :param target: open transaction or autocommit; only read.
    :raises PermanentError: if there is none.
    """
    with target.cursor() as cursor:
        cursor.execute(
            sql.SQL("SELECT {} FROM tenantferry.archives WHERE tenant = %s").format(
                sql.SQL(_COLUMNS)
            ),
            (tenant,),
        )
        row = cursor.fetchone()
    if row is None:
        raise PermanentError(
            f'tenant "{tenant}" is not being retired',
            hint='Clear the task "begin" and those after it.',
        )
    return Archive(*row)


def record_dump(
    target: connection,
    tenant: str,
    *,
    url: str,
    size: int,
    sha256: str,
    rows: Mapping[str, int],
    contents: Mapping[str, Any],
    server_major: int,
) -> None:
    """
    Record a dump that is complete, in place of a former one. The caller commits.

    :param size: bytes.
    :param rows: of each table.
    """
    with target.cursor() as cursor:
        cursor.execute(
            "UPDATE tenantferry.archives SET url = %s, bytes = %s, sha256 = %s, tables = %s,"
            " rows = %s, contents = %s, server_major = %s, dumped_at = clock_timestamp(),"
            " verified_at = NULL WHERE tenant = %s",
            (url, size, sha256, len(rows), sum(rows.values()), Json(contents), server_major,
             tenant),
        )  # fmt: skip


def record_verified(target: connection, tenant: str) -> None:
    """Record that the dump was restored and holds what it should. The caller commits."""
    with target.cursor() as cursor:
        cursor.execute(
            "UPDATE tenantferry.archives SET verified_at = clock_timestamp() WHERE tenant = %s",
            (tenant,),
        )


def forget_verified(target: connection, tenant: str) -> None:
    """Record that the dump is not what the source holds any more. The caller commits."""
    with target.cursor() as cursor:
        cursor.execute(
            "UPDATE tenantferry.archives SET verified_at = NULL WHERE tenant = %s", (tenant,)
        )


def record_locking(target: connection, tenant: str, *, unlock: str) -> None:
    """Record how the source is opened again, before it is closed; the first time stays."""
    with target.cursor() as cursor:
        cursor.execute(
            "UPDATE tenantferry.archives SET unlock = coalesce(unlock, %s),"
            " locking_at = coalesce(locking_at, clock_timestamp()) WHERE tenant = %s",
            (unlock, tenant),
        )


def record_locked(target: connection, tenant: str) -> None:
    """Record that nobody gets into the source; the first time stays. The caller commits."""
    with target.cursor() as cursor:
        cursor.execute(
            "UPDATE tenantferry.archives SET locked_at = coalesce(locked_at, clock_timestamp())"
            " WHERE tenant = %s",
            (tenant,),
        )
