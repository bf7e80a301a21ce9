from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import psycopg2
import pytest
from psycopg2.extensions import connection

from tenantferry.connections import (
    ConnectionParams,
    open_connection,
    open_replication_connection,
)
from tenantferry.errors import PermanentError, TransientError
from tenantferry.local.accounts import free_port
from tenantferry.local.postgres import PostgresServer
from tenantferry.traffic import lock as lock_module
from tenantferry.traffic.fence import Fence, ForeignSessionError, plan_fence, raise_fence
from tenantferry.traffic.lock import Lock, is_locked, lock_database, plan_lock


def rows(session: connection, query: str) -> list[tuple[Any, ...]]:
    with session.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchall() if cursor.description else []


def describe(server: PostgresServer, name: str) -> str:
    """Return all that decides who gets in, and how."""
    return server.psql(
        "-c",
        "SELECT coalesce(datacl, acldefault('d', datdba))::text, datconnlimit, setconfig::text"
        " FROM pg_database LEFT JOIN pg_db_role_setting ON setdatabase = pg_database.oid"
        f" AND setrole = 0 WHERE datname = '{name}'",
    )


def end_session(server: PostgresServer, session: connection) -> None:
    """End a session, and return when it is gone."""
    server.psql("-c", f"SELECT pg_terminate_backend({session.info.backend_pid}, 10000)")


@pytest.fixture
def former(source: connection) -> Fence:
    """What the fence that is up took away."""
    fence = plan_fence(source)
    raise_fence(source, fence, timeout_seconds=5)
    return fence


@pytest.fixture
def lock(source: connection, former: Fence) -> Lock:
    return plan_lock(source, former)


@pytest.fixture
def superuser(
    source_server: PostgresServer, source_params: ConnectionParams
) -> Iterator[connection]:
    params = source_server.superuser.with_database(source_params.database)
    with closing(open_connection(params, purpose="test dba", autocommit=True)) as opened:
        yield opened


def test_a_locked_database_lets_nobody_in_not_even_us(
    source: connection, source_params: ConnectionParams, lock: Lock
) -> None:
    assert not is_locked(source_params, purpose="test")

    lock_database(source, lock)

    for user, password in (("tenantferry", source_params.password), ("app_owner", "owner")):
        with pytest.raises(PermanentError, match="could not connect"):
            open_connection(replace(source_params, user=user, password=password), purpose="test")
    with pytest.raises(PermanentError):
        open_replication_connection(source_params, purpose="test")
    assert is_locked(source_params, purpose="test")


def test_a_grant_that_a_deployment_repeats_does_not_open_it(
    source: connection,
    source_server: PostgresServer,
    source_params: ConnectionParams,
    lock: Lock,
) -> None:
    lock_database(source, lock)

    source_server.psql("-c", f"GRANT CONNECT ON DATABASE {lock.database} TO PUBLIC")

    with pytest.raises(TransientError, match="could not connect") as caught:
        open_connection(replace(source_params, user="app_owner", password="owner"), purpose="test")
    assert "too many connections" in caught.value.detail


def test_sessions_of_ours_that_are_still_there_are_ended(
    source: connection, source_params: ConnectionParams, lock: Lock
) -> None:
    with (
        closing(open_connection(source_params, purpose="reverse")) as other,
        closing(open_replication_connection(source_params, purpose="stream")) as walsender,
    ):
        lock_database(source, lock)

        for ended in (other, walsender):
            with pytest.raises(psycopg2.Error), ended.cursor() as cursor:
                cursor.execute("IDENTIFY_SYSTEM" if ended is walsender else "SELECT 1")


def test_while_a_session_does_not_end_the_database_is_not_locked(
    source: connection,
    source_params: ConnectionParams,
    lock: Lock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lock_module, "_END_TIMEOUT_SECONDS", 0.2)
    with closing(open_connection(source_params, purpose="stream")) as hung:
        os.kill(hung.info.backend_pid, signal.SIGSTOP)
        try:
            with pytest.raises(TransientError, match="could not end every session"):
                lock_database(source, lock)
        finally:
            os.kill(hung.info.backend_pid, signal.SIGCONT)

    assert not is_locked(source_params, purpose="test")
    lock_database(source, lock)
    assert is_locked(source_params, purpose="test")


def test_while_a_superuser_is_in_there_the_database_is_not_locked(
    source: connection,
    source_server: PostgresServer,
    source_params: ConnectionParams,
    lock: Lock,
    superuser: connection,
) -> None:
    with pytest.raises(ForeignSessionError, match="cannot be ended by us"):
        lock_database(source, lock)

    assert rows(superuser, "SELECT 1") == [(1,)]
    assert not is_locked(source_params, purpose="test")
    end_session(source_server, superuser)
    lock_database(source, lock)


def test_a_limit_of_somebody_else_is_not_called_a_lock(
    source: connection, source_server: PostgresServer, source_params: ConnectionParams
) -> None:
    source_server.psql("-c", f"ALTER DATABASE {source_params.database} CONNECTION LIMIT 1")

    with pytest.raises(TransientError, match="could not connect") as caught:
        is_locked(source_params, purpose="test")

    assert "too many connections" in caught.value.detail


def test_locking_again_changes_nothing(
    source: connection, source_server: PostgresServer, lock: Lock
) -> None:
    lock_database(source, lock)
    before = describe(source_server, lock.database)

    lock_database(source, lock)

    assert describe(source_server, lock.database) == before


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT 1",
        "ALTER DATABASE {0} CONNECTION LIMIT 7",
        "GRANT CONNECT ON DATABASE {0} TO pg_monitor WITH GRANT OPTION",
        "ALTER DATABASE {0} SET default_transaction_read_only = off",
    ],
    ids=["default", "limit", "grant option", "read only off"],
)
def test_the_undo_of_a_lock_brings_back_what_was_before_the_fence(
    source: connection, source_server: PostgresServer, statement: str
) -> None:
    [(name,)] = rows(source, "SELECT current_database()")
    source_server.psql("-c", statement.format(name))
    before = describe(source_server, name)
    former = plan_fence(source)
    raise_fence(source, former, timeout_seconds=5)
    lock = plan_lock(source, former)
    lock_database(source, lock)

    source_server.psql("-c", lock.undo)

    # An access list has no order of its own.
    assert sorted(describe(source_server, name).replace("|", ",").strip("{}").split(",")) == sorted(
        before.replace("|", ",").strip("{}").split(",")
    )


def test_a_source_that_is_away_is_not_called_locked(source_params: ConnectionParams) -> None:
    with pytest.raises(TransientError):
        is_locked(replace(source_params, port=free_port()), purpose="test")


def test_a_refused_password_is_not_called_locked(source_params: ConnectionParams) -> None:
    with pytest.raises(PermanentError, match="could not connect"):
        is_locked(replace(source_params, password="wrong"), purpose="test")
