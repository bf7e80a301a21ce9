"""What the reverse streams say of themselves in the control schema, and are told there."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any
from uuid import UUID

import psycopg2
from psycopg2.extensions import connection

from tenantferry.control.direction import Direction
from tenantferry.control.graces import REVERSE_SLOT, Grace, lose_way_back, read_graces
from tenantferry.control.streams import (
    COMMAND_CHANNELS,
    STATE_CHANNEL,
    StreamCommand,
    StreamState,
)
from tenantferry.errors import TenantferryError
from tenantferry.lsn import format_lsn, parse_lsn
from tenantferry.reverse.slot import publish
from tenantferry.schema.reverse_publication import has_unpublished_tables
from tenantferry.stream.answers import Order
from tenantferry.stream.failures import explain

logger = logging.getLogger(__name__)

_REPORT = resources.files("tenantferry.reverse").joinpath("report.sql").read_text("utf-8")
_ORDERS = (
    "SELECT tenant, command, command_lsn::text, command_id,"
    " coalesce(lease_until <= clock_timestamp(), false)"
    " FROM tenantferry.streams WHERE direction = 'reverse' AND tenant = ANY (%(tenants)s)"
)
_ACKNOWLEDGE = (
    "WITH answered AS (UPDATE tenantferry.streams SET acknowledged_id = %(id)s, state = %(state)s,"
    " position = greatest(position, %(position)s::pg_lsn)"
    " WHERE tenant = %(tenant)s AND direction = 'reverse' RETURNING tenant)"
    " SELECT pg_notify(%(channel)s, tenant) FROM answered"
)
_ANNOUNCE = (
    "WITH moved AS (UPDATE tenantferry.streams"
    " SET position = greatest(position, %(position)s::pg_lsn)"
    " WHERE tenant = %(tenant)s AND direction = 'reverse' RETURNING tenant)"
    " SELECT pg_notify(%(channel)s, tenant) FROM moved"
)
_END_LEASE = (
    "WITH free AS (SELECT tenant FROM tenantferry.streams"
    " WHERE tenant = %(tenant)s AND direction = 'reverse' AND command_id = %(id)s"
    " AND lease_until <= clock_timestamp() FOR NO KEY UPDATE SKIP LOCKED),"
    " ended AS (UPDATE tenantferry.streams AS streams SET command = 'run', command_lsn = NULL,"
    " lease_until = NULL, command_id = command_id + 1 FROM free"
    " WHERE streams.tenant = free.tenant AND streams.direction = 'reverse'"
    " RETURNING streams.tenant) SELECT pg_notify(%(channel)s, tenant) FROM ended"
)
_SLOT = (
    "UPDATE tenantferry.reverse_slot SET confirmed = greatest(confirmed, %(confirmed)s::pg_lsn),"
    " read_to = %(read_to)s, reported_at = clock_timestamp(), error = NULL WHERE slot = %(slot)s"
    " RETURNING slot"
)
_TENANTS = """
SELECT tenants.tenant, tenants.tenant_id::text, streams.reported_at IS NOT NULL,
    coalesce(streams.source_position, '0/0')::text
FROM tenantferry.tenants AS tenants
LEFT JOIN tenantferry.streams AS streams
    ON streams.tenant = tenants.tenant AND streams.direction = 'reverse'
WHERE tenants.tenant = ANY (%(tenants)s)
"""
_FOLLOW = (
    "UPDATE tenantferry.streams SET state = %(state)s, error = NULL,"
    " reported_at = clock_timestamp() WHERE tenant = %(tenant)s AND direction = 'reverse'"
)
# A transaction id as the stream tells it has lost its upper half; it is one of the last 2 billion.
_IS_VISIBLE = """
SELECT pg_visible_in_snapshot(
    (CASE WHEN %(xid)s > low THEN high - 4294967296 ELSE high END + %(xid)s)::text::xid8,
    pg_current_snapshot())
