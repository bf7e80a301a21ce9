"""Step one of a whole move: it tells everything at once, and leaves both sides as they are."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from psycopg2.extensions import connection

from move_stage import APP_PASSWORD, rows
from server_files import make_servers_directory
from tenantferry.connections import ConnectionParams, open_admin_console
from tenantferry.errors import PermanentError
from tenantferry.local.pgbouncer import PgBouncer
from tenantferry.local.postgres import PostgresServer, choose_installation
from tenantferry.moves.move import Move
from tenantferry.moves.preflight import PreflightError, preflight
from tenantferry.traffic.router import Instance, Router

# All that a step could leave behind on a server; the text of an ACL is part of it.
_SIDE = """
SELECT (SELECT count(*) FROM pg_class), (SELECT count(*) FROM pg_proc),
       (SELECT count(*) FROM pg_namespace), (SELECT count(*) FROM pg_publication),
       (SELECT count(*) FROM pg_replication_slots), (SELECT count(*) FROM pg_replication_origin),
       (SELECT string_agg(r::text, ',' ORDER BY r.rolname) FROM pg_roles AS r),
       (SELECT string_agg(datacl::text, ',' ORDER BY datname) FROM pg_database
        WHERE datname = current_database()),
       (SELECT string_agg(relacl::text, ',' ORDER BY oid) FROM pg_class),
       (SELECT string_agg(s::text, ',') FROM pg_db_role_setting AS s)
