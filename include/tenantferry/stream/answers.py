"""The stream's side of the handshake: hear commands, answer them, report."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from typing import Any

import psycopg2
from psycopg2.extensions import connection

from tenantferry.control.direction import Direction
from tenantferry.control.streams import (
    COMMAND_CHANNELS,
    STATE_CHANNEL,
    StreamCommand,
    StreamState,
)
from tenantferry.errors import PermanentError
from tenantferry.lsn import format_lsn, parse_lsn
from tenantferry.stream.failures import explain

_REPORT = resources.files("tenantferry.stream").joinpath("answers.sql").read_text("utf-8")
_ACKNOWLEDGE = (
    "WITH answered AS (UPDATE tenantferry.streams SET acknowledged_id = %(id)s, state = %(state)s,"
    " touched_since = CASE WHEN %(state)s = 'holding' THEN coalesce(touched_since, position)"
    " ELSE touched_since END"
    " WHERE tenant = %(tenant)s AND direction = 'forward' RETURNING tenant)"
    " SELECT pg_notify(%(channel)s, tenant) FROM answered"
)
_END_LEASE = (
    "WITH ended AS (UPDATE tenantferry.streams SET command = 'run', command_lsn = NULL,"
    " lease_until = NULL, command_id = command_id + 1"
    " WHERE tenant = %(tenant)s AND direction = 'forward' AND command_id = %(id)s"
    " AND lease_until <= clock_timestamp()"
    " RETURNING tenant) SELECT pg_notify(%(channel)s, tenant) FROM ended"
)


@dataclass(frozen=True, slots=True)
class Order:
    """
    What the stream is told.

    :ivar lsn: where ``advance`` and ``stop`` end.
    :ivar has_expired: whether its lease is over.
    """

    command: StreamCommand
    lsn: int
    id: int
    has_expired: bool


@dataclass(slots=True)
class Report:
    """
    What the stream says of itself.

    :ivar lag_seconds: round trip of the last marker; ``None`` is unknown.
    :ivar lag_age_seconds: how long ago it came back.
    :ivar lag_bytes: log of the source behind P; ``None`` is unknown.
    """

    state: StreamState
    confirmed: int
    lag_seconds: float | None = None
    lag_age_seconds: float | None = None
    lag_bytes: int | None = None


class Answers:
    """
    Talks to the control schema.

    :param target: session of its own, in autocommit.
    """

    def __init__(self, target: connection, tenant: str) -> None:
        self._target = target
        self._tenant = tenant
        self._waiting: set[int] = set()
        self._run(f"LISTEN {COMMAND_CHANNELS[Direction.FORWARD]}", {})

    def fileno(self) -> int:
        """Return the descriptor that is readable when `was_called` may be true."""
        descriptor: int = self._target.fileno()
        return descriptor

    def was_called(self) -> bool:
        """
        Tell whether somebody has changed the command since the last call; never wait.

        Also remembers who waits for which position.

        :raises TransientError: if the target is lost.
        """
        try:
            self._target.poll()
        except psycopg2.Error as error:
            raise explain(error, "listen to commands") from None
        called = False
        while self._target.notifies:
            tenant, _, lsn_text = self._target.notifies.pop(0).payload.partition(" ")
            if tenant != self._tenant:
                continue
            if lsn_text:
                self._waiting.add(parse_lsn(lsn_text))
            else:
                called = True
        return called

    def report(self, report: Report) -> Order:
        """
        Write the report, read the current order.

        :raises TransientError: if the target is lost.
        """
        row = self._run(
            _REPORT,
            {
                "state": report.state,
                "confirmed": format_lsn(report.confirmed),
                "lag_seconds": report.lag_seconds,
                "lag_age_seconds": report.lag_age_seconds,
                "lag_bytes": report.lag_bytes,
                "tenant": self._tenant,
            },
        )
        if row is None:
            raise PermanentError(f'tenant "{self._tenant}" has no stream any more')
        return Order(StreamCommand(row[0]), parse_lsn(row[1] or "0/0"), row[2], row[3])

    def acknowledge(self, order: Order, state: StreamState) -> None:
        """Answer that the order is carried out."""
        self._run(
            _ACKNOWLEDGE,
            {"id": order.id, "state": state, "tenant": self._tenant, "channel": STATE_CHANNEL},
        )

    def end_lease(self, order: Order) -> None:
        """Replace an order whose lease is over by ``run``, unless it was renewed meanwhile."""
        self._run(_END_LEASE, {"id": order.id, "tenant": self._tenant, "channel": STATE_CHANNEL})

    def announce(self, position: int) -> None:
        """Wake those who wait for a position that is reached."""
        if any(lsn <= position for lsn in self._waiting):
            self._waiting = {lsn for lsn in self._waiting if lsn > position}
            self._run(
                "SELECT pg_notify(%(channel)s, %(tenant)s)",
                {"channel": STATE_CHANNEL, "tenant": self._tenant},
            )

    def end(self, state: StreamState, error: str | None) -> None:
        """Report how the stream ended."""
        self._run(
            "UPDATE tenantferry.streams SET state = %(state)s, error = %(error)s,"
            " reported_at = clock_timestamp() WHERE tenant = %(tenant)s AND direction = 'forward'",
            {"state": state, "error": error, "tenant": self._tenant},
        )

    def _run(self, statement: str, values: dict[str, object]) -> tuple[Any, ...] | None:
        try:
            with self._target.cursor() as cursor:
                cursor.execute(statement, values)
                row: tuple[Any, ...] | None = cursor.fetchone() if cursor.description else None
        except psycopg2.Error as error:
            raise explain(error, "report what the stream does") from None
        return row
