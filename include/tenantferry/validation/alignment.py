"""
Sessions on both sides that show the same instant, while the stream goes on.

One side sends changes and the other applies them: the source and the target of a tenant on its way,
the target and the source of one in grace. The sender says by a slot at which position its snapshot
is; the receiver is brought to exactly that position.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass

import psycopg2
from psycopg2.extensions import connection

from tenantferry.backfill.chunk import TEXT_SETTINGS
from tenantferry.backfill.snapshot import (
    Snapshot,
    drop_slot,
    exported_snapshot,
    import_snapshot,
)
from tenantferry.connections import ConnectionParams, open_connection
from tenantferry.control.direction import Direction
from tenantferry.control.graces import require_way_back
from tenantferry.control.streams import require_stream
from tenantferry.errors import TenantferryError, TransientError
from tenantferry.failpoints import Point, reach
from tenantferry.fleet import Tenant
from tenantferry.lsn import format_lsn
from tenantferry.reverse.positions import read_position
from tenantferry.stream.handshake import advance, hold, release
from tenantferry.stream.marker import emit_marker

logger = logging.getLogger(__name__)

# The stream stands still while the slot for the snapshot is created; a sender that cannot give
# one within this time is left alone, and the comparison is tried again later.
SLOT_TIMEOUT_SECONDS = 60.0
# Covers creating the slot; a validation that dies leaves the stream held no longer than this.
LEASE_SECONDS = SLOT_TIMEOUT_SECONDS + 30.0
HANDSHAKE_TIMEOUT_SECONDS = 60.0

# The probes write, and roll back; they must neither fire triggers nor wait for the stream.
PROBE_SETTINGS = {"session_replication_role": "replica", "lock_timeout": "5s"}


@dataclass(frozen=True, slots=True)
class Lane:
    """Two sessions that compare one chunk at a time; both only read."""

    source: connection
    target: connection


@dataclass(frozen=True, slots=True)
class View:
    """
    Both sides at one instant.

    :ivar position: exactly the sender's transactions with ``commit_lsn < position`` are visible.
    :ivar probe: a session in the target that sees the same and may write what it rolls back.
    :ivar is_live: whether clients write to the tenant's rows in the target.
    """

    position: int
    lanes: tuple[Lane, ...]
    probe: connection
    is_live: bool = False

    def cancel(self) -> None:
        """Make every statement that still runs end."""
        for lane in self.lanes:
            for session in (lane.source, lane.target):
                with contextlib.suppress(psycopg2.Error):
                    session.cancel()


@contextmanager
def aligned_view(
    source_params: ConnectionParams,
    target_params: ConnectionParams,
    tenant: Tenant,
    *,
    lanes: int,
    direction: Direction = Direction.FORWARD,
    slot_timeout_seconds: float | None = None,
) -> Iterator[View]:
    """
    Hold the stream, show both sides at one position, and let the stream go on.

    :param lanes: chunks that can be compared at the same time.
    :param direction: of the stream that runs.
    :param slot_timeout_seconds: by default, and at most, `SLOT_TIMEOUT_SECONDS`.
    :raises TransientError: if the stream or the sender's slot does not answer in time.
    """
    sides = _Sides(tenant, direction, source_params, target_params)
    slot_timeout = min(slot_timeout_seconds or SLOT_TIMEOUT_SECONDS, SLOT_TIMEOUT_SECONDS)
    with ExitStack() as sessions:
        # The slot, and the session that exported the other snapshot, are not needed any more once
        # both are imported: a long comparison keeps no log back.
        with (
            _held(target_params, tenant, direction) as stream,
            sides.sent_snapshot(timeout_seconds=slot_timeout) as sent,
        ):
            position = sent.consistent_point
            # A later snapshot than the position that the stream holds at, so that the stream can
            # be brought to it, and not a row further.
            sides.advance(position)
            with closing(_open(sides.receiver, tenant)) as receiver:
                received = export_snapshot(receiver, position)
                sides.check_position(receiver, position)
                stream.release()
                ours, theirs = sides.order(sent, received)
                opened = tuple(
                    open_lane(sessions, source_params, target_params, tenant, ours, theirs)
                    for _ in range(lanes)
                )
                probe = sessions.enter_context(
                    closing(_open(target_params, tenant, **PROBE_SETTINGS))
                )
                import_snapshot(probe, theirs, readonly=False)
        reach(Point.ALIGNED)
        yield View(position, opened, probe, is_live=direction is Direction.REVERSE)


@dataclass(frozen=True, slots=True)
class _Sides:
    """Who sends, and who applies."""

    tenant: Tenant
    direction: Direction
    source: ConnectionParams
    target: ConnectionParams

    @property
    def sender(self) -> ConnectionParams:
        return self.source if self.direction is Direction.FORWARD else self.target

    @property
    def receiver(self) -> ConnectionParams:
        return self.target if self.direction is Direction.FORWARD else self.source

    def order(self, sent: Snapshot, received: Snapshot) -> tuple[Snapshot, Snapshot]:
        """Return the snapshot of the source, that of the target."""
        return (sent, received) if self.direction is Direction.FORWARD else (received, sent)

    @contextmanager
    def sent_snapshot(self, *, timeout_seconds: float) -> Iterator[Snapshot]:
        """Export a snapshot of the sender whose position is known."""
        with closing(_open(self.sender, self.tenant)) as sender:
            sender.autocommit = True
            # Of a validation whose process is gone but whose session is not.
            drop_slot(sender, self.tenant.validation_slot)
        with exported_snapshot(
            self.sender,
            slot=self.tenant.validation_slot,
            temporary=True,
            timeout_seconds=timeout_seconds,
        ) as snapshot:
            yield snapshot

    def advance(self, lsn: int) -> None:
        """Bring the receiver to exactly *lsn*."""
        with closing(_open(self.sender, self.tenant)) as sender:
            sender.autocommit = True
            # On an idle sender nothing else would tell the stream that the log has reached the LSN.
            emit_marker(sender, self.tenant)
        advance(
            self.target,
            self.tenant.key,
            lsn,
            lease_seconds=LEASE_SECONDS,
            timeout_seconds=HANDSHAKE_TIMEOUT_SECONDS,
            direction=self.direction,
        )

    def check_position(self, receiver: connection, position: int) -> None:
        """
        Check what the snapshot itself says: the position is stored with the rows.

        :raises TransientError: if the stream went on before the snapshot was taken, e.g. because
            its lease ended while this process was kept waiting.
        """
        found = self._read_position(receiver)
        if found != position:
            raise TransientError(
                f'could not see tenant "{self.tenant.key}" at {format_lsn(position)}',
                detail=f"The snapshot of the receiving side is at {format_lsn(found)}.",
            )

    def _read_position(self, receiver: connection) -> int:
        if self.direction is Direction.FORWARD:
            return require_stream(receiver, self.tenant.key).position
        with closing(_open(self.target, self.tenant)) as target:
            grace = require_way_back(target, self.tenant.key)
        return read_position(receiver, grace)


def export_snapshot(target: connection, position: int) -> Snapshot:
    """
    Begin a transaction in the target and make its snapshot importable until its end.

    :param target: session outside a transaction; the caller ends the transaction.
    """
    target.set_session(isolation_level="REPEATABLE READ", autocommit=False)
    with target.cursor() as cursor:
        cursor.execute("SELECT pg_export_snapshot()")
        row = cursor.fetchone()
    return Snapshot(position, row[0] if row else "")


def open_lane(
    sessions: ExitStack,
    source_params: ConnectionParams,
    target_params: ConnectionParams,
    tenant: Tenant,
    *snapshots: Snapshot,
) -> Lane:
    """
    Open two sessions that import the snapshots of their side.

    :param sessions: closes them.
    :param snapshots: that of the source, that of the target.
    """
    opened: list[connection] = []
    for params, snapshot in zip((source_params, target_params), snapshots, strict=True):
        session = sessions.enter_context(closing(_open(params, tenant)))
        import_snapshot(session, snapshot)
        opened.append(session)
    return Lane(*opened)


class _Stream:
    """The stream while it holds; released exactly once."""

    def __init__(
        self, target_params: ConnectionParams, tenant: Tenant, direction: Direction
    ) -> None:
        self._target_params, self._tenant, self._direction = target_params, tenant, direction
        self.released = False

    def release(self) -> None:
        self.released = True
        release(self._target_params, self._tenant.key, direction=self._direction)


@contextmanager
def _held(
    target_params: ConnectionParams, tenant: Tenant, direction: Direction
) -> Iterator[_Stream]:
    hold(
        target_params,
        tenant.key,
        lease_seconds=LEASE_SECONDS,
        timeout_seconds=HANDSHAKE_TIMEOUT_SECONDS,
        direction=direction,
    )
    stream = _Stream(target_params, tenant, direction)
    try:
        reach(Point.HELD)
        yield stream
    finally:
        if not stream.released:
            try:
                stream.release()
            except (TenantferryError, psycopg2.Error):
                # What went wrong before is what the caller must hear of.
                logger.warning("could not release the stream; its lease ends by itself")


def _open(params: ConnectionParams, tenant: Tenant, **settings: str) -> connection:
    return open_connection(
        params, purpose=f"validation of {tenant.key}", settings={**TEXT_SETTINGS, **settings}
    )
