from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from uuid import UUID

from psycopg2.extensions import connection

from round_stage import fetch, run
from tenantferry.backfill.clearing import delete_rows, end_leftover_sessions, session_purpose
from tenantferry.backfill.copying import LOAD_SETTINGS
from tenantferry.connections import ConnectionParams, open_connection
from tenantferry.fleet import Tenant
from tenantferry.schema.model import Table

CreatePair = Callable[[str, str, str], None]

OTHER_ID = UUID("22222222-2222-2222-2222-222222222222")


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
