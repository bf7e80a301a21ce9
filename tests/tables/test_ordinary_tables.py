"""Ordinary tables of every shape arrive exactly, while a client keeps writing."""

from __future__ import annotations

from typing import Any

import pytest

from tenantferry.schema.findings import Verdict

# Columns, and how the key of row k is made.
KEYS = {
    "integers": ("id integer PRIMARY KEY", "{k}"),
    "bigints": ("id bigint PRIMARY KEY", "{k} * 1000000007::bigint"),
    "uuids": ("id uuid PRIMARY KEY", "md5(({k})::text)::uuid"),
    "texts": ("id text PRIMARY KEY", "chr(65 + {k} % 57) || {k}"),
    "chars": ("id char(9) PRIMARY KEY", "chr(65 + {k} % 57) || {k}"),
    "locales": ('id text COLLATE "C.utf8" PRIMARY KEY', "chr(192 + {k} % 57) || {k}"),
    "numerics": ("id numeric PRIMARY KEY", "CASE {k} WHEN 1 THEN 'NaN' ELSE {k} / 7.0 END"),
    "composites": ("a integer, id text, PRIMARY KEY (id, a)", "{k} % 3, 'x' || {k}"),
    "sparse": ("id bigint PRIMARY KEY", "({k})::bigint * {k} * {k} * 1003"),
    "skewed": (
        "a integer, id bigint, PRIMARY KEY (a, id)",
        "CASE WHEN {k} % 50 = 0 THEN {k} ELSE 1 END, {k}",
    ),
    "times": (
        "id timestamptz PRIMARY KEY",
        "CASE {k} WHEN 1 THEN 'infinity' WHEN 2 THEN '-infinity'"
        " ELSE timestamptz '0044-03-15 BC' + {k} * interval '1 year' END",
    ),
    "enums": (
        "id mood, n integer, PRIMARY KEY (id, n)",
        "(CASE {k} % 2 WHEN 0 THEN 'sad' ELSE 'ok' END)::mood, {k}",
    ),
    "folded": ("id citext PRIMARY KEY", "chr(65 + {k} % 26) || {k}"),
    "domains": ("id positive PRIMARY KEY", "{k}"),
    "ranges": ("id int4range PRIMARY KEY", "int4range({k}, {k} + 5)"),
    "arrays": ("id integer[] PRIMARY KEY", "ARRAY[{k} % 10, {k}]"),
}


def test_tables_arrive_whatever_their_key_is(trip: Any) -> None:
    trip.source_server.psql(
        "-c", "CREATE EXTENSION citext SCHEMA public", database=trip.move.source.database
    )
    trip.run(
        "CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE DOMAIN positive AS int CHECK (VALUE > 0)"
    )
    writes = []
    for name, (columns, key) in KEYS.items():
        trip.run(
            f"CREATE TABLE {name} ({columns}, note text, changed integer)",
            f"INSERT INTO {name} SELECT {key.replace('{k}', 'k')}, 'old' || k, 0"
            " FROM generate_series(1, 230) AS k",
        )
        writes += [
            f"INSERT INTO {name} VALUES ({key.replace('{k}', '(1000 + {n})')}, 'new' || {{n}}, 0)",
            f"UPDATE {name} SET changed = {{n}} WHERE note LIKE 'old%' || {{n}}",
            f"DELETE FROM {name} WHERE note IN ('old' || ({{n}} * 3), 'new' || ({{n}} - 4))",
        ]

    result = trip.travel(*writes)

    assert result.chunks >= 3 * len(KEYS)


def test_tables_without_a_key_arrive_with_their_duplicates(trip: Any) -> None:
    trip.run(
        "CREATE TABLE log (line text, weight numeric, extra jsonb, place point,"
        " twice numeric GENERATED ALWAYS AS (weight * 2) STORED)",
        "CREATE TABLE nothing ()",
        "ALTER TABLE log REPLICA IDENTITY FULL",
        "ALTER TABLE nothing REPLICA IDENTITY FULL",
        "INSERT INTO log SELECT 'line' || n % 7, n % 5, '{\"a\": 1.0}', '(1,2)'"
        " FROM generate_series(1, 300) AS n",
        "INSERT INTO log VALUES (NULL, 'NaN'), (NULL, 'NaN'), ('', NULL)",
        "INSERT INTO nothing SELECT FROM generate_series(1, 20)",
    )
    one = "(SELECT min(ctid) FROM {} WHERE {})"

    trip.travel(
        "INSERT INTO log VALUES ('line1', 1, NULL), ('line1', 1.00, NULL), ('line1', 1, NULL)",
        f"DELETE FROM log WHERE ctid = {one.format('log', 'weight = {n} % 5')}",
        f"UPDATE log SET extra = '[{{n}}]' WHERE ctid = {one.format('log', 'line IS NULL')}",
        "INSERT INTO nothing DEFAULT VALUES",
        "INSERT INTO nothing DEFAULT VALUES",
        f"DELETE FROM nothing WHERE ctid = {one.format('nothing', 'true')}",
        finally_run=("UPDATE log SET weight = 7 WHERE line = 'line3'",),
    )


def test_columns_that_the_server_fills_in_arrive_as_they_are(trip: Any) -> None:
    trip.run(
        "CREATE TABLE items (gone text, id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,"
        " number serial, label text DEFAULT 'x', size integer,"
        " area integer GENERATED ALWAYS AS (size * size) STORED,"
        " shout text GENERATED ALWAYS AS (upper(label)) STORED)",
        "ALTER TABLE items DROP COLUMN gone",
        "INSERT INTO items (size) SELECT n FROM generate_series(1, 250) AS n",
        "CREATE TABLE empty (id integer PRIMARY KEY)",
    )

    trip.travel(
        "INSERT INTO items (label, size) VALUES ('l' || {n}, {n})",
        "UPDATE items SET size = size + 1, label = NULL WHERE size % 10 = {n} % 10",
        "DELETE FROM items WHERE id = {n} * 7",
        finally_run=("INSERT INTO items (id, size) OVERRIDING SYSTEM VALUE VALUES (-5, 1)",),
    )


