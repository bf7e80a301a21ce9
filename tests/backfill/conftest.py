"""A tenant, and tables that exist on both sides."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

import pytest
from psycopg2.extensions import connection

from tenantferry.backfill.finished import BackfillResult
from tenantferry.backfill.running import run_backfill
from tenantferry.connections import ConnectionParams
from tenantferry.control.registry import ensure_registered
from tenantferry.fleet import Source, Tenant
from tenantferry.schema.catalog import read_tables

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
        narrow = f", PRIMARY KEY ({key})" if key else ""
        wide = f", PRIMARY KEY (tenant_id, {key})" if key else ""
        with source_owner.cursor() as cursor:
            cursor.execute(f"CREATE TABLE public.{name} ({columns}{narrow})")
        with target.cursor() as cursor:
            cursor.execute(f"CREATE TABLE public.{name} ({columns}, tenant_id uuid NOT NULL{wide})")

    return create


@pytest.fixture
def backfill(
    source_params: ConnectionParams,
    target_params: ConnectionParams,
    source: connection,
    tenant: Tenant,
) -> Backfill:
    """Run the tenant's backfill; keyword arguments change the tenant."""

    def run(**changes: object) -> BackfillResult:
        changed = tenant.model_copy(update=changes)
        tables = read_tables(source, changed)
        return run_backfill(source_params, target_params, changed, tables, report=lambda _: None)

    return run
