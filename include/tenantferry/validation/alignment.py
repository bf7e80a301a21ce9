"""Sessions on both sides that show the same instant, while the stream goes on."""

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
from tenantferry.control.streams import require_stream
from tenantferry.errors import TenantferryError, TransientError
from tenantferry.fleet import Tenant
from tenantferry.lsn import format_lsn
from tenantferry.stream.handshake import advance, hold, release
from tenantferry.stream.marker import emit_marker

logger = logging.getLogger(__name__)

# The stream stands still while the slot for the snapshot is created; a source that cannot give
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

    :ivar position: exactly the source transactions with ``commit_lsn < position`` are visible.
    :ivar probe: a session in the target that sees the same and may write what it rolls back.
    """

    position: int
    lanes: tuple[Lane, ...]
    probe: connection

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
) -> Iterator[View]:
    """
    Hold the stream, show both sides at one position, and let the stream go on.

    :param lanes: chunks that can be compared at the same time.
    :raises TransientError: if the stream or the source's slot does not answer in time.
    """
    with ExitStack() as sessions:
        with _held(target_params, tenant) as stream:
            # A later snapshot than the position that the stream holds at, so that the stream can
            # be brought to it, and not a row further.
            snapshot = sessions.enter_context(_source_snapshot(source_params, tenant))
            _advance(source_params, target_params, tenant, snapshot.consistent_point)
            probe = sessions.enter_context(closing(_open(target_params, tenant, **PROBE_SETTINGS)))
            exported = export_snapshot(probe, snapshot.consistent_point)
            _check_position(probe, tenant, snapshot.consistent_point)
            stream.release()
        opened = tuple(
            open_lane(sessions, source_params, target_params, tenant, snapshot, exported)
            for _ in range(lanes)
        )
        yield View(snapshot.consistent_point, opened, probe)


def _check_position(target: connection, tenant: Tenant, position: int) -> None:
    """
    Check what the snapshot itself says: the position is stored with the rows.

    :raises TransientError: if the stream went on before the snapshot was taken, e.g. because its
        lease ended while this process was kept waiting.
    """
    found = require_stream(target, tenant.key).position
    if found != position:
        raise TransientError(
            f'could not see tenant "{tenant.key}" at {format_lsn(position)}',
            detail=f"The snapshot of the target is at {format_lsn(found)}.",
        )


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

    def __init__(self, target_params: ConnectionParams, tenant: Tenant) -> None:
        self._target_params, self._tenant = target_params, tenant
        self.released = False

    def release(self) -> None:
        self.released = True
        release(self._target_params, self._tenant.key)


@contextmanager
def _held(target_params: ConnectionParams, tenant: Tenant) -> Iterator[_Stream]:
    hold(
        target_params,
        tenant.key,
        lease_seconds=LEASE_SECONDS,
        timeout_seconds=HANDSHAKE_TIMEOUT_SECONDS,
    )
    stream = _Stream(target_params, tenant)
    try:
        yield stream
    finally:
        if not stream.released:
            try:
                stream.release()
            except (TenantferryError, psycopg2.Error):
                # What went wrong before is what the caller must hear of.
                logger.warning("could not release the stream; its lease ends by itself")


@contextmanager
def _source_snapshot(source_params: ConnectionParams, tenant: Tenant) -> Iterator[Snapshot]:
    with closing(_open(source_params, tenant)) as source:
        source.autocommit = True
        # Of a validation whose process is gone but whose session is not.
        drop_slot(source, tenant.validation_slot)
    with exported_snapshot(
        source_params,
        slot=tenant.validation_slot,
        temporary=True,
        timeout_seconds=SLOT_TIMEOUT_SECONDS,
    ) as snapshot:
        yield snapshot


def _advance(
    source_params: ConnectionParams, target_params: ConnectionParams, tenant: Tenant, lsn: int
) -> None:
    with closing(_open(source_params, tenant)) as source:
        source.autocommit = True
        # On an idle source nothing else would tell the stream that the log has reached the LSN.
        emit_marker(source, tenant)
    advance(
        target_params,
        tenant.key,
        lsn,
        lease_seconds=LEASE_SECONDS,
        timeout_seconds=HANDSHAKE_TIMEOUT_SECONDS,
    )


def _open(params: ConnectionParams, tenant: Tenant, **settings: str) -> connection:
    return open_connection(
        params, purpose=f"validation of {tenant.key}", settings={**TEXT_SETTINGS, **settings}
    )
