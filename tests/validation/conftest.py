"""A tenant that is prepared and copied with the real parts, and a way to stream it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from uuid import UUID

import pytest
from psycopg2.extensions import connection

from tenantferry.backfill.chunk import TEXT_SETTINGS
from tenantferry.backfill.running import run_backfill
from tenantferry.connections import ConnectionParams, open_connection
from tenantferry.control.registry import ensure_registered
from tenantferry.control.validations import Difference
from tenantferry.fleet import Source, Tenant
from tenantferry.schema.catalog import read_catalog, read_tables
from tenantferry.schema.publication import ensure_publication
from tenantferry.schema.retrofit import apply_retrofit, plan_retrofit
from tenantferry.schema.roles import ensure_tenant_role
from tenantferry.stream.running import run_stream
from tenantferry.validation.alignment import (
    PROBE_SETTINGS,
    View,
    export_snapshot,
    open_lane,
)
from tenantferry.validation.running import (
    ValidationResult,
    compare_tenant,
    compare_view,
    load_chunks,
    record_comparison,
)

ACME_ID = UUID("11111111-1111-1111-1111-111111111111")
OTHER_ID = UUID("22222222-2222-2222-2222-222222222222")


class Copied:
    """Both sides of one tenant."""

    def __init__(
        self,
        tenant: Tenant,
        *,
        source: connection,
        owner: connection,
        target: connection,
        source_params: ConnectionParams,
        target_params: ConnectionParams,
    ) -> None:
        self.tenant = tenant
        self.source, self.owner, self.target = source, owner, target
        self.source_params, self.target_params = source_params, target_params

    def prepare(self) -> None:
        """Retrofit the target, make the tenant's role, publish, and copy."""
        with self.target.cursor() as cursor:
            cursor.execute("BEGIN")
            plan = plan_retrofit(read_catalog(self.source), read_catalog(self.target), self.tenant)
            ensure_tenant_role(self.target, self.tenant)
            apply_retrofit(self.target, plan)
            cursor.execute("COMMIT")
        tables = read_tables(self.source, self.tenant)
        ensure_publication(self.source, self.tenant, tables)
        run_backfill(
            self.source_params,
            self.target_params,
            self.tenant,
            tables,
            catch_up=lambda _: None,  # one round is enough
            report=lambda _: None,
        )

    def compare(self) -> tuple[tuple[Difference, ...], int]:
        """Compare idle sides as they are now, without a stream."""
        tables = read_tables(self.source, self.tenant)
        with (
            ExitStack() as sessions,
            closing(
                open_connection(self.source_params, purpose="test", settings=TEXT_SETTINGS)
            ) as source,
            closing(
                open_connection(
                    self.target_params,
                    purpose="test",
                    settings={**TEXT_SETTINGS, **PROBE_SETTINGS},
                )
            ) as probe,
        ):
            ours, theirs = export_snapshot(source, 0), export_snapshot(probe, 0)
            lanes = tuple(
                open_lane(
                    sessions, self.source_params, self.target_params, self.tenant, ours, theirs
                )
                for _ in range(2)
            )
            chunks = load_chunks(self.source, self.target, self.tenant, tables)
            _, differences, mismatches = compare_view(
                View(0, lanes, probe), self.tenant, tables, chunks
            )
        return differences, mismatches

    def validate(self) -> ValidationResult:
        """Run the whole validation."""
        tables = read_tables(self.source, self.tenant)
        found = compare_tenant(self.source_params, self.target_params, self.tenant, tables)
        with self.target.cursor() as cursor:
            cursor.execute("BEGIN")
            result = record_comparison(self.target, self.tenant, found, run_id="run")
            cursor.execute("COMMIT")
        return result

    @contextmanager
    def streaming(self) -> Iterator[None]:
        """Run the stream beside the block."""
        stop = threading.Event()
        failures: list[BaseException] = []
        tables = read_tables(self.source, self.tenant)

        def stream() -> None:
            try:
                run_stream(self.source_params, self.target_params, self.tenant, tables, stop=stop)
            except BaseException as error:  # noqa: BLE001 - the test looks at it
                failures.append(error)

        thread = threading.Thread(target=stream, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(30)
        assert failures == []


Prepare = Callable[..., Copied]


@pytest.fixture
def copied(
    *,
    source_params: ConnectionParams,
    target_params: ConnectionParams,
    source: connection,
    source_owner: connection,
    target: connection,
) -> Prepare:
    """Prepare and copy a tenant whose source has these statements run before."""

    def prepare(*statements: str) -> Copied:
        tenant = Tenant(
            key="acme",
            id=ACME_ID,
            source=Source(conn_id="acme"),
            chunk_rows=100,
            slot_timeout_seconds=20,
        )
        ensure_registered(
            target,
            tenant=tenant.key,
            tenant_id=tenant.id,
            source_identity=f"1/{source_params.database}",
            run_id=None,
        )
        with source_owner.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
        made = Copied(
            tenant,
            source=source,
            owner=source_owner,
            target=target,
            source_params=source_params,
            target_params=target_params,
        )
        made.prepare()
        return made

    return prepare
