"""Tables that only the newest version of a source can have."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tenantferry.local.postgres import PostgresServer
from tenantferry.schema.catalog import read_catalog
from tenantferry.schema.findings import Verdict
from tenantferry.schema.retrofit import plan_retrofit


@pytest.fixture
def source_server(newest_source_server: PostgresServer) -> PostgresServer:
    """Sources of the newest version."""
    if newest_source_server.installation.major < 18:
        pytest.skip("needs PostgreSQL 18")
    return newest_source_server


def test_virtual_and_stored_generated_columns_arrive(trip: Any) -> None:
    trip.run(
        "CREATE TABLE items (id integer PRIMARY KEY, size integer, name text,"
        " area integer GENERATED ALWAYS AS (size * size) VIRTUAL,"
        " shout text GENERATED ALWAYS AS (upper(name)) STORED)",
        "INSERT INTO items SELECT n, n, 'item ' || n FROM generate_series(1, 250) AS n",
    )

    trip.travel(
        "INSERT INTO items VALUES (1000 + {n}, {n}, 'new')",
        "UPDATE items SET size = size + 1, name = name || '!' WHERE id = {n} * 2",
        "DELETE FROM items WHERE id = {n} * 3",
    )

    with trip.target.cursor() as cursor:
        cursor.execute(
            "SELECT string_agg(attgenerated, '' ORDER BY attnum) FROM pg_attribute"
            " WHERE attrelid = 'public.items'::regclass AND attnum > 0"
        )
        assert cursor.fetchone() == ("vs",)


def test_a_partitioned_table_with_an_identity_column_arrives(trip: Any) -> None:
    trip.run(
        "CREATE TABLE items (id bigint GENERATED ALWAYS AS IDENTITY, day integer NOT NULL,"
        " twice integer GENERATED ALWAYS AS (day * 2) VIRTUAL, PRIMARY KEY (id, day))"
        " PARTITION BY RANGE (day);"
        " CREATE TABLE items_1 PARTITION OF items FOR VALUES FROM (0) TO (5);"
        " CREATE TABLE items_2 PARTITION OF items DEFAULT",
        "INSERT INTO items (day) SELECT n % 10 FROM generate_series(1, 250) AS n",
    )

    trip.travel(
        "INSERT INTO items (day) VALUES ({n} % 10)",
        "UPDATE items SET day = 9 - day WHERE id = {n} * 2",
        "DELETE FROM items WHERE id = {n} * 3",
    )


def test_constraints_that_are_not_enforced_arrive_so(trip: Any) -> None:
    trip.run(
        "CREATE TABLE owners (id integer PRIMARY KEY)",
        "CREATE TABLE items (id integer PRIMARY KEY, owner integer REFERENCES owners NOT ENFORCED,"
        " CONSTRAINT small CHECK (id < 100) NOT ENFORCED)",
        "INSERT INTO items SELECT n, n FROM generate_series(1, 250) AS n",
    )

    trip.travel(finally_run=("INSERT INTO items VALUES (1000, -1)",))

    with trip.target.cursor() as cursor:
        cursor.execute(
            "SELECT conname, conenforced FROM pg_constraint"
            " WHERE conrelid = 'public.items'::regclass AND contype IN ('c', 'f')"
            " ORDER BY conname"
        )
        assert cursor.fetchall() == [("items_owner_fkey", False), ("small", False)]


REFUSED = {
    "identity full with a stored column": (
        "CREATE TABLE items (a integer, b integer GENERATED ALWAYS AS (a) STORED);"
        " ALTER TABLE items REPLICA IDENTITY FULL",
        "replica identity",
    ),
    "identity full with a virtual column": (
        "CREATE TABLE items (a integer, b integer GENERATED ALWAYS AS (a) VIRTUAL);"
        " ALTER TABLE items REPLICA IDENTITY FULL",
        "replica identity",
    ),
    "key with a generated column": (
        "CREATE TABLE items (a integer, b integer GENERATED ALWAYS AS (a) STORED,"
        " PRIMARY KEY (a, b))",
        "replica identity",
    ),
    "partition generated otherwise": (
        "CREATE TABLE items (a integer PRIMARY KEY, b integer GENERATED ALWAYS AS (a) STORED)"
        " PARTITION BY LIST (a);"
        " CREATE TABLE items_1 (a integer NOT NULL, b integer GENERATED ALWAYS AS (a + 1) STORED);"
        " ALTER TABLE items ATTACH PARTITION items_1 FOR VALUES IN (1)",
        "partition",
    ),
    "never validated NOT NULL": (
        "CREATE TABLE items (a integer PRIMARY KEY, b integer); INSERT INTO items VALUES (1);"
        " ALTER TABLE items ADD CONSTRAINT there NOT NULL b NOT VALID",
        "check",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_move_is_refused_with_what_to_do(trip: Any, kind: str) -> None:
    statements, check = REFUSED[kind]
    trip.run(statements)

    (found,) = trip.find(Verdict.ERROR)

    assert (found.check, found.subject) == (check, "public.items")
    assert found.hint


def test_an_older_target_does_not_know_what_is_newer(trip: Any) -> None:
    trip.run(
        "CREATE TABLE items (id integer PRIMARY KEY,"
        " b integer GENERATED ALWAYS AS (id) VIRTUAL, CHECK (b > 0) NOT ENFORCED,"
        " c integer REFERENCES items NOT ENFORCED)"
    )
    older = replace(read_catalog(trip.target), version=170000)

    plan = plan_retrofit(read_catalog(trip.source), older, trip.move.tenant)

    assert [(f.check, f.subject) for f in plan.blockers] == [("version", "public.items")] * 3
