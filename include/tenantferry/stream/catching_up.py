"""Bring the rows that a backfill has copied so far to exactly one position."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from contextlib import closing

import psycopg2

from tenantferry.connections import ConnectionParams, open_connection
from tenantferry.control.streams import StreamCommand, command, lock_stream
from tenantferry.fleet.declaration import Tenant
from tenantferry.schema.model import Table
from tenantferry.stream.running import StreamResult, run_stream


def catch_up(
    source_params: ConnectionParams,
    target_params: ConnectionParams,
    tenant: Tenant,
    tables: Sequence[Table],
    lsn: int,
) -> StreamResult:
    """
    Apply every transaction with ``commit_lsn < lsn`` to the copied chunks, and end there.

    P is *lsn* then, or was beyond it already. While P moves, no pending chunk belongs to a round.

    :param tables: those of the move, as the source describes them now.
    :raises TransientError: if a server was lost; the next call goes on.
    :raises CopyAgainError: if changes were lost, or the target does not hold what it should.
    :raises PermanentError: if it cannot go on without a person.
    """
    with closing(open_connection(target_params, purpose=f"catch up {tenant.key}")) as target:
        with target, target.cursor() as cursor:
            # Ends a session that hangs, and may have the stream's row locked.
            lock_stream(cursor, tenant.key, for_session=False)
            command(target, tenant.key, StreamCommand.STOP, lsn=lsn)
        try:
            result = run_stream(
                source_params,
                target_params,
                tenant,
                tables,
                stop=threading.Event(),
                while_copying=True,
            )
        except BaseException:
            # The next catch-up gives its own order; the stream that follows the last one finds
            # that there is none.
            with contextlib.suppress(psycopg2.Error), target:
                command(target, tenant.key, StreamCommand.RUN)
            raise
        with target:
            command(target, tenant.key, StreamCommand.RUN)
    return result
