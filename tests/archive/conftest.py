"""A source worth keeping, and a server on which its dump may be restored."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from psycopg2.extensions import connection

from tenantferry.connections import ConnectionParams
from tenantferry.local.postgres import PostgresServer

SCHEMA = """
CREATE TYPE public.colour AS ENUM ('red', 'green');
CREATE TABLE public.parents (id bigserial PRIMARY KEY, colour public.colour, note text);
CREATE TABLE public.children (
    id int PRIMARY KEY, parent bigint NOT NULL REFERENCES public.parents, amount numeric);
CREATE TABLE public."odd %name" (at timestamptz NOT NULL, what jsonb) PARTITION BY RANGE (at);
CREATE TABLE public.odd_2026 PARTITION OF public."odd %name"
    FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
CREATE VIEW public.red AS SELECT * FROM public.parents WHERE colour = 'red';
CREATE SCHEMA tenantferry;
CREATE TABLE tenantferry.reverse_positions (grace bigint);
INSERT INTO tenantferry.reverse_positions VALUES (1);
INSERT INTO public.parents (colour, note)
    SELECT 'green', repeat(md5(n::text), 20) FROM generate_series(1, 3000) AS n;
INSERT INTO public.children SELECT n, n, n / 7.0 FROM generate_series(1, 500) AS n;
INSERT INTO public."odd %name" SELECT '2026-03-01', '{}' FROM generate_series(1, 5);
"""


@pytest.fixture
def kept(source_params: ConnectionParams, source_owner: connection) -> ConnectionParams:
    """The source of a tenant, as the migration role sees it."""
    with source_owner.cursor() as cursor:
        cursor.execute(SCHEMA.replace("%", "%%"), ())
    return source_params


@pytest.fixture
def restore_server(
    source_server: PostgresServer, source_params: ConnectionParams
) -> Iterator[ConnectionParams]:
    """Where the migration role may create a database; of the source's version."""
    source_server.psql("-c", "ALTER ROLE tenantferry CREATEDB")
    yield source_params.with_database("postgres")
    source_server.psql("-c", "ALTER ROLE tenantferry NOCREATEDB")


@pytest.fixture(autouse=True)
def _programs(source_server: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the programs be found where the test's own server comes from."""
    folder = source_server.installation.bin_directory
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
