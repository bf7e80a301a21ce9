"""Tables that consist of others are copied in many rounds, with writes between and within them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

PARTITIONED = """
    CREATE TABLE events (id bigint, day integer, note text, PRIMARY KEY (id, day))
        PARTITION BY RANGE (day);
    CREATE TABLE events_1 PARTITION OF events FOR VALUES FROM (0) TO (10);
    CREATE TABLE events_2 PARTITION OF events DEFAULT;
    ALTER TABLE events_2 ALTER COLUMN note SET STORAGE EXTERNAL"""
INHERITED = """
    CREATE TABLE places (id integer PRIMARY KEY, name text);
    CREATE TABLE cities (people integer, PRIMARY KEY (id)) INHERITS (places);
    ALTER TABLE cities ALTER COLUMN name SET STORAGE EXTERNAL"""


def test_trees_of_tables_arrive_in_many_rounds(make_trip: Callable[..., Any]) -> None:
    # A worker begins no second chunk in a round.
    trip = make_trip(round_budget_seconds=0.001, backfill_workers=1)
    trip.run(
        PARTITIONED,
        INHERITED,
        "INSERT INTO events SELECT n, n % 20, repeat(md5(n::text), 100)"
        " FROM generate_series(1, 350) AS n",
        "INSERT INTO places SELECT n, 'place' || n FROM generate_series(1, 350) AS n",
        "INSERT INTO cities SELECT n, repeat(md5(n::text), 100), n"
        " FROM generate_series(1, 350) AS n",
    )

    trip.travel(
        "INSERT INTO events VALUES (1000 + {n}, {n} % 20, 'new')",
        # Rows cross the ranges of chunks, and partitions; long values are not sent with them.
        "UPDATE events SET id = 351 - id WHERE id IN (1 + {n} % 350)"
        " AND NOT EXISTS (SELECT FROM events AS e WHERE e.id = 351 - (1 + {n} % 350))",
        "UPDATE events SET day = 19 - day WHERE id = {n} % 350",
        "DELETE FROM events WHERE id = {n} * 3 % 350",
        "UPDATE places SET name = left(name, 40) || {n} WHERE id = {n} % 350",
        "UPDATE cities SET id = 1000 + id WHERE id = {n} * 5 % 350",
        "DELETE FROM places WHERE id = {n} * 7 % 350",
        rounds=5,
    )
