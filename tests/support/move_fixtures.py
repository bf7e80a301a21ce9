"""Fixtures of a whole move: a source with an application behind PgBouncer, a target, a stream."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace

import pytest

from move_stage import ACME_ID, APP_PASSWORD, Stage, rows
from server_files import make_servers_directory
from tenantferry.connections import ConnectionParams, open_client_connection, open_connection
from tenantferry.fleet import Source, Tenant
from tenantferry.local.pgbouncer import PgBouncer
from tenantferry.moves.backfill import backfill
from tenantferry.moves.move import Move
from tenantferry.moves.prepare import prepare
from tenantferry.moves.validate import validate
from tenantferry.traffic.router import Instance, Router


@pytest.fixture
def pooler() -> Iterator[PgBouncer]:
    base = make_servers_directory()
    pooler = PgBouncer(base / "pgbouncer")
    pooler.set_user("app_owner", APP_PASSWORD)
    pooler.start()
    yield pooler
    pooler.kill()
    shutil.rmtree(base)


@pytest.fixture
def move(
    source_params: ConnectionParams, target_params: ConnectionParams, pooler: PgBouncer
) -> Move:
    """A tenant that may be moved, and of which nothing is in the target."""
    pooler.set_alias(
        "acme",
        host=source_params.host,
        port=source_params.port,
        database=source_params.database,
        user="app_owner",
        password=APP_PASSWORD,
    )
    tenant = Tenant(
        key="acme", id=ACME_ID, source=Source(conn_id="acme"), slot_timeout_seconds=30,
        max_write_pause_seconds=5, lag_threshold_seconds=5,
    )  # fmt: skip
    return Move(
        tenant=tenant,
        target_regions=frozenset(),
        source=source_params,
        target=target_params,
        router=Router([Instance("one", pooler.admin, pooler.aliases_file)]),
        target_address=(target_params.host, target_params.port, target_params.database),
        probe=pooler.client("acme", "app_owner", APP_PASSWORD),
        run_id="test",
    )


@pytest.fixture
def stage(
    *,
    source_params: ConnectionParams,
    target_params: ConnectionParams,
    pooler: PgBouncer,
    move: Move,
) -> Iterator[Stage]:
    """A validated tenant whose stream runs."""
    owner = replace(source_params, user="app_owner", password=APP_PASSWORD)
    with closing(open_client_connection(owner, purpose="schema")) as session, session:
        rows(session, "CREATE TABLE public.written (id bigint PRIMARY KEY)")
        rows(session, "CREATE TABLE public.counted (id serial PRIMARY KEY, note text)")
        rows(session, "INSERT INTO public.counted (note) SELECT 'old' FROM generate_series(1, 9)")
    prepare(move)
    backfill(move)
    with ExitStack() as stack:
        source = stack.enter_context(
            closing(open_connection(source_params, purpose="test", autocommit=True))
        )
        target = stack.enter_context(
            closing(open_connection(target_params, purpose="test", autocommit=True))
        )
        staged = Stage(move, pooler, source, target)
        with staged.streaming():
            validate(move)
            yield staged
