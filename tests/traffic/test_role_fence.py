"""The fence of one tenant's role in a target that serves others."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from importlib import resources
from typing import Any
from uuid import UUID

import psycopg2
import pytest
from psycopg2.extensions import connection

from tenantferry.connections import ConnectionParams, open_client_connection, open_connection
from tenantferry.errors import PermanentError, TransientError
from tenantferry.fleet import Source, Tenant
from tenantferry.local.postgres import PostgresServer
from tenantferry.schema.roles import (
    ensure_shared_role,
    ensure_tenant_role,
    set_role_login,
    set_role_password,
)
from tenantferry.traffic.fence import ForeignSessionError
from tenantferry.traffic.role_fence import (
    RoleFence,
    check_role_alone,
    describe_role_transactions,
    lower_role_fence,
    plan_role_fence,
    raise_role_fence,
)

ROLE = "tenant_acme"
# Of sessions that cannot be told yet whose they are.
LOGIN_TRANSACTIONS = """
SELECT l.pid FROM pg_locks AS l LEFT JOIN pg_stat_activity AS a USING (pid)
WHERE l.locktype = 'virtualxid' AND l.pid <> pg_backend_pid() AND a.usesysid IS NULL
    AND coalesce(a.backend_type, 'client backend') = 'client backend'
