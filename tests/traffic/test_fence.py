from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from importlib import resources
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
from tenantferry.local.postgres import PostgresServer
from tenantferry.traffic.fence import (
    Fence,
    ForeignSessionError,
    check_alone,
    check_fenceable,
    describe_transactions,
    lower_fence,
    plan_fence,
    raise_fence,
)


def rows(session: connection, query: str, *values: Any) -> list[tuple[Any, ...]]:
    with session.cursor() as cursor:
        cursor.execute(query, values or None)
        return cursor.fetchall() if cursor.description else []


def read_acl(session: connection) -> str:
    [(acl,)] = rows(
        session,
        "SELECT coalesce(datacl, acldefault('d', datdba))::text FROM pg_database"
        " WHERE datname = current_database()",
    )
    return str(acl)


def fence_off(source: connection) -> Fence:
    fence = plan_fence(source)
    raise_fence(source, fence, timeout_seconds=5)
    return fence


@pytest.fixture
def owner_params(source_params: ConnectionParams) -> ConnectionParams:
    return replace(source_params, user="app_owner", password="owner")


@pytest.fixture
def superuser(
    source_server: PostgresServer, source_params: ConnectionParams
) -> Iterator[connection]:
    params = source_server.superuser.with_database(source_params.database)
    with closing(open_connection(params, purpose="test dba", autocommit=True)) as opened:
        yield opened


def test_read_only_alone_is_no_fence(source: connection, owner_params: ConnectionParams) -> None:
    # Gotcha 37: any session overrides it.
    [(name,)] = rows(source, "SELECT current_database()")
    rows(source, f"ALTER DATABASE {name} SET default_transaction_read_only = on")

    with closing(psycopg2.connect(
        host=owner_params.host, port=owner_params.port, user="app_owner", password="owner",
        dbname=name, options="-c default_transaction_read_only=off",
    )) as stale, stale, stale.cursor() as cursor:  # fmt: skip
        cursor.execute("CREATE TABLE public.written_through_it ()")


def test_fence_refuses_the_owner_and_ends_its_session(
    source: connection, source_owner: connection, owner_params: ConnectionParams
) -> None:
    fence_off(source)

    with pytest.raises(psycopg2.OperationalError):
        rows(source_owner, "SELECT 1")
    with pytest.raises(PermanentError, match="could not connect") as caught:
        open_connection(owner_params, purpose="test")
    assert "permission denied for database" in caught.value.detail


def test_fence_lets_our_own_stream_reconnect(
    source: connection, source_params: ConnectionParams
) -> None:
    with closing(open_replication_connection(source_params, purpose="test")) as walsender:
        fence_off(source)

        with walsender.cursor() as cursor:
            cursor.execute("IDENTIFY_SYSTEM")
    open_replication_connection(source_params, purpose="test").close()
    check_alone(source)


@pytest.mark.parametrize(
    "statements",
    [
        [],
        ["REVOKE CONNECT ON DATABASE {0} FROM PUBLIC"],
        ["GRANT CONNECT ON DATABASE {0} TO pg_monitor WITH GRANT OPTION"],
        ["REVOKE ALL ON DATABASE {0} FROM tenantferry"],
        ["ALTER DATABASE {0} SET default_transaction_read_only = off"],
        ["ALTER DATABASE {0} SET work_mem = '5MB'"],
    ],
    ids=["default", "no public", "grant option", "we by membership", "read only off", "other"],
)
def test_lower_fence_gives_back_exactly_what_it_took(
    source: connection, superuser: connection, statements: list[str]
) -> None:
    [(name,)] = rows(source, "SELECT current_database()")
    for statement in statements:
        rows(superuser, statement.format(name))
    settings = "SELECT setconfig FROM pg_db_role_setting WHERE setdatabase = (" \
        "SELECT oid FROM pg_database WHERE datname = current_database())"  # fmt: skip
    rows(superuser, "SELECT 1")
    acl, configured = read_acl(source), rows(source, settings)
    superuser.close()

    fence = fence_off(source)
    fenced = read_acl(source)
    lower_fence(source, Fence.from_json(json.loads(json.dumps(fence.to_json()))))

    assert sorted(read_acl(source).strip("{}").split(",")) == sorted(acl.strip("{}").split(","))
    assert rows(source, settings) == configured
    assert fenced != acl


def test_lower_fence_changes_nothing_when_it_is_not_up(source: connection) -> None:
    acl, fence = read_acl(source), plan_fence(source)

    lower_fence(source, fence)

    assert read_acl(source) == acl


def test_lower_fence_keeps_what_was_granted_meanwhile(
    source: connection, source_server: PostgresServer
) -> None:
    fence = fence_off(source)
    [(name,)] = rows(source, "SELECT current_database()")
    source_server.psql("-c", f"GRANT CONNECT ON DATABASE {name} TO pg_monitor")

    lower_fence(source, fence)

    assert "pg_monitor=c/" in read_acl(source)


def test_fence_names_a_superuser_that_it_cannot_end(
    source: connection, superuser: connection
) -> None:
    rows(superuser, "SELECT 1")

    with pytest.raises(ForeignSessionError) as caught:
        fence_off(source)

    assert 'user "postgres", application "tenantferry test dba"' in caught.value.detail


def test_check_alone_sees_a_superuser_behind_the_fence(
    source: connection, source_server: PostgresServer, source_params: ConnectionParams
) -> None:
    fence_off(source)
    check_alone(source)
    params = source_server.superuser.with_database(source_params.database)

    with closing(open_connection(params, purpose="dba")), pytest.raises(ForeignSessionError):
        check_alone(source)


