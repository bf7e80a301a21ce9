"""
The timelines of a server: which one it writes, and where it left an earlier one.

A standby that is promoted keeps the system identifier and begins a new timeline. The log before
the switch is the old primary's; what that one wrote after it never was on this server.
"""

from __future__ import annotations

from psycopg2 import errors, sql
from psycopg2.extras import LogicalReplicationConnection

from tenantferry.lsn import parse_lsn


def read_timeline(walsender: LogicalReplicationConnection) -> int:
    """
    Return the timeline that a server writes.

    :param walsender: replication session that has not started a slot.
    """
    with walsender.cursor() as cursor:
        cursor.execute("IDENTIFY_SYSTEM")
        _, timeline, *_ = cursor.fetchone() or ("", 0)
    return int(timeline)


def read_switch_point(
    walsender: LogicalReplicationConnection, *, former: int, timeline: int
) -> int | None:
    """
    Return the LSN at which a server left an earlier timeline.

    :param walsender: replication session that has not started a slot.
    :param timeline: that it writes now.
    :return: ``None`` if it never was on the earlier one, or does not know.
    """
    with walsender.cursor() as cursor:
        try:
            cursor.execute(sql.SQL("TIMELINE_HISTORY {}").format(sql.Literal(timeline)))
        except errors.UndefinedFile:  # the first timeline has no history
            return None
        _, content = cursor.fetchone() or ("", b"")
    # Its type is text before version 15, and bytea from then on.
    text = content if isinstance(content, str) else bytes(content).decode("utf-8")
    return parse_history(text).get(former)


def parse_history(text: str) -> dict[int, int]:
    r"""
    Return where each timeline of a history file was left.

    Source: ``readTimeLineHistory`` of PostgreSQL.

    >>> parse_history("1\t0/3000148\tno recovery target specified\n\n2\t0/4000000\tbefore x\n")
    {1: 50331976, 2: 67108864}
    """
    lines = (line.split("\t") for line in text.splitlines())
    return {int(fields[0]): parse_lsn(fields[1]) for fields in lines if fields[0].strip().isdigit()}
