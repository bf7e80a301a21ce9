"""The application of the model: it writes to the source, and some of that is refused."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import psycopg2
from psycopg2 import errors, sql
from psycopg2.extensions import connection

from tenantferry.connections import ConnectionParams, open_connection

# A row that another open transaction has changed is refused, for that one waits for us.
_SETTINGS = {"search_path": "public", "lock_timeout": "200ms"}
# What is refused is as if it had not been drawn. Any other error is a mistake of the model.
_REFUSALS = (
    psycopg2.IntegrityError,
    errors.LockNotAvailable,
    errors.GeneratedAlways,
    errors.ObjectInUse,  # TRUNCATE behind changes whose unique values are still to be looked at
    errors.UndefinedObject,  # a prepared transaction that was refused
    errors.InvalidTextRepresentation,
)
_ENDS = ("COMMIT;", "ROLLBACK;", "PREPARE TRANSACTION ")


def execute(
    session: connection, statement: str | sql.Composed, *values: Any
) -> list[tuple[Any, ...]]:
    """Run one statement and return its rows."""
    with session.cursor() as cursor:
        cursor.execute(statement, values or None)
        return cursor.fetchall() if cursor.description else []


def open_client(source: ConnectionParams) -> connection:
    """Open a session as the owner of the source's tables, in autocommit."""
    params = replace(source, user="app_owner", password="owner")
    return open_connection(params, purpose="model", autocommit=True, settings=_SETTINGS)


def write(source: ConnectionParams, lines: Iterable[str]) -> None:
    """Run statements: those from ``BEGIN;`` on as one transaction, each other one by itself."""
    with closing(open_client(source)) as client:
        transaction: list[str] | None = None
        for line in lines:
            if line == "BEGIN;":
                transaction = []
            elif transaction is None:
                _is_refused(client, line)
            elif line.startswith(_ENDS):
                begin(client, transaction)
                if _is_refused(client, line):
                    execute(client, "ROLLBACK")
                transaction = None
            else:
                transaction.append(line)


def begin(client: connection, statements: Sequence[str]) -> None:
    """Open a transaction that has done what is not refused of some statements, and only that."""
    accepted = list(statements)
    while True:
        execute(client, "BEGIN")
        refused = next((n for n, line in enumerate(accepted) if _is_refused(client, line)), None)
        if refused is None:
            return
        execute(client, "ROLLBACK")
        del accepted[refused]


def _is_refused(client: connection, statement: str) -> bool:
    try:
        execute(client, statement)
    except _REFUSALS:
        return True
    return False


class Overlap:
    """
    Three transactions around the creation of a slot.

    It waits for the first, which was open before, and then for the second, which began meanwhile.
    The third begins behind these and is open when the slot is there: its commit is the first
    record of the log that the snapshot does not show.

    :param transactions: the statements of each.
    """

    def __init__(self, source: ConnectionParams, transactions: Sequence[Sequence[str]]) -> None:
        self._source, self._transactions = source, transactions
        self._sessions = [open_client(source) for _ in transactions]
        self._watch = open_client(source)
        self._is_created = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run_and_tell)

    def begin(self) -> None:
        """Open the first; the others follow when somebody waits for it."""
        self._begin(0)
        self._thread.start()

    def finish(self) -> None:
        """Commit the third; the slot is there."""
        self._is_created.set()
        self._thread.join()
        for session in (*self._sessions, self._watch):
            session.close()
        if self._failure is not None:
            raise self._failure

    def _run_and_tell(self) -> None:
        try:
            for number in (0, 1):
                self._wait_until_waited_for(number)
                self._begin(number + 1)
                self._commit(number)
            self._is_created.wait()
            self._commit(2)
        except BaseException as failure:  # noqa: BLE001 - a thread's boundary: `finish` raises it
            self._failure = failure

    def _begin(self, number: int) -> None:
        session = self._sessions[number]
        begin(session, self._transactions[number])
        # Also one that changes nothing shall be waited for.
        execute(session, "SELECT pg_current_xact_id()")

    def _commit(self, number: int) -> None:
        if _is_refused(self._sessions[number], "COMMIT"):
            execute(self._sessions[number], "ROLLBACK")

    def _wait_until_waited_for(self, number: int) -> None:
        [(transaction,)] = execute(self._sessions[number], "SELECT pg_current_xact_id()::xid::text")
        query = (
            "SELECT 1 FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'"
            " AND transactionid = %s::xid"
        )
        while not execute(self._watch, query, transaction):
            if self._is_created.wait(0.01):
                return
