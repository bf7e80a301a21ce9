"""Where a stream's position is kept: in the transaction of the rows that it describes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from psycopg2.extensions import cursor as cursor_type

from tenantferry.control.witnesses import sign_writer
from tenantferry.fleet.declaration import Tenant
from tenantferry.lsn import format_lsn
from tenantferry.stream.netchange import BrokenStreamError

_ORIGIN = (
    "SELECT pg_replication_origin_xact_setup(%s,"
    " timestamptz '2000-01-01 00:00:00+00' + %s * interval '1 microsecond')"
)
# The old position guards against a second writer of the same row. Mostly a move has no witness, and
# to sign is another round trip; so this asks for one. A transaction that begins when the witness is
# on record sees it, which is all that it counts on: see `ensure_witness`.
_POSITION = (
    "UPDATE tenantferry.streams SET position = %s, confirmed = greatest(confirmed, %s),"
    " changes = changes + %s, transactions = transactions + %s, reported_at = clock_timestamp()"
    " WHERE tenant = %s AND direction = 'forward' AND position = %s"
    " RETURNING EXISTS (SELECT FROM tenantferry.witnesses WHERE tenant = streams.tenant)"
)


@dataclass(frozen=True, slots=True)
class Step:
    """
    What one transaction of the receiver does to a stream.

    :ivar before: P until now.
    :ivar position: P from its commit on.
    :ivar commit_time: of the last transaction applied, microseconds since 2000-01-01 UTC.
    """

    before: int
    position: int
    commit_time: int
    changes: int
    transactions: int


class Progress(Protocol):
    """Keeps the position of one stream."""

    def record(self, cursor: cursor_type, step: Step) -> None:
        """
        Move P; the last statement before COMMIT.

        :raises TenantferryError: if somebody else has moved it.
        """


class TargetProgress:
    """The position of a forward stream: its row and its replication origin in the target."""

    def __init__(self, tenant: Tenant) -> None:
        self._tenant = tenant

    def record(self, cursor: cursor_type, step: Step) -> None:
        """
        Move P.

        :raises BrokenStreamError: if somebody else has moved it.
        """
        new, old = format_lsn(step.position), format_lsn(step.before)
        values = (new, new, step.changes, step.transactions, self._tenant.key, old)
        cursor.execute(_POSITION, values)
        row = cursor.fetchone()
        if row is None:
            raise BrokenStreamError(
                f'stream of tenant "{self._tenant.key}" is not at the position it was left at',
                hint="Another stream of this tenant, or a new backfill, has moved it.",
            )
        if row == (True,):
            sign_writer(cursor, self._tenant.key)
        # Last, for a rollback after it would move the origin too.
        cursor.execute(_ORIGIN, (new, step.commit_time))