LONG = "x" * 60
NAMES = {
    "mixed case": "Mixed Case",
    "quotes": "a \"quoted\" 'name'",
    "percent": "100% %s %(x)s {n!r}",
    "unicode": "größe 日本 💡",
    "keyword": "select",
    "dots": "a.b.c",
    "backslash": "back\\slash",
    "63 bytes": LONG + "abc",
    "63 bytes and another end": LONG + "abd",
    "63 bytes of unicode": "ü" * 31 + "x",
}


def test_names_of_any_kind_arrive(trip: Any) -> None:
    writes, finals = [], []
    for number, name in enumerate(NAMES.values()):
        table, key, value = (_quote(part) for part in (name, name, f"v {name[:25]}"))
        index, check = _quote(f"{number}{name}"), _quote(f"{name[:-3]}{number:03}")
        trip.run(
            f"CREATE TABLE {table} ({key} integer PRIMARY KEY, {value} text,"
            f" CONSTRAINT {check} CHECK ({value} <> '%'))",
            f"CREATE INDEX {index} ON {table} ({value})",
            f"INSERT INTO {table} SELECT n, 'old %s ' || n FROM generate_series(1, 120) AS n",
        )
        writes += [
            f"INSERT INTO {table} VALUES (1000 + {{n}}, 'new')",
            f"UPDATE {table} SET {value} = 'changed' WHERE {key} = {{n}}",
            f"DELETE FROM {table} WHERE {key} = {{n}} * 3",
        ]
        finals.append(f"TRUNCATE {table}")

    trip.travel(*writes, finally_run=finals[::2])


def test_schemas_and_types_with_names_of_63_bytes_arrive(trip: Any) -> None:
    writes = []
    for name in (LONG + "abc", LONG + "abd"):
        trip.run(
            f"CREATE SCHEMA {name}",
            f"CREATE TYPE {name}.{name} AS ENUM ('sad', 'ok', '{name}')",
            f"CREATE TABLE {name}.items (id integer, {name} {name}.{name}, note text,"
            f" PRIMARY KEY ({name}, id))",
            f"INSERT INTO {name}.items SELECT n, (enum_range(NULL::{name}.{name}))[1 + n % 3]"
            " FROM generate_series(1, 250) AS n",
        )
        writes += [
            f"INSERT INTO {name}.items VALUES (1000 + {{n}}, 'ok', '{name}')",
            f"UPDATE {name}.items SET {name} = '{name}' WHERE id = {{n}}",
            f"DELETE FROM {name}.items WHERE id = {{n}} * 3",
        ]

    result = trip.travel(*writes)

    assert result.chunks >= 4


def test_what_is_left_of_an_attempt_is_deleted_whatever_its_table_is_called(trip: Any) -> None:
    for name in NAMES.values():
        trip.run(
            f"CREATE TABLE {_quote(name)} (id integer PRIMARY KEY)",
            f"INSERT INTO {_quote(name)} SELECT generate_series(1, 3)",
        )
    trip.prepare()
    trip.backfill()
    with trip.target.cursor() as cursor:
        cursor.execute("UPDATE tenantferry.streams SET copy_again = true")

    trip.backfill()

    trip.compare()


def test_derived_names_of_long_names_stay_apart(trip: Any) -> None:
    columns = ", ".join(f"a{n} integer, b{n} integer" for n in range(3))
    keys = ", ".join(
        f"CONSTRAINT {LONG}{n} FOREIGN KEY (a{n}, b{n}) REFERENCES pairs (a, b) MATCH FULL"
        for n in range(3)
    )
    trip.run(
        "CREATE TABLE pairs (a integer, b integer, PRIMARY KEY (a, b))",
        f"CREATE TABLE uses (id integer PRIMARY KEY, {columns}, {keys})",
        "INSERT INTO pairs VALUES (1, 2)",
        "INSERT INTO uses VALUES (1, 1, 2, 1, 2, NULL, NULL)",
    )

    trip.travel(finally_run=("UPDATE uses SET a2 = 1, b2 = 2, a1 = NULL, b1 = NULL",))


def test_a_foreign_key_between_columns_that_sort_differently_arrives(trip: Any) -> None:
    trip.run(
        'CREATE TABLE words (id text COLLATE "C" PRIMARY KEY)',
        'CREATE TABLE uses (id integer PRIMARY KEY, word text COLLATE "POSIX" REFERENCES words)',
        "INSERT INTO words VALUES ('a'), ('b')",
        "INSERT INTO uses VALUES (1, 'a'), (2, NULL)",
    )

    trip.travel(finally_run=("UPDATE uses SET word = 'b' WHERE id = 1",))


def test_large_objects_are_found_and_it_is_said_what_to_do(trip: Any) -> None:
    trip.run("CREATE TABLE items (id integer PRIMARY KEY)", "SELECT lo_create(0), lo_create(0)")

    (found,) = trip.find(Verdict.ERROR)

    assert found.detail.startswith("There are 2 large objects")
    assert "bytea" in found.hint
    with pytest.raises(AssertionError):
        trip.prepare()


def _quote(name: str) -> str:
    doubled = name.replace('"', '""')
    return f'"{doubled}"'
