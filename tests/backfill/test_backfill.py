from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from contextlib import closing
from uuid import UUID

import psycopg2
import pytest
from psycopg2.extensions import connection

from tenantferry.backfill.chunk import TEXT_SETTINGS, Chunk
from tenantferry.backfill.clearing import delete_rows, end_leftover_sessions, session_purpose
from tenantferry.backfill.copying import LOAD_SETTINGS, CopyJob, copy_chunk, read_heap_files
from tenantferry.backfill.finished import BackfillResult
from tenantferry.backfill.planning import plan_chunks
from tenantferry.backfill.progress import BackfillProgress
from tenantferry.backfill.running import run_backfill
from tenantferry.backfill.snapshot import Snapshot, drop_slot, exported_snapshot
from tenantferry.connections import ConnectionParams, open_connection
from tenantferry.control.chunks import read_chunks, read_last_round
from tenantferry.control.phases import IllegalPhaseError
from tenantferry.control.streams import read_stream
from tenantferry.errors import PermanentError, TransientError
from tenantferry.fleet import Tenant
from tenantferry.schema.catalog import read_tables
from tenantferry.schema.model import Table

CreatePair = Callable[[str, str, str], None]
Backfill = Callable[..., BackfillResult]

OTHER_ID = UUID("22222222-2222-2222-2222-222222222222")

ODD_TABLE = '"Order ""Lines"" 100%"'

ALL_TYPES = """
    id bigint, small smallint, big bigint, price numeric(12,4), ratio double precision, r real,
    flag boolean, t text, v varchar(20), c char(5), b bytea, d date, ts timestamp, tz timestamptz,
    tm time, tmz timetz, iv interval, u uuid, j json, jb jsonb, ip inet, net cidr, mac macaddr,
    arr integer[], tarr text[], rng int4range, mr int4multirange, pt point, bx bit(3), vb varbit,
    m money, tsv tsvector, "Odd ""Name%s" text,
    total bigint GENERATED ALWAYS AS (id * 2) STORED
"""


def run(session: connection, statement: str, *values: object) -> None:
    with session.cursor() as cursor:
        cursor.execute(statement, values or None)


def fetch(session: connection, query: str) -> list[tuple[object, ...]]:
    with session.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchall()


def slots(source: connection, tenant: Tenant) -> int:
    query = f"SELECT FROM pg_replication_slots WHERE slot_name = '{tenant.slot}'"
    return len(fetch(source, query))


def test_run_backfill_copies_every_ordinary_type(
    *, source_owner: connection, target: connection, create_pair: CreatePair, backfill: Backfill
) -> None:
    create_pair("everything", ALL_TYPES, "id")
    with source_owner.cursor() as cursor:
        cursor.execute("""
            INSERT INTO everything VALUES
            (1, 2, 3, 1.50, '-0', 'NaN', true, E'tab\\t\\\\N', '', 'ab', '\\x00ff', 'infinity',
             '0044-03-15 BC', '-infinity', '24:00:00', '24:00:00+02', '-1 mon 2 days',
             gen_random_uuid(), '{"a": 1,  "a":2}', '{"b":1}', '10.0.0.1/8', '10.0.0.0/8',
             '08:00:2b:01:02:03', '{1,NULL,3}', '{a,"b,c"}', '[1,5)', '{[1,2),[5,9)}', '(1,2)',
             '101', '1', '12.34', 'fat cat', 'x')
        """)
    run(source_owner, "INSERT INTO everything (id) VALUES (2)")

    result = backfill()

    assert result.rows == 2
    columns = 'ratio::text, ts::text, j::text, price::text, t, total, "Odd ""Name%s"'
    query = f"SELECT {columns} FROM public.everything ORDER BY id"
    assert fetch(target, query) == fetch(source_owner, query)
    whole = "SELECT md5((SELECT to_jsonb(e) - 'tenant_id' FROM everything e WHERE id = 1)::text)"
    assert fetch(target, whole.replace("everything e", "public.everything e")) == fetch(
        source_owner, whole
    )


def test_run_backfill_keeps_types_with_other_oids_on_the_other_side(
    *, source_owner: connection, target: connection, backfill: Backfill
) -> None:
    types = (
        "CREATE TYPE public.mood AS ENUM ('sad', 'ok');"
        "CREATE TYPE public.place AS (street text, number integer);"
        "CREATE DOMAIN public.positive AS integer CHECK (VALUE > 0);"
    )
    run(target, "CREATE TYPE public.shifts_the_oids AS ENUM ()")
    columns = "id public.positive, moods public.mood[], home public.place"
    run(source_owner, f"{types} CREATE TABLE public.people ({columns}, PRIMARY KEY (id))")
    run(target, f"{types} CREATE TABLE public.people ({columns}, tenant_id uuid NOT NULL)")
    run(source_owner, "INSERT INTO people VALUES (1, '{sad,ok}', ROW('a,b', 3))")

    backfill()

    found = fetch(target, "SELECT id, moods::text, home::text FROM public.people")
    assert found == [(1, "{sad,ok}", '("a,b",3)')]