"""


@pytest.fixture
def replica_level(tmp_path: Path) -> Iterator[tuple[PostgresServer, ConnectionParams]]:
    """A source whose log says too little to be decoded, and that lacks nothing else."""
    base = make_servers_directory()
    server = PostgresServer(
        base / "replica",
        choose_installation(),
        settings={"wal_level": "replica", "fsync": "off", "shared_buffers": "16MB"},
    )
    try:
        server.start()
        server.psql(
            "-c", "CREATE ROLE tenantferry LOGIN REPLICATION PASSWORD 'ferry'",
            "-c", f"CREATE ROLE app_owner LOGIN PASSWORD '{APP_PASSWORD}'",
            "-c", "CREATE DATABASE shop OWNER app_owner",
        )  # fmt: skip
        script = resources.files("tenantferry.schema").joinpath("source_privileges.sql")
        with resources.as_file(script) as path:
            server.psql("--set=owner=app_owner", f"--file={path}", database="shop")
        server.psql(
            "-c", "SET ROLE app_owner", "-c", "CREATE TABLE public.written (id bigint PRIMARY KEY)",
            database="shop",
        )  # fmt: skip
        params = server.superuser
        yield server, ConnectionParams(params.host, params.port, "tenantferry", "shop", "ferry")
    finally:
        server.stop("immediate")
        shutil.rmtree(base, ignore_errors=True)


@pytest.fixture
def look(source: connection, target: connection) -> Callable[[], list[Any]]:
    """Take down what is on both sides."""
    return lambda: [rows(source, _SIDE), rows(target, _SIDE)]


def test_preflight_leaves_a_source_alone_whose_wal_level_is_replica(
    move: Move,
    pooler: PgBouncer,
    replica_level: tuple[PostgresServer, ConnectionParams],
    target: connection,
) -> None:
    server, params = replica_level
    pooler.set_alias(
        "acme", host=params.host, port=params.port, database="shop", user="app_owner",
        password=APP_PASSWORD,
    )  # fmt: skip
    before = server.psql("-c", _SIDE, database="shop"), rows(target, _SIDE)

    with pytest.raises(PreflightError) as refused:
        preflight(replace(move, source=params))

    assert "1 problem(s)" in refused.value.message
    assert "wal_level is replica. Set wal_level = logical and restart." in refused.value.detail
    assert (server.psql("-c", _SIDE, database="shop"), rows(target, _SIDE)) == before


def test_preflight_lists_several_problems_in_one_message_and_changes_nothing(
    *,
    move: Move,
    source_owner: connection,
    pooler: PgBouncer,
    look: Callable[[], list[Any]],
) -> None:
    rows(source_owner, "CREATE TABLE public.keyless (note text)")
    rows(source_owner, "CREATE UNLOGGED TABLE public.volatile (id int PRIMARY KEY)")
    aliases = pooler.aliases_file.read_text("utf-8")
    pooler.aliases_file.write_text(aliases.replace("user=app_owner", ""), "utf-8")
    changed = pooler.aliases_file.read_text("utf-8")
    before = look()

    with pytest.raises(PreflightError) as refused:
        preflight(replace(move, target_regions=frozenset({"eu"})))

    detail = refused.value.detail
    assert "(1) " in detail
    for problem in (
        "replica identity: public.keyless",
        "unlogged table: public.volatile",
        "region: acme",
        "router: ",
    ):
        assert problem in detail
    assert look() == before
    assert pooler.aliases_file.read_text("utf-8") == changed


def test_preflight_refuses_a_table_without_a_usable_replica_identity(
    move: Move, source_owner: connection, look: Callable[[], list[Any]]
) -> None:
    rows(source_owner, "CREATE TABLE public.keyless (note text)")
    before = look()

    with pytest.raises(PreflightError, match=r"1 problem.*\n.*no primary key: publishing it"):
        preflight(move)

    assert look() == before


@pytest.mark.parametrize("side", ["source", "target"])
def test_preflight_of_a_wrong_password_is_not_worth_a_retry(
    move: Move, side: str, look: Callable[[], list[Any]]
) -> None:
    params: ConnectionParams = getattr(move, side)
    wrong: dict[str, Any] = {side: replace(params, password="not this one")}
    before = look()

    with pytest.raises(PermanentError, match="password authentication failed") as refused:
        preflight(replace(move, **wrong))

    assert params.describe() in refused.value.message
    assert "not this one" not in str(refused.value)
    assert look() == before


@pytest.mark.parametrize("size", [10, 1000], ids=["fits", "too large"])
def test_gotcha_30_preflight_adds_up_the_pools_of_all_instances_and_tenants(
    *,
    move: Move,
    pooler: PgBouncer,
    source_owner: connection,
    target: connection,
    caplog: pytest.LogCaptureFixture,
    size: int,
) -> None:
    caplog.set_level(logging.INFO)
    rows(source_owner, "CREATE TABLE public.written (id bigint PRIMARY KEY)")
    second = PgBouncer(pooler.directory.parent / "second", settings={"default_pool_size": "7"})
    host, port, database = move.target_address
    with pooler.aliases_file.open("a", encoding="utf-8") as file:
        # Where the tenant "globex" already is; another database of the target's server counts too.
        file.write(f"globex = host={host} port={port} dbname={database} pool_size={size}\n")
        file.write(f"umbrella = host={host} port={port} dbname=other pool_size=50")
        file.write(" max_db_connections=4\nelsewhere = host=192.0.2.1 pool_size=900\n")
    reload_console(pooler)
    second.set_user("app_owner", APP_PASSWORD)
    second.set_alias(
        "acme", host=move.source.host, port=move.source.port, database=move.source.database,
        user="app_owner", password=APP_PASSWORD,
    )  # fmt: skip
    second.start()
    instances = [
        Instance("one", pooler.admin, pooler.aliases_file),
        Instance("two", second.admin, second.aliases_file),
    ]
    try:
        summary = preflight(replace(move, router=Router(instances)))
    finally:
        second.kill()
    [(limit, reserved)] = rows(
        target,
        "SELECT current_setting('max_connections')::int,"
        " current_setting('superuser_reserved_connections')::int"
        " + coalesce(current_setting('reserved_connections', true), '0')::int",
    )

    told = next(r for r in caplog.records if "connections: target" in r.getMessage())
    assert f"open {20 + 7 + size + 4} connections" in told.getMessage()
    assert "20 (one) + 7 (two) for this tenant" in told.getMessage()
    assert f"{size + 4} for 2 aliases that point there already" in told.getMessage()
    assert f"The target accepts {limit - reserved}." in told.getMessage()
    assert (told.levelno == logging.WARNING) is (size == 1000)
    assert summary.warnings >= (size == 1000)


def reload_console(pooler: PgBouncer) -> None:
    with closing(open_admin_console(pooler.admin, purpose="test")) as console:
        rows(console, "RELOAD")
