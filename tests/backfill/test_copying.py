from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing

import pytest
from psycopg2.extensions import connection

from round_stage import fetch, run
from tenantferry.backfill.chunk import TEXT_SETTINGS, Chunk
from tenantferry.backfill.clearing import session_purpose
from tenantferry.backfill.copying import LOAD_SETTINGS, CopyJob, copy_chunk, read_heap_files
from tenantferry.backfill.finished import BackfillResult
from tenantferry.backfill.planning import plan_chunks
from tenantferry.backfill.snapshot import Snapshot, exported_snapshot
from tenantferry.connections import ConnectionParams, open_connection
from tenantferry.errors import TransientError
from tenantferry.fleet import Tenant
from tenantferry.schema.catalog import read_tables

CreatePair = Callable[[str, str, str], None]
Backfill = Callable[..., BackfillResult]


def make_job(
    *,
    source_params: ConnectionParams,
    target_params: ConnectionParams,
    source: connection,
    tenant: Tenant,
    snapshot: Snapshot,
) -> CopyJob:
    tables = read_tables(source, tenant)
    return CopyJob(
        source=source_params,
        target=target_params,
        tenant=tenant.key,
        tenant_id=tenant.id,
        purpose=session_purpose(tenant),
        snapshot=snapshot,
        tables={table.qualified: table for table in tables},
        files=read_heap_files(source, tables),
    )


def test_copy_chunk_restart_commit_writes_nothing_when_a_later_attempt_owns_the_chunk(
    *,
    source_owner: connection,
    source: connection,
    target: connection,
    source_params: ConnectionParams,
    target_params: ConnectionParams,
    create_pair: CreatePair,
    backfill: Backfill,
    tenant: Tenant,
) -> None:
    """The worker of a dead attempt reads its rows, we start over, the worker commits."""
    create_pair("items", "id bigint", "id")
    run(source_owner, "INSERT INTO items SELECT generate_series(1, 10)")
    with exported_snapshot(
        source_params, slot="tenantferry_zombie", temporary=True, timeout_seconds=20
    ) as stale:
        job = make_job(
            source_params=source_params,
            target_params=target_params,
            source=source,
            tenant=tenant,
            snapshot=stale,
        )
        backfill()
        run(target, "UPDATE tenantferry.chunks SET done_at = NULL; DELETE FROM public.items")
        with (
            closing(open_connection(source_params, purpose="z", settings=TEXT_SETTINGS)) as reader,
            closing(open_connection(target_params, purpose="z", settings=LOAD_SETTINGS)) as loader,
        ):
            chunk = plan_chunks(source, job.tables["public", "items"], chunk_rows=100)[0]
            with pytest.raises(TransientError, match="taken over by another process"):
                copy_chunk(
                    job,
                    chunk,
                    reader,
                    loader,
                    stop=threading.Event(),
                    is_refused=lambda: False,
                    count_bytes=lambda _: None,
                )

    assert fetch(target, "SELECT count(*) FROM public.items") == [(0,)]


def test_copy_chunk_refuses_a_table_that_is_truncated_under_it(
    *,
    source_owner: connection,
    source: connection,
    target: connection,
    source_params: ConnectionParams,
    target_params: ConnectionParams,
    create_pair: CreatePair,
    tenant: Tenant,
) -> None:
    """An older snapshot sees a truncated table as empty; that must not pass for its content."""
    create_pair("items", "id bigint", "id")
    run(source_owner, "INSERT INTO items SELECT generate_series(1, 10)")
    with exported_snapshot(
        source_params, slot="tenantferry_s", temporary=True, timeout_seconds=20
    ) as snapshot:
        job = make_job(
            source_params=source_params,
            target_params=target_params,
            source=source,
            tenant=tenant,
            snapshot=snapshot,
        )
        run(source_owner, "TRUNCATE items")
        chunk = Chunk("public", "items", 1, (), None, None, 10)
        with (
            closing(open_connection(source_params, purpose="z")) as reader,
            closing(open_connection(target_params, purpose="z", settings=LOAD_SETTINGS)) as loader,
            pytest.raises(TransientError, match="truncated or rewritten"),
        ):
            copy_chunk(
                job,
                chunk,
                reader,
                loader,
                stop=threading.Event(),
                is_refused=lambda: False,
                count_bytes=lambda _: None,
            )
