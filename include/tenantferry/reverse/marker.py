"""
Markers in the target that tell the reverse stream when a tenant's grace begins and is over.

A grace begins in the transaction that also lets the tenant's clients into the target. Its marker
belongs to that transaction, so it comes in commit order before every change of theirs.
"""

from __future__ import annotations

from psycopg2.extensions import connection

from tenantferry.stream.marker import write_marker

_GRACE = "grace"
_GRACE_OVER = "grace over"


def emit_grace(target: connection, tenant_key: str) -> int:
    """
    Announce that a tenant's grace begins.

    :param target: the open transaction that flips the tenant; the caller commits.
    :return: LSN, the *start_lsn* for `begin_grace`: nothing that the tenant's clients write in the
        target is committed before it.
    """
    return write_marker(target, f"{tenant_key} {_GRACE}")


def emit_grace_over(target: connection, tenant_key: str) -> int:
    """
    Announce that a tenant's grace is over.

    :param target: the open transaction that ends the grace; the caller commits.
    :return: LSN after the marker.
    """
    return write_marker(target, f"{tenant_key} {_GRACE_OVER}")


def read_grace_marker(content: bytes) -> str | None:
    """Return the key of the tenant whose grace has changed; ``None``: of nobody."""
    tenant, _, text = content.decode("utf-8", "replace").partition(" ")
    return tenant if text in (_GRACE, _GRACE_OVER) else None
