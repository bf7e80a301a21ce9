"""A tenant, and tables that exist on both sides."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from uuid import UUID

import pytest
from psycopg2 import sql
from psycopg2.extensions import connection

from round_stage import Rounds
from tenantferry.backfill.finished import BackfillResult
from tenantferry.backfill.running import run_backfill
from tenantferry.connections import ConnectionParams
from tenantferry.control.registry import ensure_registered
from tenantferry.fleet import Source, Tenant
from tenantferry.schema.catalog import read_tables
from tenantferry.schema.publication import ensure_publication
from tenantferry.stream.catching_up import catch_up

ACME_ID = UUID("11111111-1111-1111-1111-111111111111")
OTHER_ID = UUID("22222222-2222-2222-2222-222222222222")

CreatePair = Callable[[str, str, str], None]
Backfill = Callable[..., BackfillResult]


@pytest.fixture
def tenant(source_params: ConnectionParams, target: connection) -> Tenant:
    """A registered tenant with small chunks."""
    acme = Tenant(
        key="acme",
        id=ACME_ID,
        source=Source(conn_id="acme"),
        chunk_rows=100,
        slot_timeout_seconds=20,
    )
    ensure_registered(
        target,
        tenant=acme.key,
        tenant_id=acme.id,
        source_identity=f"1/{source_params.database}",
        run_id=None,
    )
    return acme


@pytest.fixture
def create_pair(source_owner: connection, target: connection) -> CreatePair:
    """Create one table on both sides: name, columns, key columns (may be empty)."""

    def create(name: str, columns: str, key: str) -> None:
        table = sql.Identifier("public", name)
        made = sql.SQL("CREATE TABLE {} ({})")
        key_sql = sql.SQL(key)
        narrow: list[sql.Composable] = [sql.SQL(columns)]
        wide = [*narrow, sql.SQL("tenant_id uuid NOT NULL")]
        if key:
            narrow.append(sql.SQL("PRIMARY KEY ({})").format(key_sql))
            wide.append(sql.SQL("PRIMARY KEY (tenant_id, {})").format(key_sql))
        for session, parts in ((source_owner, narrow), (target, wide)):
            with session.cursor() as cursor:
                cursor.execute(made.format(table, sql.SQL(", ").join(parts)))

    return create


@pytest.fixture
def backfill(
    source_params: ConnectionParams,
    target_params: ConnectionParams,
    source: connection,
    tenant: Tenant,
) -> Backfill:
    """
    Run the tenant's backfill.

    Keyword arguments change the tenant; *instead* is called where a round would catch up.
    """

    def run(*, instead: Callable[[int], object] | None = None, **changes: object) -> BackfillResult:
        changed = tenant.model_copy(update=changes)
        tables = read_tables(source, changed)
        ensure_publication(source, changed, tables)
        return run_backfill(
            source_params,
            target_params,
            changed,
            tables,
            catch_up=instead or partial(catch_up, source_params, target_params, changed, tables),
            report=lambda _: None,
        )

    return run


@pytest.fixture
def rounds(
    *,
    source: connection,
    source_owner: connection,
    target: connection,
    source_params: ConnectionParams,
    target_params: ConnectionParams,
    tenant: Tenant,
    monkeypatch: pytest.MonkeyPatch,
) -> Rounds:
    """The tenant's backfill, one chunk per round, compared after each."""
    return Rounds(
        tenant,
        sessions=(source, source_owner, target),
        params=(source_params, target_params),
        monkeypatch=monkeypatch,
    )
