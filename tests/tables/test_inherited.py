"""Tables that inherit from one another still do in the target, each with its own rows."""

from __future__ import annotations

from typing import Any

from tenantferry.moves.erasing import erase_rows
from tenantferry.schema.catalog import read_tables
from tenantferry.validation.references import find_orphans

FAMILY = """
    CREATE TABLE places (
        id integer PRIMARY KEY, name text NOT NULL, CONSTRAINT named CHECK (name <> ''));
    CREATE TABLE sights (height integer, PRIMARY KEY (id)) INHERITS (places);
    CREATE TABLE cities (people integer, PRIMARY KEY (id)) INHERITS (places);
    CREATE TABLE capitals (country text, PRIMARY KEY (id)) INHERITS (cities, sights);
    CREATE TABLE visits (
        id serial PRIMARY KEY, place integer REFERENCES places ON DELETE CASCADE, day date)"""
# The same ids everywhere: only the table tells these rows apart.
ROWS = (
    "INSERT INTO places SELECT n, 'place ' || n FROM generate_series(1, 150) AS n",
    "INSERT INTO cities SELECT n, 'city ' || n, n FROM generate_series(1, 150) AS n",
    "INSERT INTO sights SELECT n, 'sight ' || n, n FROM generate_series(1, 10) AS n",
    "INSERT INTO capitals SELECT n, 'capital ' || n, n, n, 'x' FROM generate_series(1, 120) AS n",
    "INSERT INTO visits (place) SELECT 1 + n % 100 FROM generate_series(1, 200) AS n",
)
WRITES = (
    "INSERT INTO places VALUES (1000 + {n}, 'new place')",
    "INSERT INTO capitals VALUES (1000 + {n}, 'new capital', 1, 2, 'y')",
    # Of every table of the family.
    "UPDATE places SET name = name || {n} WHERE id = {n} * 2",
    "UPDATE cities SET people = people + 1 WHERE id = {n}",
    "DELETE FROM ONLY places WHERE id = 101 + {n} % 49",
    "DELETE FROM cities WHERE id = {n} * 3 + 1",
    "UPDATE capitals SET id = 5000 + id WHERE id = {n} * 5",
)


def test_a_family_of_tables_arrives_each_with_its_own_rows(trip: Any) -> None:
    trip.run(FAMILY, *ROWS)

    trip.travel(
        *WRITES,
        finally_run=(
            "UPDATE places SET name = 'all'",
            "TRUNCATE ONLY cities",
            "DELETE FROM sights",
        ),
    )


def test_truncate_of_a_parent_empties_its_children(trip: Any) -> None:
    trip.run(FAMILY, *ROWS)

    trip.travel(finally_run=("TRUNCATE cities", "INSERT INTO cities VALUES (7, 'again', 1)"))


def test_a_row_that_refers_to_a_row_of_a_child_is_an_orphan(trip: Any) -> None:
    """A foreign key holds for the rows of the very table that it names."""
    trip.run(FAMILY)
    trip.prepare()
    tenant = trip.move.tenant
    tables = read_tables(trip.source, tenant)
    with trip.target.cursor() as cursor:
        cursor.execute("BEGIN; SET LOCAL session_replication_role = replica")
        tenant_id = (str(tenant.id),)
        cursor.execute("INSERT INTO public.cities VALUES (7, 'child', 1, %s)", tenant_id)
        cursor.execute("INSERT INTO public.visits VALUES (1, 7, NULL, %s)", tenant_id)

        ((count, (found,)),) = find_orphans(trip.target, tenant, tables)

        cursor.execute("ROLLBACK")
    assert (count, found.table, found.row_key) == (1, "visits", "id=1")


def test_a_family_of_tables_is_erased_one_by_one(trip: Any) -> None:
    trip.run(FAMILY, *ROWS)
    trip.prepare()
    trip.backfill()

    erased = erase_rows(trip.move.target, trip.move.tenant)

    assert erased == (630, 5)
