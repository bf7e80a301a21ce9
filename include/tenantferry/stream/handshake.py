"""
Position control of a running stream, for those who validate and those who cut over.

A validation holds the stream, takes a snapshot at V and advances the stream to exactly V. A
cutover, on a fenced source, advances to its final marker L before clients are moved, and only
after that stops the stream at L: a stream told to stop ends its process for good, whereas one that
holds is released by an undone cutover as if nothing had been.

The stream hears of a command, and we of its answer, by NOTIFY. A notification that gets lost
costs a second, not correctness: both sides also look at the row.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import connection

from tenantferry.connections import ConnectionParams, open_connection
from tenantferry.control.direction import Direction
from tenantferry.control.streams import (
    COMMAND_CHANNELS,
    STATE_CHANNEL,
    StreamCommand,
    StreamRecord,
    command,
    require_stream,
)
from tenantferry.errors import TransientError
from tenantferry.lsn import format_lsn

# How often the row is looked at when no notification comes.
RECHECK_SECONDS = 1.0

_HINTS = {
    Direction.FORWARD: 'Look at the task "stream_cdc" of this tenant.',
    Direction.REVERSE: 'Look at the Dag "reverse_stream".',
}


class PositionPassedError(TransientError):
    """The stream is already beyond the position that it was to stand at exactly."""


def wait_for_position(
    target: ConnectionParams,
    tenant_key: str,
    lsn: int,
    *,
    timeout_seconds: float,
    direction: Direction = Direction.FORWARD,
) -> int:
    """
    Wait until everything that was committed before *lsn* is applied.

    :return: the stream's position, at least *lsn*.
    :raises TransientError: if that takes longer than *timeout_seconds*.
    """
    stream = _Stream(tenant_key, direction)
    with _listening(target, tenant_key) as session:

        def is_there() -> StreamRecord | None:
            record = stream.read(session)
            if record.position >= lsn:
                return record
            # The stream forgets who waits when it is restarted, so say it at every look.
            stream.announce(session, lsn)
            return None

        record = _wait(session, is_there, timeout_seconds)
        if record is None:
            raise _timeout(session, stream, f"to reach {format_lsn(lsn)}", timeout_seconds)
        return record.position


def hold(
    target: ConnectionParams,
    tenant_key: str,
    *,
    lease_seconds: float = 60.0,
    timeout_seconds: float = 30.0,
    direction: Direction = Direction.FORWARD,
) -> int:
    """
    Make the stream apply nothing more until it is advanced, released, or the lease ends.

    :return: the position at which it holds.
    :raises TransientError: if it does not answer in time; it is then released again.
    """
    with _listening(target, tenant_key) as session:
        return _command_and_wait(
            session,
            _Stream(tenant_key, direction),
            StreamCommand.HOLD,
            timeout_seconds=timeout_seconds,
            lease_seconds=lease_seconds,
        ).position


def advance(
    target: ConnectionParams,
    tenant_key: str,
    lsn: int,
    *,
    lease_seconds: float = 60.0,
    timeout_seconds: float = 30.0,
    exact: bool = True,
    direction: Direction = Direction.FORWARD,
) -> int:
    """
    Make the stream apply every transaction with ``commit_lsn < lsn``, and hold there.

    :param exact: insist that no later one is applied, which only a stream that was held before
        can promise. A cutover, whose source accepts no writes any more, says ``False``.
    :return: the position at which it holds: *lsn*, or at least *lsn* where not *exact*.
    :raises PositionPassedError: if the stream was already beyond *lsn*; it is then released.
    :raises TransientError: if it does not get there in time; it is then released again.
    """
    stream = _Stream(tenant_key, direction)
    with _listening(target, tenant_key) as session:
        record = _command_and_wait(
            session,
            stream,
            StreamCommand.ADVANCE,
            timeout_seconds=timeout_seconds,
            lsn=lsn,
            lease_seconds=lease_seconds,
        )
        if exact and record.position != lsn:
            stream.command(session, StreamCommand.RUN)
            raise PositionPassedError(
                f"{stream} could not stand at {format_lsn(lsn)} exactly",
                detail=f"It is at {format_lsn(record.position)} already.",
                hint="Hold it first, and advance it before the lease ends.",
            )
        return record.position


def release(
    target: ConnectionParams, tenant_key: str, *, direction: Direction = Direction.FORWARD
) -> None:
    """
    Let the stream run again, whatever it was told before, also to stop.

    Returns as soon as the command is durable. A stream that already ended at a stop goes on from
    its position when it is started the next time.
    """
    with closing(_open(target, tenant_key)) as session:
        _Stream(tenant_key, direction).command(session, StreamCommand.RUN)


def stop_at(
    target: ConnectionParams, tenant_key: str, lsn: int, *, timeout_seconds: float = 30.0
) -> int:
    """
    Make the forward stream apply everything with ``commit_lsn < lsn`` and end for good.

    One that was told so already is waited for. The command stays when this times out: a stream that
    is started again obeys it then.

    :return: the position at which it ended; not below *lsn*.
    :raises TransientError: if it does not end in time.
    """
    stream = _Stream(tenant_key, Direction.FORWARD)
    with _listening(target, tenant_key) as session:
        record = stream.read(session)
        command_id = record.command_id
        if (record.command, record.command_lsn) != (StreamCommand.STOP, lsn):
            command_id = stream.command(session, StreamCommand.STOP, lsn=lsn)
        return _wait_until_obeyed(
            session, stream, StreamCommand.STOP, command_id, timeout_seconds=timeout_seconds
        ).position


@dataclass(frozen=True, slots=True)
class _Stream:
    """One of a tenant's streams."""

    tenant: str
    direction: Direction

    def __str__(self) -> str:
        return f'{self.direction} stream of tenant "{self.tenant}"'

    def read(self, session: connection) -> StreamRecord:
        return require_stream(session, self.tenant, direction=self.direction)

    def command(
        self,
        session: connection,
        verb: StreamCommand,
        *,
        lsn: int | None = None,
        lease_seconds: float | None = None,
    ) -> int:
        return command(
            session,
            self.tenant,
            verb,
            lsn=lsn,
            lease_seconds=lease_seconds,
            direction=self.direction,
        )

    def announce(self, session: connection, lsn: int) -> None:
        """Tell the stream that somebody waits for a position."""
        with session.cursor() as cursor:
            cursor.execute(
                "SELECT pg_notify(%s, %s)",
                (COMMAND_CHANNELS[self.direction], f"{self.tenant} {format_lsn(lsn)}"),
            )


