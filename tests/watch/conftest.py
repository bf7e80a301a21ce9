"""A fleet of one tenant to watch: declared, or also on its way with a running stream."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from psycopg2.extensions import connection

from move_fixtures import move, pooler, stage
from tenantferry.connections import ConnectionParams
from tenantferry.errors import PermanentError
from tenantferry.fleet import Fleet, Router, RouterInstance, Source, Target, Tenant
from tenantferry.fleet.operation import Watch
from tenantferry.moves.move import Move
from tenantferry.watch.watched import Watched

__all__ = ["move", "pooler", "stage"]

ACME_ID = UUID("11111111-1111-1111-1111-111111111111")

Declare = Callable[..., Watched]
Run = Callable[..., list[tuple[Any, ...]]]


@pytest.fixture
def declare(source_params: ConnectionParams, target_params: ConnectionParams) -> Declare:
    """Declare a fleet of one tenant, and say how to watch it."""

    def make(
        *,
        sources: dict[str, ConnectionParams] | None = None,
        target: ConnectionParams = target_params,
        move: Move | None = None,
        unusable: dict[str, str] | None = None,
        **settings: Any,
    ) -> Watched:
        reached = {"acme": source_params} if sources is None else sources
        tenants = {
            key: Tenant(
                key=key,
                id=UUID(int=ACME_ID.int + number),
                source=Source(conn_id=f"source_{number}", database=params.database),
            )
            for number, (key, params) in enumerate(reached.items())
        }

        def move_of(tenant: Tenant) -> Move:
            if move is None:
                raise PermanentError(f'tenant "{tenant.key}" has no router in this test')
            return move

        return Watched(
            fleet=Fleet(
                target=Target(conn_id="target"),
                routers={
                    "main": Router(
                        instances=[
                            RouterInstance(admin_conn_id="x", aliases_file=Path("aliases.ini"))
                        ]
                    )
                },
                tenants=tenants,
                watch=Watch(**settings),
            ),
            target=target,
            source_of=lambda tenant: reached[tenant.key],
            move_of=move_of,
            unusable=unusable or {},
        )

    return make


@pytest.fixture
def run(target: connection) -> Run:
    """Run a statement in the target."""

    def run(statement: str, *values: Any) -> list[tuple[Any, ...]]:
        with target.cursor() as cursor:
            cursor.execute(statement, values or None)
            return cursor.fetchall() if cursor.description else []

    return run


@pytest.fixture
def register(run: Run, source: connection) -> Callable[..., None]:
    """Register the tenant as if it had come to a phase."""

    def register(phase: str, *, tenant: str = "acme", seconds: float = 3600) -> None:
        with source.cursor() as cursor:
            cursor.execute(
                "SELECT system_identifier::text || '/' || current_database()"
                " FROM pg_control_system()"
            )
            [(identity,)] = cursor.fetchall()
        run(
            "INSERT INTO tenantferry.tenants"
            " (tenant, tenant_id, phase, source_identity, changed_at)"
            " VALUES (%s, gen_random_uuid(), %s, %s,"
            " clock_timestamp() - make_interval(secs => %s))",
            tenant, phase, identity, seconds,
        )  # fmt: skip

    return register
