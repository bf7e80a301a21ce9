"""The thread that applies what waits in one lane to its source."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from contextlib import closing
from dataclasses import dataclass
from functools import cache, partial

import psycopg2
from psycopg2.extensions import connection

from tenantferry.connections import ConnectionParams, open_connection
from tenantferry.control.streams import lock_stream
from tenantferry.errors import TenantferryError
from tenantferry.fleet.declaration import Tenant
from tenantferry.lsn import format_lsn
from tenantferry.reverse.collecting import Collector
from tenantferry.reverse.lane import Lane
from tenantferry.reverse.positions import (
    Position,
    SourceProgress,
    SourceWentBackError,
    begin_position,
)
from tenantferry.reverse.tables import SourceTables
from tenantferry.stream.applier import APPLY_SETTINGS, Applier
from tenantferry.stream.failures import explain
from tenantferry.stream.scope import Scope

logger = logging.getLogger(__name__)

_SCOPE = Scope(
    tenant_id=None,
    sender="target",
    receiver="source",
    broken_hint="Somebody wrote to the source behind its fence. What it lacks has to be mended"
    " there by hand, or the tenant stays on the target; the stream tries again by itself.",
    conflict_hint="Correct the constraint or the row in the source; the stream tries again by"
    " itself.",
)


@dataclass(frozen=True, slots=True)
class LaneSource:
    """Where the changes of one tenant are applied."""

    tenant: Tenant
    params: ConnectionParams


class Follower:
    """
    Applies one lane until it is empty for a while, told to end, or fails.

    :param find_source: looks the tenant up; called in this thread.
    :param read_copied: returns the tables that a tenant went live with; called in this thread.
    :param batch_bytes: about how much is netted and applied at once.
    :param idle_seconds: the session is closed when nothing came for so long.
    """

    def __init__(
        self,
        lane: Lane,
        find_source: Callable[[str], LaneSource],
        read_copied: Callable[[str], AbstractSet[tuple[str, str]]],
        *,
        batch_bytes: int,
        idle_seconds: float,
    ) -> None:
        self._lane = lane
        self._find_source = find_source
        self._read_copied = read_copied
        self._batch_bytes = batch_bytes
        self._idle_seconds = idle_seconds
        self._session: connection | None = None
        self._thread = threading.Thread(
            target=self._run, name=f"reverse {lane.grace.tenant}", daemon=True
        )

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def join(self, timeout_seconds: float) -> bool:
        """Wait for its end; tell whether it came."""
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def abort(self) -> None:
        """Cut its session, so that it fails at once; never waits for the source."""
        session = self._session
        if session is None or session.closed:
            return
        try:
            with socket.socket(fileno=os.dup(session.fileno())) as cut:
                cut.shutdown(socket.SHUT_RDWR)
        except (OSError, psycopg2.Error):
            logger.debug("the session was gone already")

    def _run(self) -> None:
        lane = self._lane
        key = lane.grace.tenant
        try:
            source = self._find_source(key)
            with closing(
                open_connection(source.params, purpose=f"reverse {key}", settings=APPLY_SETTINGS)
            ) as session:
                self._session = session
                self._follow(session, source.tenant)
        except SourceWentBackError as error:
            lane.give_up(error.detail)
        except TenantferryError as error:
            logger.warning("reverse stream of tenant=%s failed: %s", key, error)
            lane.failed(str(error))
        except psycopg2.Error as error:
            explained = explain(error, f'follow the target as tenant "{key}"')
            logger.warning("reverse stream of tenant=%s failed: %s", key, explained)
            lane.failed(str(explained))
        except BaseException as error:  # the thread's end: the lane reports it
            logger.exception("reverse stream of tenant=%s failed", key)
            lane.failed(f"{type(error).__name__}: {error}")

    def _follow(self, session: connection, tenant: Tenant) -> None:
        lane = self._lane
        session.autocommit = True
        with session.cursor() as cursor:
            lock_stream(cursor, tenant.key)
        began = begin_position(session, lane.grace, reached=lane.source_position)
        lane.attached(began)
        session.autocommit = False
        tables = SourceTables(
            session, tenant, lane.shapes, cache(partial(self._read_copied, tenant.key))
        )
        collector = Collector(lane, tables, batch_bytes=self._batch_bytes)
        applier = Applier(session, _SCOPE, SourceProgress(lane.grace), position=began.lsn)
        changes, transactions = began.changes, began.transactions
        logger.info("reverse stream follows tenant=%s from=%s", tenant.key, format_lsn(began.lsn))
        while (work := lane.wait_for_work(self._idle_seconds)) is not None:
            limit, goal = work
            is_applied = False
            for batch in collector.collect(position=applier.position, limit=limit):
                applier.apply(batch)
                changes += batch.changes
                transactions += batch.transactions
                is_applied = batch.is_complete
            if not is_applied and goal > applier.position:
                applier.move(goal)
            lane.applied(Position(applier.position, changes, transactions), collector.following)
        logger.info("reverse stream rests tenant=%s", tenant.key)
