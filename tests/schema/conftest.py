"""A source with the sample schema, and a target prepared for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from psycopg2 import sql
from psycopg2.extensions import connection
from psycopg2.extensions import cursor as cursor_type

from tenantferry.connections import open_connection
from tenantferry.fleet import TableKind, Tenant
from tenantferry.local.postgres import PostgresServer
from tenantferry.schema.catalog import read_catalog
from tenantferry.schema.retrofit import RetrofitPlan, apply_retrofit, plan_retrofit
from tenantferry.schema.roles import ensure_tenant_role, read_role_settings
from tenantferry.schema.sequences import ensure_tenant_sequences

_SAMPLE = (Path(__file__).parent / "sample_schema.sql").read_text("utf-8")
_COUNTRIES = """
CREATE TABLE public.countries (code char(2) PRIMARY KEY, name text NOT NULL);
INSERT INTO public.countries VALUES ('de', 'Germany');
"""
_DIGITS = {"acme": "1", "globex": "2"}

Plan = Callable[[Tenant], RetrofitPlan]
Prepare = Callable[[Tenant], tuple[str, ...]]
SpeakingAs = Callable[[str], AbstractContextManager[cursor_type]]


def _make_tenant(key: str) -> Tenant:
    return Tenant.model_validate(
        {
            "key": key,
            "id": _DIGITS[key] * 32,
            "source": {"conn_id": "c"},
            "tables": {"public.countries": TableKind.SHARED, "public.flags": TableKind.SKIP},
            "app_roles": ["app_owner"],
        }
    )


@pytest.fixture
def acme() -> Tenant:
    """A tenant with one shared and one skipped table."""
    return _make_tenant("acme")


@pytest.fixture
def globex() -> Tenant:
    """Another tenant with the same schema."""
    return _make_tenant("globex")


@pytest.fixture
def sample(source_owner: connection) -> connection:
    """The application's session on a source with the sample schema."""
    with source_owner.cursor() as cursor:
        cursor.execute(_SAMPLE)
    return source_owner


@pytest.fixture
def plan(source: connection, target: connection) -> Plan:
    """Plan the retrofit of the source for a tenant."""

    def run(tenant: Tenant) -> RetrofitPlan:
        return plan_retrofit(read_catalog(source), read_catalog(target), tenant)

    return run


@pytest.fixture
def prepare(source: connection, target: connection, plan: Plan) -> Prepare:
    """Do what the preparation of a move does with the target's schema."""

    def run(tenant: Tenant) -> tuple[str, ...]:
        planned = plan(tenant)
        target.autocommit = False
        try:
            with target:
                statements = apply_retrofit(target, planned)
                ensure_tenant_role(target, tenant, settings=read_role_settings(source, tenant))
                ensure_tenant_sequences(source, target, tenant)
        finally:
            target.autocommit = True
        return statements

    return run


@pytest.fixture
def shared_tables(target: connection) -> None:
    """The target's reference data."""
    with target.cursor() as cursor:
        cursor.execute(_COUNTRIES)


@pytest.fixture
def prepared(
    sample: connection, shared_tables: None, prepare: Prepare, acme: Tenant, globex: Tenant
) -> None:
    """A target with two tenants of the sample schema."""
    prepare(acme)
    prepare(globex)


@dataclass(frozen=True)
class Pair:
    """A prepared source and target that many tests share, in transactions that roll back."""

    source: connection
    target: connection

    def change(self, side: connection, statement: str) -> None:
        """Change one side until the end of the test."""
        with side.cursor() as cursor:
            cursor.execute("SET LOCAL search_path = public")
            cursor.execute(statement)
            cursor.execute("SET LOCAL search_path = pg_catalog")

    def plan(self, tenant: Tenant) -> RetrofitPlan:
        """Plan the retrofit of the source as it is now."""
        return plan_retrofit(read_catalog(self.source), read_catalog(self.target), tenant)


@pytest.fixture(scope="module")
def shared_pair(
    source_server: PostgresServer, target_server: PostgresServer
) -> Iterator[tuple[connection, connection]]:
    """Databases of their own, for one module."""
    name = "shared_pair"
    opened = []
    for server in (source_server, target_server):
        server.psql("-c", f"CREATE DATABASE {name}")
        opened.append(open_connection(server.superuser.with_database(name), purpose="test"))
    source, target = opened
    with source, source.cursor() as cursor:
        cursor.execute("SET LOCAL search_path = public")
        cursor.execute(_SAMPLE)
    with target, target.cursor() as cursor:
        cursor.execute(_COUNTRIES)
        tenant = _make_tenant("acme")
        apply_retrofit(target, plan_retrofit(read_catalog(source), read_catalog(target), tenant))
    yield source, target
    for side, server in zip(opened, (source_server, target_server), strict=True):
        side.close()
        server.psql("-c", f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def pair(shared_pair: tuple[connection, connection]) -> Iterator[Pair]:
    """A source and a target that fit; what a test changes is rolled back."""
    yield Pair(*shared_pair)
    for side in shared_pair:
        side.rollback()


@pytest.fixture
def speaking_as(target: connection) -> SpeakingAs:
    """Give a cursor the rights and settings of a tenant's role, as after its login."""

    @contextmanager
    def run(key: str) -> Iterator[cursor_type]:
        with target.cursor() as cursor:
            role, schema = sql.Identifier(f"tenant_{key}"), sql.Identifier(f"t_{key}")
            cursor.execute(sql.SQL("SET ROLE {}; SET row_security = on").format(role))
            cursor.execute(sql.SQL("SET search_path = {}, public, billing").format(schema))
            try:
                yield cursor
            finally:
                cursor.execute("RESET ROLE; RESET row_security; RESET search_path")

    return run
