"""The stream's own markers: how long a commit takes until it is applied."""

from __future__ import annotations

import secrets
import time

import psycopg2
from psycopg2.extensions import connection

from tenantferry.stream.failures import explain
from tenantferry.stream.marker import write_marker

INTERVAL_SECONDS = 1.0


class Heartbeat:
    """
    Writes a marker about every second, but never a second one before the first came back.

    :param sender: session in autocommit with the side whose changes the stream reads.
    :param label: tells its markers from those of others; a tenant's key.
    :ivar lsn: of the last marker written, 0 before the first.
    """

    def __init__(self, sender: connection, label: str) -> None:
        self._sender = sender
        self._label = label
        self._content = b""
        self._sent_at = 0.0
        self._measured_at = 0.0
        self._due_at = 0.0
        self._round_trip: float | None = None
        self.lsn = 0

    @property
    def lag_seconds(self) -> float | None:
        """
        Round trip of the last marker, or how long the next one is already on its way.

        ``None`` is unknown: none has come back yet.
        """
        if self._round_trip is None or not self._content:
            return self._round_trip
        return max(self._round_trip, time.monotonic() - self._sent_at)

    @property
    def lag_age_seconds(self) -> float | None:
        """How long ago the last marker came back."""
        return None if self._round_trip is None else time.monotonic() - self._measured_at

    @property
    def is_due(self) -> bool:
        """Whether it is time for the next marker."""
        return not self._content and time.monotonic() >= self._due_at

    def beat(self) -> None:
        """
        Write a marker and measure its way.

        :raises TransientError: if the sender is lost.
        """
        nonce = secrets.token_hex(8)
        self._sent_at = time.monotonic()
        self._due_at = self._sent_at + INTERVAL_SECONDS
        self._emit(nonce)
        self._content = f"{self._label} {nonce}".encode()

    def nudge(self) -> None:
        """
        Write a marker that nobody measures: after it an idle sender is known to hold no more.

        :raises TransientError: if the sender is lost.
        """
        self._emit("")

    def come_back(self, contents: list[bytes], at: float) -> None:
        """
        Take note of markers that are applied.

        :param at: ``time.monotonic()`` when they were durable in the receiver.
        """
        if self._content and self._content in contents:
            self._round_trip = at - self._sent_at
            self._measured_at = at
            self._content = b""

    def _emit(self, content: str) -> None:
        try:
            self.lsn = write_marker(self._sender, f"{self._label} {content}")
        except psycopg2.Error as error:
            raise explain(error, "write a marker") from None
