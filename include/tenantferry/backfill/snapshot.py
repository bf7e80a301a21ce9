"""Logical slots with an exported snapshot: an exact LSN, and the rows as of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib import resources

import psycopg2
from psycopg2 import errors, sql
from psycopg2.extensions import connection
from psycopg2.extras import LogicalReplicationConnection

from tenantferry.backfill.failures import describe_failure
from tenantferry.connections import (
    ConnectionParams,
    open_connection,
    open_replication_connection,
)
from tenantferry.errors import PermanentError, TransientError
from tenantferry.lsn import parse_lsn
from tenantferry.timelines import Timeline, read_timeline

# How long a session that we end may take to be gone.
END_SESSION_TIMEOUT_MS = 10_000
_VERSION_WITH_FAILOVER_SLOTS = 170000

_OPEN_TRANSACTIONS = (
    resources.files("tenantferry.backfill").joinpath("open_transactions.sql").read_text("utf-8")
)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """
    An exported snapshot.

    :ivar consistent_point: LSN; the snapshot holds exactly the transactions with
        ``commit_lsn < consistent_point``, and the slot sends exactly the others.
    :ivar name: for ``SET TRANSACTION SNAPSHOT``, until the exporting session ends.
    :ivar timeline: of the server; the consistent point is a position of it. ``None``: not asked.
    """

    consistent_point: int
    name: str
    timeline: Timeline | None = None


@contextmanager
def exported_snapshot(
    source_params: ConnectionParams,
    *,
    slot: str,
    temporary: bool,
    timeout_seconds: float,
    failover: bool = False,
) -> Iterator[Snapshot]:
    """
    Create a logical slot and keep its snapshot importable until the end of the block.

    :param temporary: drop the slot at the end of the block.
    :param timeout_seconds: how long to wait for transactions that are open on the source.
    :param failover: let standbys that synchronize slots keep a copy, from version 17 on.
    :raises TransientError: if they do not end in time; no slot is left then.
    :raises PermanentError: if the source cannot have another slot.
    """
    with (
        closing(open_connection(source_params, purpose="slot control", autocommit=True)) as control,
        closing(open_replication_connection(source_params, purpose=f"slot {slot}")) as walsender,
    ):
        command = create_slot_command(slot, temporary, walsender.server_version, failover=failover)
        yield _create_slot(control, walsender, slot, command, timeout_seconds)


def import_snapshot(source: connection, snapshot: Snapshot, *, readonly: bool = True) -> None:
    """
    Begin a transaction that sees the snapshot.

    :param source: session outside a transaction; the caller ends the transaction.
    :param readonly: whether it may not write.
    :raises TransientError: if the session that exported it is gone.
    """
    source.set_session(isolation_level="REPEATABLE READ", readonly=readonly, autocommit=False)
    try:
        with source.cursor() as cursor:
            cursor.execute("SET TRANSACTION SNAPSHOT %s", (snapshot.name,))
    except psycopg2.Error as error:
        raise TransientError(
            f'could not import snapshot "{snapshot.name}"',
            detail=(error.diag.message_primary or str(error)).strip(),
            hint="It ends with the session that exported it. If this happens at every try, a"
            " load balancer sends the sessions of one connection to different servers: give the"
            " Airflow connection the address of the primary itself.",
        ) from None


def drop_slot(source: connection, slot: str) -> bool:
    """
    Drop a slot of ours, ending the session that still uses it.

    A slot of that name that belongs to another database of the cluster is left alone.

    :param source: session in autocommit.
    :return: whether there was one.
    :raises TransientError: if another session takes it again and again.
    """
    with source.cursor() as cursor:
        for _ in range(3):
            cursor.execute(
                "SELECT pg_terminate_backend(active_pid, %s)"
                " FROM pg_catalog.pg_replication_slots"
                " WHERE slot_name = %s AND database = current_database()"
                " AND active_pid IS NOT NULL",
                (END_SESSION_TIMEOUT_MS, slot),
            )
            try:
                # The set-returning call drops nothing where there is no such slot.
                cursor.execute(
                    "SELECT pg_drop_replication_slot(slot_name)"
                    " FROM pg_catalog.pg_replication_slots"
                    " WHERE slot_name = %s AND database = current_database()",
                    (slot,),
                )
            except errors.ObjectInUse:  # a restarted reader was quicker; end that one, too
                continue
            except errors.UndefinedObject:  # a temporary slot went with the session just ended
                return True
            return bool(cursor.rowcount > 0)
    raise TransientError(
        f'could not drop replication slot "{slot}"',
        detail="A session reads it, and another one follows when that is ended.",
        hint="Stop the stream of this tenant first.",
    )


def read_open_transactions(source: connection) -> list[str]:
    """
    Describe the transactions that creating a slot waits for, the oldest first, at most ten.

    :param source: open transaction or autocommit; only read.
    """
    with source.cursor() as cursor:
        cursor.execute(_OPEN_TRANSACTIONS)
        return [row[0] for row in cursor]


def _create_slot(
    control: connection,
    walsender: LogicalReplicationConnection,
    slot: str,
    command: sql.Composed,
    timeout_seconds: float,
) -> Snapshot:
    # Before: the snapshot ends with the next command.
    timeline = read_timeline(walsender)
    deadline = _Deadline(control, walsender, timeout_seconds)
    try:
        with deadline, walsender.cursor() as cursor:
            cursor.execute(command)
            _, consistent_point, name, _ = cursor.fetchone() or ("", "0/0", "", "")
    except psycopg2.Error as error:
        if not deadline.passed:
            raise _refusal(error, control, slot) from None
        # A slot that was being created goes with the cancelled command.
        waits = "; ".join(deadline.waited_for) or "none is visible any more"
        raise TransientError(
            f'could not create replication slot "{slot}" within {timeout_seconds:g} s',
            detail=f"It waits for every transaction that has written, in any database of the"
            f" cluster. Open: {waits}.",
            hint="End these transactions, or retry when they are over.",
        ) from None
    return Snapshot(parse_lsn(consistent_point), name, timeline)


def create_slot_command(
    slot: str, temporary: bool, server_version: int, *, failover: bool = False
) -> sql.Composed:
    """Build the replication command; servers before 15 know the option by another name."""
    options = "EXPORT_SNAPSHOT"
    if failover and server_version >= _VERSION_WITH_FAILOVER_SLOTS:
        options = "(SNAPSHOT 'export', FAILOVER)"
    elif server_version >= 150000:
        options = "(SNAPSHOT 'export')"
    return sql.SQL("CREATE_REPLICATION_SLOT {}{} LOGICAL pgoutput {}").format(
        sql.Identifier(slot),
        sql.SQL(" TEMPORARY" if temporary else ""),
        sql.SQL(options),
    )


class _Deadline:
    """
    Cancels a replication command that takes too long: ``statement_timeout`` does not cover it.

    :ivar waited_for: the open transactions at the deadline.
    """

    def __init__(
        self, control: connection, walsender: LogicalReplicationConnection, seconds: float
    ) -> None:
        self.passed = False
        self.waited_for: list[str] = []
        self._control, self._walsender = control, walsender
        self._timer = threading.Timer(seconds, self._cancel)

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        self._timer.join()

    def _cancel(self) -> None:
        self.passed = True
        try:
            self.waited_for = read_open_transactions(self._control)
        except psycopg2.Error as error:
            self.waited_for = [f"unknown ({' '.join(str(error).split())})"]
        finally:
            self._walsender.cancel()


def _refusal(error: psycopg2.Error, control: connection, slot: str) -> Exception:
    doing = f'create replication slot "{slot}"'
    if isinstance(error, errors.ConfigurationLimitExceeded):
        with control.cursor() as cursor:
            cursor.execute(
                "SELECT count(*), current_setting('max_replication_slots')"
                " FROM pg_catalog.pg_replication_slots"
            )
            used, limit = cursor.fetchone() or (0, "0")
        return PermanentError(
            f"cannot {doing}",
            detail=f"{used} of max_replication_slots = {limit} are in use.",
            hint="Drop slots that nobody reads, or raise max_replication_slots and restart.",
        )
    if isinstance(error, errors.ObjectNotInPrerequisiteState | errors.InsufficientPrivilege):
        return PermanentError(
            f"cannot {doing}",
            detail=(error.diag.message_primary or "").strip(),
            hint="The source needs wal_level = logical, and our role the attribute REPLICATION.",
        )
    if isinstance(error, errors.DuplicateObject):
        return TransientError(
            f"could not {doing}", detail="It was created by somebody else just now."
        )
    return describe_failure(error, doing=doing)