def test_run_backfill_copies_identity_and_mixed_case_names(
    *, source_owner: connection, target: connection, create_pair: CreatePair, backfill: Backfill
) -> None:
    create_pair(ODD_TABLE, '"Id" bigint GENERATED ALWAYS AS IDENTITY, "Q" int', '"Id"')
    insert = f'INSERT INTO {ODD_TABLE} ("Q") SELECT n FROM generate_series(1, 250) n'
    run(source_owner, insert)

    result = backfill()

    assert (result.rows, result.chunks) == (250, 3)
    query = f'SELECT min("Id"), max("Id"), sum("Q") FROM public.{ODD_TABLE}'
    assert fetch(target, query) == [(1, 250, 31375)]


def test_run_backfill_copies_a_table_without_a_key_and_an_empty_one(
    *, source_owner: connection, target: connection, create_pair: CreatePair, backfill: Backfill
) -> None:
    create_pair("log", "line text", "")
    create_pair("nothing", "id bigint", "id")
    run(source_owner, "INSERT INTO log SELECT 'same' FROM generate_series(1, 300)")

    result = backfill()

    assert (result.rows, result.chunks, result.tables) == (300, 2, 2)
    assert fetch(target, "SELECT count(*) FROM public.log") == [(300,)]


def test_run_backfill_records_its_chunks_and_where_the_stream_begins(
    *,
    source_owner: connection,
    target: connection,
    create_pair: CreatePair,
    backfill: Backfill,
    tenant: Tenant,
) -> None:
    create_pair("items", "id bigint, name text", "id")
    run(source_owner, "INSERT INTO items SELECT n, 'x' FROM generate_series(1, 250) n")

    result = backfill()

    last = read_last_round(target, tenant.key)
    stream = read_stream(target, tenant.key)
    assert last is not None
    assert stream is not None
    assert last.finished_at is not None
    assert last.consistent_point == stream.position == result.consistent_point
    assert [chunk.rows for chunk in read_chunks(target, tenant.key)] == [84, 84, 82]
    assert result.bytes > 250 * 30


def test_run_backfill_does_nothing_when_it_is_done(
    *, source_owner: connection, target: connection, create_pair: CreatePair, backfill: Backfill
) -> None:
    create_pair("items", "id bigint", "id")
    run(source_owner, "INSERT INTO items SELECT generate_series(1, 10)")
    first = backfill()
    run(source_owner, "INSERT INTO items VALUES (11)")

    second = backfill()

    assert second == first
    assert fetch(target, "SELECT count(*) FROM public.items") == [(10,)]


def test_run_backfill_starts_over_when_the_slot_is_gone(
    *,
    source_owner: connection,
    source: connection,
    target: connection,
    create_pair: CreatePair,
    backfill: Backfill,
    tenant: Tenant,
) -> None:
    create_pair("items", "id bigint", "id")
    run(source_owner, "INSERT INTO items SELECT generate_series(1, 250)")
    first = backfill()
    run(source_owner, "DELETE FROM items WHERE id <= 50")
    drop_slot(source, tenant.slot)

    second = backfill()

    assert second.consistent_point > first.consistent_point
    assert fetch(target, "SELECT count(*), min(id) FROM public.items") == [(200, 51)]


def test_run_backfill_starts_over_when_the_slot_was_made_again_by_hand(
    *,
    source_owner: connection,
    source: connection,
    create_pair: CreatePair,
    backfill: Backfill,
    tenant: Tenant,
) -> None:
    create_pair("items", "id bigint", "id")
    run(source_owner, "INSERT INTO items VALUES (1)")
    first = backfill()
    drop_slot(source, tenant.slot)
    run(source_owner, "INSERT INTO items VALUES (2)")
    run(source, f"SELECT pg_create_logical_replication_slot('{tenant.slot}', 'pgoutput')")

    second = backfill()

    assert (first.rows, second.rows) == (1, 2)


