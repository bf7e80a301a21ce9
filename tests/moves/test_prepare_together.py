"""Two tenants are prepared at the same time, in a target that has nothing yet."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from uuid import UUID

from psycopg2.extensions import connection

from move_stage import APP_PASSWORD, rows
from tenantferry.connections import open_client_connection, open_connection
from tenantferry.moves.move import Move
from tenantferry.moves.prepare import PrepareSummary, prepare
from tenantferry.schema.catalog import read_catalog
from tenantferry.schema.isolation import lock_target_schema
from tenantferry.schema.retrofit import apply_retrofit, plan_retrofit

_OTHER = UUID("22222222-2222-2222-2222-222222222222")
_WAITING = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"


def wait_until_waiting(watch: connection) -> None:
    deadline = time.monotonic() + 30
    while not rows(watch, _WAITING):
        assert time.monotonic() < deadline


def test_prepare_reads_the_target_when_nobody_changes_it(move: Move) -> None:
    owner = replace(move.source, user="app_owner", password=APP_PASSWORD)
    with closing(open_client_connection(owner, purpose="schema")) as session, session:
        rows(session, "CREATE TABLE public.written (id bigint PRIMARY KEY)")
    other = move.tenant.model_copy(update={"key": "globex", "id": _OTHER})
    with (
        closing(open_connection(move.source, purpose="test", autocommit=True)) as source,
        closing(open_connection(move.target, purpose="test", autocommit=True)) as watch,
        closing(open_connection(move.target, purpose="other")) as target,
        ThreadPoolExecutor(1) as beside,
    ):
        with target:
            lock_target_schema(target)
            prepared = beside.submit(prepare, move)
            wait_until_waiting(watch)
            apply_retrofit(target, plan_retrofit(read_catalog(source), read_catalog(target), other))
        summary = prepared.result()

    # The other tenant's preparation made all of it.
    assert summary == PrepareSummary(statements=0, tables=1)
