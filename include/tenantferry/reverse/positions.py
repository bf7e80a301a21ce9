"""
How far a tenant's source has followed the target: a row in the source, written with the rows.

Invariant: the source holds exactly what the tenant's clients committed in the target before
``position``. Whoever applies says in the same transaction where it believes to stand; if that is
not so, nothing of it happens.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources

from psycopg2.extensions import connection
from psycopg2.extensions import cursor as cursor_type

from tenantferry.control.graces import Grace
from tenantferry.errors import PermanentError, TransientError
from tenantferry.lsn import format_lsn, parse_lsn
from tenantferry.stream.progress import Step

_DDL = resources.files("tenantferry.reverse").joinpath("positions.sql").read_text("utf-8")
# A row of the same number that began elsewhere belongs to another target.
_BEGIN = (
    "INSERT INTO tenantferry.reverse_positions AS known (grace, start_lsn, position)"
    " VALUES (%(grace)s, %(start)s, %(start)s)"
    " ON CONFLICT (grace) DO UPDATE SET start_lsn = excluded.start_lsn,"
    " position = excluded.position, changes = 0, transactions = 0, closed_at = NULL"
    " WHERE known.start_lsn <> excluded.start_lsn"
)
_READ = (
    "SELECT position::text, changes, transactions, closed_at IS NOT NULL"
    " FROM tenantferry.reverse_positions WHERE grace = %s"
)
_MOVE = (
    "UPDATE tenantferry.reverse_positions SET position = %s, changes = changes + %s,"
    " transactions = transactions + %s, moved_at = clock_timestamp()"
    " WHERE grace = %s AND position = %s AND closed_at IS NULL"
)
_CLOSE = (
    "UPDATE tenantferry.reverse_positions SET closed_at = coalesce(closed_at, clock_timestamp())"
    " WHERE grace = %s RETURNING position::text"
)
_REOPEN = "UPDATE tenantferry.reverse_positions SET closed_at = NULL WHERE grace = %s"


class PositionTakenError(TransientError):
    """Another process, or a rollback, has taken the source over."""


class SourceWentBackError(PermanentError):
    """The source lacks what it once held, and the log that held it may be gone."""


@dataclass(frozen=True, slots=True)
class Position:
    """Where a source stands, and what was applied to it since the grace began."""

    lsn: int
    changes: int
    transactions: int


def begin_position(source: connection, grace: Grace, *, reached: int = 0) -> Position:
    """
    Return where a source stands; in a new grace that is where the grace began.

    :param source: session in autocommit.
    :param reached: where it has stood before.
    :raises PositionTakenError: if the position is closed.
    :raises SourceWentBackError: if it stands before that.
    """
    with source.cursor() as cursor:
        _ensure_row(cursor, grace)
        cursor.execute(_READ, (grace.id,))
        text, changes, transactions, is_closed = cursor.fetchone() or ("0/0", 0, 0, True)
    if is_closed:
        raise _taken(grace.tenant, "It was closed, as a rollback does before it moves the clients.")
    lsn = parse_lsn(text)
    if lsn < reached:
        raise SourceWentBackError(
            f'the source of tenant "{grace.tenant}" went back in time',
            detail=f"Its source held what was written before {format_lsn(reached)}, and holds only"
            f" what was written before {text} now, as after a failover to a standby that lagged or"
            " a restore.",
        )
    return Position(lsn, changes, transactions)


def read_position(source: connection, grace: Grace) -> int:
    """
    Return where a source stands; where nothing was applied yet, that is where the grace began.

    :param source: open transaction or autocommit; only read.
    """
    with source.cursor() as cursor:
        cursor.execute("SELECT to_regclass('tenantferry.reverse_positions') IS NULL")
        if cursor.fetchone() == (True,):
            return grace.start_lsn
        cursor.execute(_READ, (grace.id,))
        row = cursor.fetchone()
    return parse_lsn(row[0]) if row else grace.start_lsn


def close_position(source: connection, grace: Grace) -> int:
    """
    Let no reverse stream apply anything to this source any more, whatever process it is in.

    For a rollback: waits until what is being applied is committed.

    :param source: open transaction or autocommit; the caller commits.
    :return: the position, which is final with that.
    """
    with source.cursor() as cursor:
        _ensure_row(cursor, grace)
        cursor.execute(_CLOSE, (grace.id,))
        row = cursor.fetchone()
    return parse_lsn(row[0]) if row else grace.start_lsn


def reopen_position(source: connection, grace: Grace) -> None:
    """
    Take a `close_position` back: for a rollback that is undone.

    :param source: open transaction or autocommit; the caller commits.
    """
    with source.cursor() as cursor:
        _ensure_row(cursor, grace)
        cursor.execute(_REOPEN, (grace.id,))


class SourceProgress:
    """The position of a reverse stream: its row in the source."""

    def __init__(self, grace: Grace) -> None:
        self._grace = grace

    def record(self, cursor: cursor_type, step: Step) -> None:
        """
        Move P.

        :raises PositionTakenError: if somebody else has moved or closed it.
        """
        new, old = format_lsn(step.position), format_lsn(step.before)
        cursor.execute(_MOVE, (new, step.changes, step.transactions, self._grace.id, old))
        if cursor.rowcount != 1:
            raise _taken(self._grace.tenant, f"It is not at {old} any more, or closed.")


def _ensure_row(cursor: cursor_type, grace: Grace) -> None:
    cursor.execute("SELECT to_regclass('tenantferry.reverse_positions') IS NULL")
    if cursor.fetchone() == (True,):
        cursor.execute(_DDL)
    cursor.execute(_BEGIN, {"grace": grace.id, "start": format_lsn(grace.start_lsn)})


def _taken(tenant: str, detail: str) -> PositionTakenError:
    return PositionTakenError(
        f'the position of the reverse stream of tenant "{tenant}" was taken over',
        detail=detail,
        hint="Another process applies to this source, or a rollback is about to end.",
    )