FROM (SELECT pg_snapshot_xmax(pg_current_snapshot())::text::numeric AS next) AS x,
    LATERAL (SELECT mod(next, 4294967296) AS low, next - mod(next, 4294967296) AS high) AS parts
"""


@dataclass(frozen=True, slots=True)
class OpenGrace:
    """
    A grace with a way back.

    :ivar is_followed: whether a reverse stream has known of it since it began.
    :ivar source_position: the source has recorded it; 0 where nothing is known of that.
    """

    grace: Grace
    tenant_id: UUID
    is_followed: bool
    source_position: int


@dataclass(frozen=True, slots=True)
class LaneReport:
    """
    What one reverse stream says of itself.

    :ivar source_position: what the source itself has recorded; 0: it was not asked.
    :ivar commit_time: of the oldest transaction that waits, microseconds since 2000-01-01 UTC.
    """

    tenant: str
    state: StreamState
    position: int
    source_position: int
    changes: int | None
    transactions: int | None
    commit_time: int | None
    error: str | None


@dataclass(frozen=True, slots=True)
class Calls:
    """
    What was notified since the last look.

    :ivar tenants: whose command may have changed.
    :ivar waited_for: positions that somebody waits for, by tenant.
    :ivar graces: whether the graces may have changed.
    """

    tenants: set[str]
    waited_for: list[tuple[str, int]]
    graces: bool


class Board:
    """
    Talks to the control schema for all reverse streams.

    :param target: session of its own, in autocommit.
    """

    def __init__(self, target: connection) -> None:
        self._target = target
        self._run(f"LISTEN {COMMAND_CHANNELS[Direction.REVERSE]}", {})

    def fileno(self) -> int:
        """Return the descriptor that is readable when `read_calls` may find something."""
        descriptor: int = self._target.fileno()
        return descriptor

    def read_calls(self) -> Calls:
        """
        Return what was notified; never wait.

        :raises TransientError: if the target is lost.
        """
        try:
            self._target.poll()
        except psycopg2.Error as error:
            raise explain(error, "listen to commands") from None
        calls = Calls(set(), [], graces=False)
        while self._target.notifies:
            tenant, _, lsn_text = self._target.notifies.pop(0).payload.partition(" ")
            if not tenant:
                calls = Calls(calls.tenants, calls.waited_for, graces=True)
            elif lsn_text:
                calls.waited_for.append((tenant, parse_lsn(lsn_text)))
            else:
                calls.tenants.add(tenant)
        return calls

    def read_graces(self) -> list[OpenGrace]:
        """Return the graces that have a way back."""
        try:
            graces = [grace for grace in read_graces(self._target) if grace.lost_at is None]
        except psycopg2.Error as error:
            raise explain(error, "read the graces") from None
        found = self._run(_TENANTS, {"tenants": [grace.tenant for grace in graces]})
        tenants = {
            tenant: (UUID(id_text), is_followed, parse_lsn(source_position))
            for tenant, id_text, is_followed, source_position in found
        }
        return [OpenGrace(grace, *tenants[grace.tenant]) for grace in graces]

    def follow(self, tenant: str) -> None:
        """Record that from now on no change of a tenant is passed over."""
        self._run(_FOLLOW, {"tenant": tenant, "state": StreamState.STARTING})

    def is_visible(self, xid: int) -> bool:
        """
        Tell whether a committed transaction can be seen.

        The log tells of a commit a moment before other sessions see what it did.
        """
        return self._run(_IS_VISIBLE, {"xid": xid}) == [(True,)]

    def report(
        self,
        reports: Collection[LaneReport],
        *,
        confirmed: int,
        read_to: int,
        seen: int,
        read_lag_seconds: float | None,
    ) -> dict[str, Order]:
        """
        Write the reports, read the orders.

        :return: the order of each stream; one whose row somebody else holds is missing.
        """
        columns = {
            "tenants": [r.tenant for r in reports],
            "states": [str(r.state) for r in reports],
            "positions": [format_lsn(r.position) for r in reports],
            "source_positions": [format_lsn(r.source_position) for r in reports],
            "changes": [r.changes for r in reports],
            "transactions": [r.transactions for r in reports],
            "commit_times": [r.commit_time for r in reports],
            "errors": [r.error for r in reports],
            "confirmed": format_lsn(confirmed),
            "seen": format_lsn(max(seen, read_to)),
            "read_lag_seconds": read_lag_seconds,
        }
        return _orders(self._run(_REPORT, columns)) if reports else {}

    def record_slot(self, *, confirmed: int, read_to: int) -> bool:
        """
        Record how far the slot will be confirmed.

        :return: ``False`` if the slot was given up.
        """
        values = {
            "confirmed": format_lsn(confirmed),
            "read_to": format_lsn(read_to),
            "slot": REVERSE_SLOT,
        }
        return bool(self._run(_SLOT, values))

    def read_orders(self, tenants: Collection[str]) -> dict[str, Order]:
        """Return the orders of some streams."""
        return _orders(self._run(_ORDERS, {"tenants": list(tenants)}))

    def acknowledge(self, tenant: str, order: Order, state: StreamState, position: int) -> None:
        """Answer that an order is carried out."""
        self._run(
            _ACKNOWLEDGE,
            {
                "id": order.id,
                "state": state,
                "position": format_lsn(position),
                "tenant": tenant,
                "channel": STATE_CHANNEL,
            },
        )

    def end_lease(self, tenant: str, order: Order) -> None:
        """
        Replace an order whose lease is over by ``run``, unless it was renewed meanwhile.

        Where somebody holds the row, it is for the next time: nobody waits.
        """
        self._run(_END_LEASE, {"id": order.id, "tenant": tenant, "channel": STATE_CHANNEL})

    def announce(self, tenant: str, position: int) -> None:
        """Tell those who wait for it that a position is reached."""
        values = {"position": format_lsn(position), "tenant": tenant, "channel": STATE_CHANNEL}
        self._run(_ANNOUNCE, values)

    def publish(self) -> None:
        """Publish tables that have appeared; what does not work now is tried again later."""
        try:
            if not has_unpublished_tables(self._target, REVERSE_SLOT):
                return
            self._target.autocommit = False
            with self._target:
                # Reading must not wait for a preparation that changes the schema meanwhile.
                with self._target.cursor() as cursor:
                    cursor.execute("SET LOCAL lock_timeout = '1s'")
                publish(self._target)
        except TenantferryError as error:
            logger.warning("a new table is not followed yet: %s", error)
        except psycopg2.Error as error:
            raise explain(error, "publish the tables of tenants") from None
        finally:
            if not self._target.closed:
                self._target.autocommit = True

    def lose(self, grace: Grace, reason: str) -> None:
        """Record that a tenant cannot go back any more."""
        try:
            lose_way_back(self._target, grace.id, reason=reason)
        except psycopg2.Error as error:
            raise explain(error, "record a lost way back") from None
        self._run(
            "UPDATE tenantferry.streams SET state = %(state)s, error = %(reason)s,"
            " reported_at = clock_timestamp() WHERE tenant = %(tenant)s AND direction = 'reverse'",
            {"state": StreamState.FAILED, "reason": reason, "tenant": grace.tenant},
        )

    def _run(self, statement: str, values: Mapping[str, object]) -> list[tuple[Any, ...]]:
        try:
            with self._target.cursor() as cursor:
                cursor.execute(statement, values)
                return cursor.fetchall() if cursor.description else []
        except psycopg2.Error as error:
            raise explain(error, "report what the reverse streams do") from None


def _orders(rows: list[tuple[Any, ...]]) -> dict[str, Order]:
    return {
        tenant: Order(StreamCommand(verb), parse_lsn(lsn or "0/0"), number, has_expired)
        for tenant, verb, lsn, number, has_expired in rows
    }
