"""The scripts that README.md names under "Give a move up", run by psql after a real backfill."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from psycopg2.extensions import connection

from tenantferry.connections import ConnectionParams, open_connection
from tenantferry.control.streams import read_stream
from tenantferry.errors import PermanentError
from tenantferry.fleet import Source, Tenant
from tenantferry.local.postgres import PostgresServer
from tenantferry.moves.backfill import backfill
from tenantferry.moves.move import Move
from tenantferry.moves.prepare import prepare
from tenantferry.traffic.router import Router

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
KEY = "quitter"
ID = UUID("7f3b1c52-0000-4000-8000-00000000000a")
OTHER_ID = UUID("7f3b1c52-0000-4000-8000-00000000000b")


def rows(opened: connection, query: str) -> list[tuple[Any, ...]]:
    with opened.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchall() if cursor.description else []


def count_all(target: connection) -> dict[str, int]:
    tables = ("tenants", "phase_changes", "rounds", "chunks", "streams", "validations")
    return {t: int(rows(target, f"SELECT count(*) FROM tenantferry.{t}")[0][0]) for t in tables}


@pytest.fixture
def move(
    source_params: ConnectionParams,
    target_params: ConnectionParams,
    target_server: PostgresServer,
    source_owner: connection,
) -> Iterator[Move]:
    """A move that was copied and then left alone; beside it stands another tenant's row."""
    rows(source_owner, "CREATE TABLE parents (id bigint PRIMARY KEY)")
    rows(
        source_owner,
        "CREATE TABLE children (id serial PRIMARY KEY, parent bigint REFERENCES parents)",
    )
    rows(source_owner, "INSERT INTO parents VALUES (1), (2)")
    rows(source_owner, "INSERT INTO children (parent) VALUES (1), (2), (2)")
    tenant = Tenant(key=KEY, id=ID, source=Source(conn_id="source"), slot_timeout_seconds=30)
    move = Move(
        tenant=tenant,
        target_regions=frozenset(),
        source=source_params,
        target=target_params,
        router=Router([]),
        target_address=(target_params.host, target_params.port, target_params.database),
        probe=source_params,
        run_id="test",
    )
    prepare(move)
    backfill(move)
    with closing(open_connection(target_params, purpose="test", autocommit=True)) as target:
        rows(target, f"INSERT INTO public.parents (tenant_id, id) VALUES ('{OTHER_ID}', 1)")
    yield move
    target_server.psql(
        "-c", f"DROP OWNED BY {tenant.role} CASCADE", database=target_params.database
    )
    target_server.psql("-c", f"DROP ROLE {tenant.role}")


def run_script(server: PostgresServer, params: ConnectionParams, name: str) -> None:
    # As the migration role, which is no superuser.
    login = f"dbname={params.database} user={params.user} password={params.password}"
    server.psql(f"--set=tenant={KEY}", f"--file={SCRIPTS / name}", database=login)


def test_giving_up_leaves_no_slot_publication_row_or_record(
    move: Move,
    source: connection,
    target: connection,
    source_server: PostgresServer,
    target_server: PostgresServer,
) -> None:
    assert (
        len(rows(source, "SELECT 1 FROM pg_replication_slots WHERE database = current_database()"))
        == 1
    )

    for _ in range(2):
        run_script(source_server, move.source, "give_up_source.sql")
        run_script(target_server, move.target, "give_up_target.sql")

    assert (
        rows(source, "SELECT 1 FROM pg_replication_slots WHERE database = current_database()") == []
    )
    assert rows(source, "SELECT 1 FROM pg_publication") == []
    assert rows(target, "SELECT tenant_id::text FROM public.parents") == [(str(OTHER_ID),)]
    assert rows(target, "SELECT 1 FROM public.children") == []
    assert set(count_all(target).values()) == {0}
    assert (
        rows(target, f"SELECT 1 FROM pg_replication_origin WHERE roname = 'tenantferry_{KEY}'")
        == []
    )


def test_a_tenant_that_was_given_up_can_be_moved_again(
    move: Move,
    target: connection,
    source_server: PostgresServer,
    target_server: PostgresServer,
) -> None:
    run_script(source_server, move.source, "give_up_source.sql")
    run_script(target_server, move.target, "give_up_target.sql")

    prepare(move)
    backfill(move)

    assert rows(target, "SELECT count(*) FROM public.children") == [(3,)]
    assert read_stream(target, KEY) is not None


@pytest.mark.parametrize("phase", ["live", "cutting_over"])
def test_giving_up_keeps_the_rows_of_a_tenant_that_is_live(
    move: Move, target: connection, target_server: PostgresServer, phase: str
) -> None:
    rows(target, f"UPDATE tenantferry.tenants SET phase = '{phase}'")
    before = count_all(target)

    with pytest.raises(PermanentError, match="cannot be given up"):
        run_script(target_server, move.target, "give_up_target.sql")

    assert count_all(target) == before
    assert rows(target, "SELECT count(*) FROM public.parents") == [(3,)]
