"""A real PgBouncer, and clients that never stop writing through it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing

import pytest

from server_files import make_servers_directory
from tenantferry.connections import ConnectionParams, open_client_connection
from tenantferry.local.pgbouncer import PgBouncer
from tenantferry.local.postgres import PostgresServer
from tenantferry.traffic.router import Instance, Router

APP_PASSWORD = "owner"


@pytest.fixture
def poolers() -> Iterator[list[PgBouncer]]:
    """Two PgBouncer instances, each with a file of its own, that run."""
    base = make_servers_directory()
    started = [
        PgBouncer(base / name, settings={"verbose": "2", "query_wait_timeout": "30"})
        for name in ("one", "two")
    ]
    try:
        for pooler in started:
            pooler.set_user("app_owner", APP_PASSWORD)
            pooler.start()
        yield started
    finally:
        for pooler in started:
            pooler.kill()
        shutil.rmtree(base)


@pytest.fixture
def router(poolers: list[PgBouncer]) -> Router:
    return Router(
        [Instance(pooler.directory.name, pooler.admin, pooler.aliases_file) for pooler in poolers]
    )


@pytest.fixture
def two_databases(
    source_params: ConnectionParams, target_params: ConnectionParams, target_server: PostgresServer
) -> Iterator[tuple[ConnectionParams, ConnectionParams]]:
    """The application's view of a database here, and of one on another server."""
    target_server.psql("-c", "CREATE ROLE tenant_acme LOGIN PASSWORD 'random'")
    here = ConnectionParams(
        source_params.host, source_params.port, "app_owner", source_params.database, APP_PASSWORD
    )
    there = ConnectionParams(
        target_params.host, target_params.port, "tenant_acme", target_params.database, "random"
    )
    create = "CREATE TABLE public.written (id bigint PRIMARY KEY)"
    with (
        closing(open_client_connection(here, purpose="setup")) as session,
        session,
        session.cursor() as cursor,
    ):
        cursor.execute(create)
    target_server.psql(
        "-c", create, "-c", "GRANT ALL ON public.written TO tenant_acme", database=there.database
    )
    yield here, there
    target_server.psql("-c", "DROP OWNED BY tenant_acme", database=there.database)
    target_server.psql("-c", "DROP ROLE tenant_acme")
