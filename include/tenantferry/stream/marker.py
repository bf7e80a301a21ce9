"""Markers: logical messages that travel in the stream and prove how far it has come."""

from __future__ import annotations

from psycopg2.extensions import connection

from tenantferry.fleet.declaration import Tenant
from tenantferry.lsn import parse_lsn

MARKER_PREFIX = "tenantferry"


def emit_marker(source: connection, tenant: Tenant, *, content: str = "") -> int:
    """
    Write a marker into the source's log.

    The message is transactional, so it arrives in commit order: once the stream's position has
    reached the returned LSN, everything that was committed before this call is applied.

    :param source: session in autocommit, which makes the marker a transaction of its own.
    :return: LSN after the message and not after its commit record: the marker's transaction has
        ``commit_lsn >= LSN``, every earlier one ``commit_lsn < LSN``.
    """
    return write_marker(source, f"{tenant.key} {content}")


def write_marker(sender: connection, text: str) -> int:
    """
    Write a marker with any content; see `emit_marker`.

    :param sender: session in autocommit, or the open transaction that the marker shall belong to.
    """
    with sender.cursor() as cursor:
        cursor.execute("SELECT pg_logical_emit_message(true, %s, %s)::text", (MARKER_PREFIX, text))
        row = cursor.fetchone()
    return parse_lsn(row[0]) if row else 0