def _command_and_wait(
    session: connection,
    stream: _Stream,
    verb: StreamCommand,
    *,
    timeout_seconds: float,
    lsn: int | None = None,
    lease_seconds: float | None = None,
) -> StreamRecord:
    command_id = stream.command(session, verb, lsn=lsn, lease_seconds=lease_seconds)
    return _wait_until_obeyed(session, stream, verb, command_id, timeout_seconds=timeout_seconds)


def _wait_until_obeyed(
    session: connection,
    stream: _Stream,
    verb: StreamCommand,
    command_id: int,
    *,
    timeout_seconds: float,
) -> StreamRecord:
    def is_acknowledged() -> StreamRecord | None:
        record = stream.read(session)
        if record.command_id != command_id:
            raise TransientError(
                f'command "{verb}" to the {stream} was overruled',
                detail=f'It was told to "{record.command}" meanwhile, or its lease ended.',
            )
        return record if record.acknowledged_id == command_id else None

    record = _wait(session, is_acknowledged, timeout_seconds)
    if record is None:
        failure = _timeout(session, stream, f"to {verb}", timeout_seconds)
        if verb is not StreamCommand.STOP:
            stream.command(session, StreamCommand.RUN)
        raise failure
    return record


def _wait(
    session: connection, condition: Callable[[], StreamRecord | None], timeout_seconds: float
) -> StreamRecord | None:
    deadline = time.monotonic() + timeout_seconds
    while True:
        # Forget what was notified before the look, never what comes after it.
        session.notifies.clear()
        record = condition()
        remaining = deadline - time.monotonic()
        if record is not None or remaining <= 0:
            return record
        if not session.notifies:
            select.select([session], [], [], min(remaining, RECHECK_SECONDS))
        try:
            session.poll()
        except psycopg2.OperationalError as error:
            raise TransientError(
                "connection to the target was lost", detail=" ".join(str(error).split())
            ) from None


@contextmanager
def _listening(target: ConnectionParams, tenant_key: str) -> Iterator[connection]:
    with closing(_open(target, tenant_key)) as session:
        with session.cursor() as cursor:
            cursor.execute(sql.SQL("LISTEN {}").format(sql.Identifier(STATE_CHANNEL)))
        yield session


def _open(target: ConnectionParams, tenant_key: str) -> connection:
    return open_connection(target, purpose=f"handshake {tenant_key}", autocommit=True)


def _timeout(
    session: connection, stream: _Stream, what: str, timeout_seconds: float
) -> TransientError:
    record = stream.read(session)
    told = "" if record.command is StreamCommand.RUN else f' It was told to "{record.command}".'
    return TransientError(
        f"{stream} took longer than {timeout_seconds:g} s {what}",
        detail=f'Its state is "{record.state}", its position {format_lsn(record.position)};'
        f" it last reported at {record.reported_at or 'no time yet'}.{told}"
        + (f" Its error: {record.error}" if record.error else ""),
        hint=_HINTS[stream.direction],
    )