@pytest.mark.parametrize(
    ("backend_type", "user", "counts"),
    [
        ("pg_cron", "app_owner", True),
        ("TimescaleDB Background Worker Scheduler", "tenantferry", True),
        ("logical replication worker", "tenantferry", True),
        ("client backend", "tenantferry", False),
        ("autovacuum worker", None, False),
        ("parallel worker", "app_owner", False),
        (None, "app_owner", True),
    ],
    ids=["cron", "ours but a job", "subscription", "ours", "autovacuum", "parallel", "unknown"],
)
def test_every_worker_that_may_write_counts_as_a_foreign_session(
    source: connection, backend_type: str | None, user: str | None, counts: bool
) -> None:
    # Such workers pass the privilege to connect, and end themselves only to come again.
    query = resources.files("tenantferry.traffic").joinpath("foreign_sessions.sql").read_text()
    rows(source, "CREATE TEMP VIEW activity AS SELECT * FROM pg_stat_activity"
         " WHERE pid = pg_backend_pid()")  # fmt: skip
    told = {"backend_type": backend_type, "usename": user}
    columns = rows(
        source,
        "SELECT attname FROM pg_attribute WHERE attrelid = 'pg_temp.activity'::regclass"
        " AND attnum > 0 ORDER BY attnum",
    )
    with source.cursor() as cursor:
        shown = ", ".join(
            cursor.mogrify("%s::name", (told[name],)).decode() + f" AS {name}"
            if name in told
            else name
            for (name,) in columns
        )

    found = rows(
        source,
        query.replace("pg_catalog.pg_stat_activity", f"(SELECT {shown} FROM pg_temp.activity)"),
    )

    assert len(found) == int(counts)
    if counts and backend_type is not None:
        assert not found[0][2]


def test_parallel_workers_of_ours_pass_the_fence(
    source: connection, source_params: ConnectionParams
) -> None:
    fence_off(source)
    with closing(open_connection(source_params, purpose="test", autocommit=True)) as other:
        rows(other, "SELECT set_config(name, 'on', false) FROM pg_settings"
             " WHERE name IN ('force_parallel_mode', 'debug_parallel_query')")  # fmt: skip
        thread = threading.Thread(target=lambda: rows(other, "SELECT pg_sleep(2)"))
        thread.start()
        deadline = time.monotonic() + 10
        while not rows(source, "SELECT 1 FROM pg_stat_activity"
                       " WHERE backend_type = 'parallel worker'"):  # fmt: skip
            assert time.monotonic() < deadline

        check_alone(source)

        thread.join()


def test_check_alone_refuses_a_prepared_transaction(
    source: connection, source_owner: connection
) -> None:
    rows(source_owner, "BEGIN")
    rows(source_owner, "CREATE TABLE public.t ()")
    rows(source_owner, "PREPARE TRANSACTION 'later'")

    with pytest.raises(TransientError, match="prepared transactions") as caught:
        check_fenceable(source)

    assert "later" in caught.value.detail
    rows(source_owner, "ROLLBACK PREPARED 'later'")
    check_fenceable(source)


def test_plan_fence_refuses_a_privilege_that_it_could_not_give_back(
    source: connection, superuser: connection
) -> None:
    [(name,)] = rows(source, "SELECT current_database()")
    rows(superuser, f"GRANT CONNECT ON DATABASE {name} TO pg_monitor WITH GRANT OPTION")
    rows(superuser, "SET ROLE pg_monitor")
    rows(superuser, f"GRANT CONNECT ON DATABASE {name} TO pg_read_all_stats")

    with pytest.raises(PermanentError, match="cannot fence") as caught:
        plan_fence(source)

    assert "pg_read_all_stats" in caught.value.detail


def test_describe_transactions_names_who_is_idle_in_one(
    source: connection, source_owner: connection
) -> None:
    rows(source_owner, "BEGIN")
    rows(source_owner, "SELECT 1")

    [found] = describe_transactions(source)

    assert 'user "app_owner", application "tenantferry test client", client 127.0.0.1' in found
    assert "idle in transaction for" in found


def test_no_session_gets_in_while_the_fence_goes_up(
    source: connection, owner_params: ConnectionParams
) -> None:
    # Clients that log in all the time: one that passed the check just before the fence was up must
    # be gone, or seen, when raise_fence returns.
    rows(source, "GRANT ALL ON SCHEMA public TO app_owner")
    rows(source, "SET ROLE app_owner")
    rows(source, "CREATE TABLE public.entries (at timestamptz DEFAULT clock_timestamp())")
    rows(source, "RESET ROLE")
    stop = threading.Event()

    def log_in() -> None:
        while not stop.is_set():
            try:
                with closing(psycopg2.connect(
                    host=owner_params.host, port=owner_params.port, user="app_owner",
                    password="owner", dbname=owner_params.database,
                )) as client, client, client.cursor() as cursor:  # fmt: skip
                    cursor.execute("INSERT INTO public.entries DEFAULT VALUES")
            except psycopg2.Error:
                continue

    threads = [threading.Thread(target=log_in) for _ in range(4)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 20
    while rows(source, "SELECT count(*) FROM public.entries") < [(20,)]:
        assert time.monotonic() < deadline

    try:
        fence_off(source)
        [(fenced_at,)] = rows(source, "SELECT clock_timestamp()")
        check_alone(source)
    finally:
        stop.set()
        for thread in threads:
            thread.join()

    [(late,)] = rows(source, "SELECT count(*) FROM public.entries WHERE at > %s", fenced_at)
    assert late == 0