"""
ACME_ID = UUID("11111111-1111-1111-1111-111111111111")


def rows(session: connection, query: str, *values: Any) -> list[tuple[Any, ...]]:
    with session.cursor() as cursor:
        cursor.execute(query, values or None)
        return cursor.fetchall() if cursor.description else []


@pytest.fixture
def ours(target_params: ConnectionParams, target_server: PostgresServer) -> Iterator[connection]:
    """A session outside a transaction, in a target with one tenant."""
    tenant = Tenant(key="acme", id=ACME_ID, source=Source(conn_id="acme"))
    with closing(open_connection(target_params, purpose="test")) as opened:
        with opened:
            ensure_tenant_role(opened, tenant)
            set_role_password(opened, ROLE, "random")
        yield opened
        opened.rollback()
    target_server.psql("-c", f"DROP OWNED BY {ROLE} CASCADE", database=target_params.database)


@pytest.fixture
def client_params(ours: connection, target_params: ConnectionParams) -> ConnectionParams:
    return replace(target_params, user=ROLE, password="random")


def fence_off(target: connection) -> RoleFence:
    fence = plan_role_fence(target, ROLE)
    raise_role_fence(target, fence, timeout_seconds=5)
    return fence


def test_the_fence_refuses_the_role_and_ends_its_sessions(
    ours: connection, client_params: ConnectionParams
) -> None:
    with closing(open_client_connection(client_params, purpose="asleep")) as asleep:
        rows(asleep, "SELECT 1")  # and it stays in its transaction
        [told] = describe_role_transactions(ours, ROLE)

        fence = fence_off(ours)

        with pytest.raises(psycopg2.OperationalError):
            rows(asleep, "SELECT 1")
    assert 'user "tenant_acme", application "tenantferry asleep"' in told
    with pytest.raises(PermanentError, match="could not connect") as caught:
        open_client_connection(client_params, purpose="test")
    assert "not permitted to log in" in caught.value.detail
    check_role_alone(ours, fence)


def test_lowering_gives_back_what_was_taken(
    ours: connection, client_params: ConnectionParams
) -> None:
    fence = fence_off(ours)

    with ours:
        lower_role_fence(ours, RoleFence.from_json(json.loads(json.dumps(fence.to_json()))))

    open_client_connection(client_params, purpose="test").close()


def test_lowering_leaves_a_role_that_was_locked_out_before_locked_out(
    ours: connection, client_params: ConnectionParams
) -> None:
    with ours:
        rows(ours, f"ALTER ROLE {ROLE} NOLOGIN")
    fence = fence_off(ours)

    with ours:
        lower_role_fence(ours, fence)

    with pytest.raises(PermanentError):
        open_client_connection(client_params, purpose="test")


def test_sessions_of_other_roles_stay(
    ours: connection, target_params: ConnectionParams, target_server: PostgresServer
) -> None:
    params = target_server.superuser.with_database(target_params.database)
    with closing(open_connection(params, purpose="dba")) as other:
        rows(other, "SELECT 1")

        fence_off(ours)

        assert rows(other, "SELECT 2") == [(2,)]


def test_check_sees_who_was_let_in_again(ours: connection, client_params: ConnectionParams) -> None:
    fence = fence_off(ours)
    with ours:
        rows(ours, f"ALTER ROLE {ROLE} LOGIN")

    with pytest.raises(ForeignSessionError, match="came through its fence"):
        check_role_alone(ours, fence)
    with closing(open_client_connection(client_params, purpose="stray")):
        with ours:
            rows(ours, f"ALTER ROLE {ROLE} NOLOGIN")
        with pytest.raises(ForeignSessionError) as caught:
            check_role_alone(ours, fence)

    assert 'application "tenantferry stray"' in caught.value.detail


def test_a_prepared_transaction_of_the_role_refuses_the_fence(
    ours: connection, client_params: ConnectionParams, target_params: ConnectionParams
) -> None:
    with closing(open_client_connection(client_params, purpose="two phases")) as client:
        client.autocommit = True
        rows(client, "BEGIN")
        rows(client, "SELECT app.current_tenant(), pg_current_xact_id()")
        rows(client, "PREPARE TRANSACTION 'later'")

        with pytest.raises(TransientError, match="holds prepared transactions") as caught:
            plan_role_fence(ours, ROLE)

        rows(client, "ROLLBACK PREPARED 'later'")
    assert "later" in caught.value.detail
    plan_role_fence(ours, ROLE)


@pytest.mark.parametrize("how", ["member", "shared"])
def test_the_fence_refuses_where_another_login_could_write_the_rows(
    ours: connection, target_server: PostgresServer, how: str
) -> None:
    target_server.psql("-c", "CREATE ROLE reporting LOGIN")
    try:
        if how == "member":
            target_server.psql("-c", f"GRANT {ROLE} TO reporting")
        else:
            with ours:
                ensure_shared_role(ours, "reporting")
        with pytest.raises(PermanentError, match="cannot keep everybody") as caught:
            plan_role_fence(ours, ROLE)
        target_server.psql("-c", "ALTER ROLE reporting NOLOGIN")
        plan_role_fence(ours, ROLE)
    finally:
        target_server.psql("-c", "DROP ROLE reporting")

    assert "reporting" in caught.value.detail


@contextmanager
def stalling(params: ConnectionParams) -> Iterator[tuple[ConnectionParams, threading.Event]]:
    """Forward one client up to where it has to prove who it is, and on only when told to."""
    go_on = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def forward(client: socket.socket, server: socket.socket) -> None:
            while data := client.recv(4096):
                server.sendall(data)
            server.shutdown(socket.SHUT_WR)

        def serve() -> None:
            client, _ = listener.accept()
            with client, socket.create_connection((params.host, params.port)) as server:
                server.sendall(client.recv(4096))
                go_on.wait(20)
                answers = threading.Thread(target=forward, args=(server, client))
                answers.start()
                forward(client, server)
                answers.join()

        thread = threading.Thread(target=serve)
        thread.start()
        options = {"sslmode": "disable", "gssencmode": "disable", "connect_timeout": "30"}
        yield replace(params, port=listener.getsockname()[1], options=options), go_on
        go_on.set()
        thread.join()


def test_a_login_that_stalls_neither_holds_up_the_fence_nor_gets_through(
    ours: connection, client_params: ConnectionParams
) -> None:
    failures: list[str] = []

    def log_in(params: ConnectionParams) -> None:
        try:
            open_client_connection(params, purpose="stalls").close()
        except PermanentError as error:
            failures.append(error.detail)

    with stalling(client_params) as (params, go_on):
        thread = threading.Thread(target=log_in, args=(params,))
        thread.start()
        deadline = time.monotonic() + 20
        while read_pids(ours, LOGIN_TRANSACTIONS) == []:
            assert time.monotonic() < deadline

        fence = fence_off(ours)

        assert read_pids(ours, LOGIN_TRANSACTIONS) != []
        check_role_alone(ours, fence)
        go_on.set()
        thread.join()
    [failure] = failures
    assert "not permitted to log in" in failure


def test_a_session_that_slipped_in_before_the_fence_reads_and_writes_nothing(
    ours: connection, client_params: ConnectionParams
) -> None:
    with ours:
        rows(ours, "CREATE TABLE public.entries (tenant_id uuid DEFAULT app.current_tenant())")
        rows(ours, "ALTER TABLE public.entries ENABLE ROW LEVEL SECURITY")
        rows(ours, "CREATE POLICY own ON public.entries"
                   " USING (tenant_id = (SELECT app.current_tenant()))")  # fmt: skip
        rows(ours, f"GRANT ALL ON public.entries TO {ROLE}")
    with closing(open_client_connection(client_params, purpose="late")) as late:
        late.autocommit = True
        rows(late, "INSERT INTO public.entries DEFAULT VALUES")
        before = rows(late, "SELECT count(*) FROM public.entries")

        # It stays, as if it could not be seen when the fence looked.
        with ours:
            set_role_login(ours, ROLE, allowed=False)

        assert rows(late, "SELECT count(*) FROM public.entries") == [(0,)]
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            rows(late, "INSERT INTO public.entries DEFAULT VALUES")
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            rows(late, f"INSERT INTO public.entries VALUES ('{ACME_ID}')")
    assert before == [(1,)]


def test_the_fence_waits_for_a_login_that_passed_the_check_before(
    ours: connection, client_params: ConnectionParams, target_server: PostgresServer
) -> None:
    # It shows in pg_stat_activity only when it is through. Behind the check it holds this lock.
    query = resources.files("tenantferry.traffic").joinpath("logins.sql").read_text("utf-8")
    reload = "SELECT pg_reload_conf()"
    target_server.psql("-c", "ALTER SYSTEM SET post_auth_delay = 1", "-c", reload)
    try:
        opened: list[connection] = []
        thread = threading.Thread(
            target=lambda: opened.append(open_client_connection(client_params, purpose="late"))
        )
        deadline = time.monotonic() + 20
        thread.start()
        while not read_pids(ours, query):
            assert time.monotonic() < deadline

        fence = fence_off(ours)

        check_role_alone(ours, fence)
        thread.join()
        with closing(opened[0]), pytest.raises(psycopg2.OperationalError):
            rows(opened[0], "SELECT 1")
    finally:
        target_server.psql("-c", "ALTER SYSTEM RESET post_auth_delay", "-c", reload)


def read_pids(ours: connection, query: str) -> list[tuple[Any, ...]]:
    with ours:
        return rows(ours, query)


def test_no_session_gets_in_while_the_fence_goes_up(
    ours: connection, client_params: ConnectionParams
) -> None:
    # One that was let in just before must be gone, or seen, when the fence is up.
    with ours:
        rows(ours, "CREATE TABLE public.entries (at timestamptz DEFAULT clock_timestamp())")
        rows(ours, f"GRANT ALL ON public.entries TO {ROLE}")
    stop = threading.Event()

    def log_in() -> None:
        while not stop.is_set():
            try:
                with closing(psycopg2.connect(
                    host=client_params.host, port=client_params.port, user=ROLE,
                    password="random", dbname=client_params.database,
                )) as client, client, client.cursor() as cursor:  # fmt: skip
                    cursor.execute("INSERT INTO public.entries DEFAULT VALUES")
            except psycopg2.Error:
                continue

    threads = [threading.Thread(target=log_in) for _ in range(4)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 20
    with ours:
        while rows(ours, "SELECT count(*) FROM public.entries") < [(20,)]:
            assert time.monotonic() < deadline

    try:
        fence = fence_off(ours)
        with ours:
            [(fenced_at,)] = rows(ours, "SELECT clock_timestamp()")
        check_role_alone(ours, fence)
    finally:
        stop.set()
        for thread in threads:
            thread.join()

    with ours:
        [(late,)] = rows(ours, "SELECT count(*) FROM public.entries WHERE at > %s", fenced_at)
    assert late == 0
