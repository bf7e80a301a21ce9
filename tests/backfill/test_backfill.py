from __future__ import annotations

from collections.abc import Callable

import pytest
from psycopg2.extensions import connection

from round_stage import fetch, run
from tenantferry.backfill.finished import BackfillResult
from tenantferry.control.chunks import read_chunks, read_rounds
from tenantferry.control.phases import IllegalPhaseError
from tenantferry.control.streams import read_stream
from tenantferry.errors import PermanentError
from tenantferry.fleet import Tenant

CreatePair = Callable[[str, str, str], None]
Backfill = Callable[..., BackfillResult]

ODD_TABLE = 'Order "Lines" 100%'

ALL_TYPES = """
    id bigint, small smallint, big bigint, price numeric(12,4), ratio double precision, r real,
    flag boolean, t text, v varchar(20), c char(5), b bytea, d date, ts timestamp, tz timestamptz,
    tm time, tmz timetz, iv interval, u uuid, j json, jb jsonb, ip inet, net cidr, mac macaddr,
    arr integer[], tarr text[], rng int4range, mr int4multirange, pt point, bx bit(3), vb varbit,
    m money, tsv tsvector, "Odd ""Name%s" text,
    total bigint GENERATED ALWAYS AS (id * 2) STORED
"""


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
    insert = 'INSERT INTO "Order ""Lines"" 100%" ("Q") SELECT n FROM generate_series(1, 250) n'
    run(source_owner, insert)

    result = backfill()

    assert (result.rows, result.chunks) == (250, 3)
    query = 'SELECT min("Id"), max("Id"), sum("Q") FROM public."Order ""Lines"" 100%"'
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

    (only,) = read_rounds(target, tenant.key)
    stream = read_stream(target, tenant.key)
    assert stream is not None
    assert only.finished_at is not None
    assert only.consistent_point == stream.position == result.consistent_point
    assert [chunk.rows for chunk in read_chunks(target, tenant.key)] == [84, 84, 82]
    assert result.bytes > 250 * 30
    assert result.rounds == 1
    assert 0 < result.longest_snapshot_seconds == result.seconds


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


def test_run_backfill_loads_a_table_with_row_security(
    *, source_owner: connection, target: connection, create_pair: CreatePair, backfill: Backfill
) -> None:
    create_pair("items", "id bigint", "id")
    run(target, "ALTER TABLE public.items ENABLE ROW LEVEL SECURITY")
    run(target, "ALTER TABLE public.items FORCE ROW LEVEL SECURITY")
    run(source_owner, "INSERT INTO items SELECT generate_series(1, 10)")

    result = backfill()

    assert result.rows == 10
