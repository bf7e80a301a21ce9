"""
The timelines of a server: which one it writes, and where it left the earlier ones.

A standby that is promoted keeps the system identifier and begins a new timeline. The log before
the switch is the old primary's; what that one wrote after it never was on this server.
"""

from __future__ import annotations

from dataclasses import dataclass

from psycopg2 import errors, sql
from psycopg2.extras import LogicalReplicationConnection

from tenantferry.lsn import parse_lsn

_FIRST = 1


@dataclass(frozen=True, slots=True)
class Timeline:
    """
    A timeline of one cluster. Its number alone does not tell it from others.

    :ivar began: LSN at which it left the one before, 0 of the first one; ``None``: not known.
    """

    number: int
    began: int | None

    def may_be(self, other: Timeline) -> bool:
        """
        Tell whether nothing speaks against two timelines being one.

        Two standbys that are promoted without knowing of each other take the same number.
        """
        is_known = self.began is not None and other.began is not None
        return self.number == other.number and (not is_known or self.began == other.began)


@dataclass(frozen=True, slots=True)
class Stretch:
    """
    A timeline that a server was on.

    :ivar left: LSN at which it left it; ``None``: it writes this one.
    """

    timeline: Timeline
    left: int | None


def read_timeline(walsender: LogicalReplicationConnection) -> Timeline:
    """
    Return the timeline that a server writes.

    :param walsender: replication session that has not started a slot.
    """
    return read_history(walsender)[-1].timeline


def read_history(walsender: LogicalReplicationConnection) -> list[Stretch]:
    """
    Return the timelines that a server was on, and last the one that it writes.

    :param walsender: replication session that has not started a slot.
    """
    with walsender.cursor() as cursor:
        cursor.execute("IDENTIFY_SYSTEM")
        _, number, *_ = cursor.fetchone() or ("", 0)
        if number == _FIRST:  # it has no history
            return parse_history("", number)
        try:
            cursor.execute(sql.SQL("TIMELINE_HISTORY {}").format(sql.Literal(number)))
        except errors.UndefinedFile:  # somebody has removed it
            return [Stretch(Timeline(number, None), None)]
        _, content = cursor.fetchone() or ("", b"")
    # Its type is text before version 15, and bytea from then on.
    text = content if isinstance(content, str) else bytes(content).decode("utf-8")
    return parse_history(text, number)


def parse_history(text: str, number: int) -> list[Stretch]:
    r"""
    Return the timelines that a history file tells of, and last the one that it belongs to.

    :param number: of that one.

    Source: ``readTimeLineHistory`` of PostgreSQL.

    >>> one, two = parse_history("1\t0/3000148\tno recovery target specified\n", 2)
    >>> one
    Stretch(timeline=Timeline(number=1, began=0), left=50331976)
    >>> two
    Stretch(timeline=Timeline(number=2, began=50331976), left=None)
    """
    history = []
    began = 0
    for line in text.splitlines():
        fields = line.split("\t")
        if fields[0].strip().isdigit():
            left = parse_lsn(fields[1])
            history.append(Stretch(Timeline(int(fields[0]), began), left))
            began = left
    return [*history, Stretch(Timeline(number, began), None)]