class KillAfter(logging.Handler):
    """Ends this process, as the kernel would, when some chunks are copied."""

    def __init__(self, chunks: int) -> None:
        super().__init__()
        self.chunks = chunks

    def emit(self, record: logging.LogRecord) -> None:
        if "copied chunk" in record.msg:
            self.chunks -= 1
            if self.chunks == 0:
                os.kill(os.getpid(), signal.SIGKILL)


def test_run_backfill_starts_over_when_it_was_killed_half_way(
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
    create_pair("items", "id bigint, pad text", "id")
    run(target, f"INSERT INTO public.items VALUES (1, 'theirs', '{OTHER_ID}')")
    run(source_owner, "INSERT INTO items SELECT n, 'x' FROM generate_series(1, 1000) n")
    tables = read_tables(source, tenant)

    def run_and_die() -> None:
        logger = logging.getLogger("tenantferry.backfill")
        logger.setLevel(logging.INFO)
        logger.addHandler(KillAfter(3))
        run_backfill(source_params, target_params, tenant, tables, report=lambda _: None)

    process = multiprocessing.get_context("fork").Process(target=run_and_die)
    process.start()
    process.join(60)
    done = [chunk for chunk in read_chunks(target, tenant.key) if chunk.done_at is not None]
    slots_left = slots(source, tenant)
    run(source_owner, "UPDATE items SET pad = 'y' WHERE id % 2 = 0")

    result = backfill()

    assert process.exitcode == -signal.SIGKILL
    assert 3 <= len(done) < 10
    assert slots_left == 1
    assert result.rows == 1000
    query = "SELECT tenant_id::text, pad, count(*) FROM public.items GROUP BY 1, 2 ORDER BY 1, 2"
    assert fetch(target, query) == [
        (str(tenant.id), "x", 500),
        (str(tenant.id), "y", 500),
        (str(OTHER_ID), "theirs", 1),
    ]


class EndSessions(logging.Handler):
    """Ends every session of the backfill in the target once a chunk is copied."""

    def __init__(self, target: connection, tenant: Tenant) -> None:
        super().__init__()
        self.target, self.tenant = target, tenant

    def emit(self, record: logging.LogRecord) -> None:
        if "copied chunk" in record.msg:
            end_leftover_sessions(self.target, self.tenant)


def test_run_backfill_can_be_retried_when_the_target_ends_its_sessions(
    *,
    source_owner: connection,
    target: connection,
    create_pair: CreatePair,
    backfill: Backfill,
    tenant: Tenant,
) -> None:
    create_pair("items", "id bigint", "id")
    run(source_owner, "INSERT INTO items SELECT generate_series(1, 1000)")
    logger = logging.getLogger("tenantferry.backfill.copying")
    logger.setLevel(logging.INFO)
    handler = EndSessions(target, tenant)
    logger.addHandler(handler)
    try:
        with pytest.raises(TransientError):
            backfill()
    finally:
        logger.removeHandler(handler)

    assert backfill().rows == 1000


def test_run_backfill_leaves_no_slot_behind_when_it_fails(
    *,
    source_owner: connection,
    source: connection,
    target: connection,
    create_pair: CreatePair,
    backfill: Backfill,
    tenant: Tenant,
) -> None:
    create_pair("items", "id bigint, name text", "id")
    run(source_owner, "INSERT INTO items SELECT n, 'same' FROM generate_series(1, 500) n")
    run(target, "CREATE UNIQUE INDEX forgotten ON public.items (name)")

    with pytest.raises(PermanentError) as raised:
        backfill()

    assert 'cannot copy table "public.items"' in str(raised.value)
    assert "forgotten" in raised.value.detail
    assert slots(source, tenant) == 0


def test_run_backfill_refuses_when_the_tenant_is_live(
    *, target: connection, create_pair: CreatePair, backfill: Backfill, tenant: Tenant
) -> None:
    create_pair("items", "id bigint", "id")
    run(target, f"INSERT INTO public.items VALUES (1, '{tenant.id}')")
    run(target, "UPDATE tenantferry.tenants SET phase = 'live'")

    with pytest.raises(IllegalPhaseError):
        backfill()

    assert fetch(target, "SELECT count(*) FROM public.items") == [(1,)]


def test_delete_rows_leaves_other_tenants_alone_in_every_partition(
    *, target: connection, target_params: ConnectionParams, tenant: Tenant
) -> None:
    run(target, "CREATE TABLE public.p (id int, tenant_id uuid) PARTITION BY HASH (id)")
    for remainder in range(3):
        run(
            target,
            f"CREATE TABLE public.p{remainder} PARTITION OF public.p"
            f" FOR VALUES WITH (MODULUS 3, REMAINDER {remainder})",
        )
    for owner in (tenant.id, OTHER_ID):
        run(target, f"INSERT INTO public.p SELECT n, '{owner}' FROM generate_series(1, 100) n")
    table = Table("public", "p", (), (), "d")

    with closing(open_connection(target_params, purpose="test", settings=LOAD_SETTINGS)) as loader:
        deleted = delete_rows(loader, tenant, [table])

    assert deleted == 100
    left = fetch(target, "SELECT tenant_id::text, count(*) FROM public.p GROUP BY 1")
    assert left == [(str(OTHER_ID), 100)]


def test_delete_rows_fires_no_trigger(
    *, target: connection, target_params: ConnectionParams, tenant: Tenant, create_pair: CreatePair
) -> None:
    create_pair("items", "id bigint", "id")
    run(
        target,
        "CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'fired'; END $$;"
        "CREATE TRIGGER refuse BEFORE DELETE ON public.items"
        " FOR EACH ROW EXECUTE FUNCTION public.refuse()",
    )
    run(target, f"INSERT INTO public.items VALUES (1, '{tenant.id}')")

    with closing(open_connection(target_params, purpose="test", settings=LOAD_SETTINGS)) as loader:
        deleted = delete_rows(loader, tenant, [Table("public", "items", (), (), "d")])

    assert deleted == 1


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
            with pytest.raises(TransientError, match="started over by another process"):
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


def test_run_backfill_waits_for_the_chunk_that_a_dead_attempt_is_committing(
    *,
    source_owner: connection,
    source: connection,
    target: connection,
    target_params: ConnectionParams,
    create_pair: CreatePair,
    backfill: Backfill,
    tenant: Tenant,
) -> None:
    """A dead attempt has marked its chunk and is about to commit; it ends before we delete."""
    create_pair("items", "id bigint", "id")
    run(source_owner, "INSERT INTO items SELECT generate_series(1, 10)")
    backfill()
    run(target, "UPDATE tenantferry.chunks SET done_at = NULL")
    zombie = open_connection(target_params, purpose=session_purpose(tenant))
    run(zombie, "UPDATE tenantferry.chunks SET done_at = now()")
    run(zombie, f"INSERT INTO public.items VALUES (99, '{tenant.id}')")

    result = backfill()

    with pytest.raises(psycopg2.OperationalError):
        zombie.commit()
    assert result.rows == 10
    assert fetch(target, "SELECT count(*) FROM public.items") == [(10,)]


def test_end_leftover_sessions_spares_a_tenant_whose_key_begins_the_same(
    *, target: connection, target_params: ConnectionParams, tenant: Tenant
) -> None:
    long_keys = [f"a{'b' * 40}{end}" for end in "xy"]
    keys = ["acme_2", *long_keys]
    others = [tenant.model_copy(update={"key": key}) for key in keys]
    with closing(open_connection(target_params, purpose=session_purpose(others[0]))) as neighbour:
        ended = end_leftover_sessions(target, tenant)

        assert ended == 0
        assert fetch(neighbour, "SELECT 1") == [(1,)]
    assert len({session_purpose(other) for other in others}) == 3
    assert all(len(f"tenantferry {session_purpose(other)}") <= 63 for other in others)


def test_run_backfill_starts_over_when_a_table_is_truncated_under_it(
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


def test_run_backfill_loads_a_table_with_row_security(
    *, source_owner: connection, target: connection, create_pair: CreatePair, backfill: Backfill
) -> None:
    create_pair("items", "id bigint", "id")
    run(target, "ALTER TABLE public.items ENABLE ROW LEVEL SECURITY")
    run(target, "ALTER TABLE public.items FORCE ROW LEVEL SECURITY")
    run(source_owner, "INSERT INTO items SELECT generate_series(1, 10)")

    result = backfill()

    assert result.rows == 10


def test_run_backfill_reports_progress(
    *,
    source_owner: connection,
    source: connection,
    source_params: ConnectionParams,
    target_params: ConnectionParams,
    create_pair: CreatePair,
    tenant: Tenant,
) -> None:
    create_pair("items", "id bigint", "id")
    run(source_owner, "INSERT INTO items SELECT generate_series(1, 500)")
    reports: list[BackfillProgress] = []

    run_backfill(
        source_params,
        target_params,
        tenant,
        read_tables(source, tenant),
        report=reports.append,
    )

    last = reports[-1]
    assert (last.rows, last.estimated_rows, last.chunks, last.eta_seconds) == (500, 500, 5, 0.0)
    assert last.rows_per_second > 0
