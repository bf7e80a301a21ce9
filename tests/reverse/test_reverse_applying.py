"""What a live tenant's clients do in the target happens to its source, and to no other."""

from __future__ import annotations

from typing import Any

import pytest

from reverse_stage import wait_until
from tenantferry.fleet import TableKind
from tenantferry.stream.pgoutput import Message, decode


def test_reverse_applies_inserts_updates_and_deletes_to_each_tenants_own_source(way: Any) -> None:
    way.table("items", "id integer, name text")
    way.ensure()
    way.go_live()

    with way.follow() as following:
        way["acme"].write(
            "INSERT INTO items SELECT i, 'acme ' || i FROM generate_series(1, 50) AS i",
            "UPDATE items SET name = NULL WHERE id % 3 = 0",
            "DELETE FROM items WHERE id % 5 = 0",
        )
        way["globex"].write("INSERT INTO items VALUES (1, 'globex'), (2, 'globex')")
        following.catch_up()

    assert way["acme"].rows("items") == way["acme"].target_rows("items")
    assert len(way["acme"].rows("items")) == 40
    assert way["globex"].rows("items") == ["(1,globex)", "(2,globex)"]


# More than TOAST keeps inline, and not compressible.
LONG = "(SELECT string_agg(md5(i::text), '') FROM generate_series(1, 200) AS i)"


def test_reverse_keeps_unchanged_toast_values_gotcha_3(way: Any) -> None:
    way.table("docs", "id integer, body text, note text")
    way.ensure()
    way.go_live("acme")
    acme = way["acme"]

    with way.follow() as following:
        acme.write(f"INSERT INTO docs SELECT i, {LONG} || i, 'a' FROM generate_series(1, 3) AS i")
        following.catch_up("acme")
        acme.write(
            "UPDATE docs SET note = 'b' WHERE id = 1",
            "UPDATE docs SET note = 'c', id = 12 WHERE id = 2",
            f"INSERT INTO docs VALUES (4, {LONG}, 'x'); UPDATE docs SET note = 'y' WHERE id = 4",
            f"UPDATE docs SET body = {LONG} || 'new' WHERE id = 3;"
            " UPDATE docs SET note = 'z' WHERE id = 3; UPDATE docs SET id = 13 WHERE id = 3",
        )
        following.catch_up("acme")

    assert acme.rows("docs") == acme.target_rows("docs")
    assert len(acme.rows("docs")) == 4


SWAPS = {
    "unique": (
        "CREATE UNIQUE INDEX places_slot ON places (slot)",
        "CREATE UNIQUE INDEX places_slot ON places (tenant_id, slot)",
    ),
    "deferrable": (
        "ALTER TABLE places ADD UNIQUE (slot) DEFERRABLE",
        "ALTER TABLE places ADD UNIQUE (tenant_id, slot) DEFERRABLE",
    ),
}


@pytest.mark.parametrize("kind", SWAPS)
def test_reverse_carries_value_swaps_under_unique_constraints_gotcha_8(way: Any, kind: str) -> None:
    source, target = SWAPS[kind]
    way.table("places", "id integer, slot integer, body text", source=source, target=target)
    way.ensure()
    way.go_live("acme")
    acme = way["acme"]

    with way.follow() as following:
        acme.write(f"INSERT INTO places SELECT i, i, {LONG} FROM generate_series(1, 5) i")
        following.catch_up("acme")
        acme.write(
            "BEGIN; UPDATE places SET slot = -1 WHERE id = 1;"
            " UPDATE places SET slot = 1 WHERE id = 2;"
            " UPDATE places SET slot = 2 WHERE id = 1; COMMIT",
            "BEGIN; UPDATE places SET id = -1 WHERE id = 3; UPDATE places SET id = 3 WHERE id = 4;"
            " UPDATE places SET id = 4 WHERE id = -1; COMMIT",
            "BEGIN; DELETE FROM places WHERE id = 5; UPDATE places SET slot = 5 WHERE id = 4;"
            " INSERT INTO places VALUES (6, 3, NULL); COMMIT",
        )
        following.catch_up("acme")

    assert acme.rows("places") == acme.target_rows("places")


@pytest.mark.parametrize("target_key", ["", "ALTER TABLE log ADD UNIQUE (tenant_id, at, note)"])
def test_reverse_tells_duplicate_rows_apart_without_a_key_gotcha_4(
    way: Any, target_key: str
) -> None:
    # A unique constraint over columns that may be null identifies nothing either.
    way.table("log", "at integer, note text, doc json", key="", target=target_key)
    way.ensure()
    way.go_live()
    acme = way["acme"]

    with way.follow() as following:
        way["globex"].write("INSERT INTO log VALUES (1, NULL, '1')")
        acme.write(
            "INSERT INTO log VALUES (1, NULL, '{\"a\": 1}'), (1, NULL, '{\"a\": 1}'), (2, 'x', '2')"
        )
        following.catch_up()
        acme.write(
            "DELETE FROM log WHERE ctid = (SELECT min(ctid) FROM log WHERE at = 1)",
            "UPDATE log SET at = 3 WHERE at = 2",
        )
        following.catch_up()

    assert acme.rows("log") == acme.target_rows("log")
    assert len(acme.rows("log")) == 2
    assert way["globex"].rows("log") == ["(1,,1)"]


def test_reverse_follows_a_table_that_only_a_unique_index_identifies(way: Any) -> None:
    way.table(
        "codes", "code text NOT NULL, name text", key="",
        source="CREATE UNIQUE INDEX ON codes (code)",
        target="CREATE UNIQUE INDEX ON codes (tenant_id, code)",
    )  # fmt: skip
    way.ensure()
    way.go_live()

    with way.follow() as following:
        way["globex"].write("INSERT INTO codes VALUES ('a', 'globex')")
        way["acme"].write(
            "INSERT INTO codes VALUES ('a', 'one'), ('b', 'two')",
            "UPDATE codes SET name = 'changed' WHERE code = 'a'",
            "UPDATE codes SET code = 'c' WHERE code = 'b'",
        )
        following.catch_up()

    assert way["acme"].rows("codes") == ["(a,changed)", "(c,two)"]
    assert way["globex"].rows("codes") == ["(a,globex)"]


@pytest.mark.parametrize("key", ["id", ""], ids=["keyed", "keyless"])
def test_reverse_lets_the_source_compute_generated_columns(way: Any, key: str) -> None:
    # On PostgreSQL 18 a table with replica identity FULL refuses its clients' UPDATE unless its
    # stored generated columns are published.
    columns = "id integer, a integer, twice integer GENERATED ALWAYS AS (a * 2) STORED, b text"
    way.table("items", columns, key=key)
    way.ensure()
    way.go_live("acme")
    acme = way["acme"]

    with way.follow() as following:
        acme.write(
            "INSERT INTO items (id, a, b) VALUES (1, 5, 'x'), (2, 6, 'y'), (3, 7, 'z')",
            "UPDATE items SET a = 60 WHERE id = 2",
            "DELETE FROM items WHERE id = 3",
        )
        following.catch_up("acme")

    assert acme.rows("items") == ["(1,5,10,x)", "(2,60,120,y)"]


def test_reverse_carries_arrays_of_enums_domains_and_composites(way: Any) -> None:
    types = (
        "CREATE TYPE public.status AS ENUM ('open', 'paid');"
        "CREATE DOMAIN public.amount AS numeric(12, 2);"
        "CREATE TYPE public.point3 AS (x integer, y text)"
    )
    for side in way.sides.values():
        way.execute(side.owner, types)
    way.execute(way.target, types)
    way.table(
        "bills",
        "id integer, states public.status[], total public.amount, place public.point3,"
        " doc jsonb, at timestamptz, during tstzrange, raw bytea, number double precision",
    )
    way.ensure()
    way.go_live("acme")
    acme = way["acme"]

    with way.follow() as following:
        acme.write(
            "INSERT INTO bills VALUES (1, '{open,paid}', 12.50, '(3,\"a b\")', '{\"k\": [1]}',"
            " '2024-02-29 23:59:59.123456+00', '[2024-01-01,2024-02-01)', '\\x00ff',"
            " 0.1::float8 + 0.2), (2, NULL, 'NaN', NULL, 'null', 'infinity', 'empty', '', '-0')"
        )
        acme.write("UPDATE bills SET states = states || 'open'::public.status WHERE id = 1")
        following.catch_up("acme")

    assert acme.rows("bills") == acme.target_rows("bills")
    assert len(acme.rows("bills")) == 2


def test_reverse_turns_truncate_into_a_delete_in_every_source_gotcha_1(way: Any) -> None:
    way.table("items", "id integer, name text")
    way.execute(way["acme"].owner, "CREATE TABLE public.own (id integer)")
    way.ensure()
    way.go_live()

    with way.follow() as following:
        for side in way.sides.values():
            side.write("INSERT INTO items VALUES (1, 'a'), (2, 'b')")
        following.catch_up()
        way.execute(
            way.target,
            "BEGIN; TRUNCATE public.items;"
            f" INSERT INTO public.items VALUES (3, 'c', '{way['acme'].tenant.id}'); COMMIT",
        )
        following.catch_up()

    assert way["acme"].rows("items") == ["(3,c)"]
    assert way["globex"].rows("items") == []


def test_reverse_leaves_out_what_was_rolled_back_to_a_savepoint(way: Any) -> None:
    way.table("items", "id integer, name text")
    way.ensure()
    way.go_live("acme")

    with way.follow() as following:
        way["acme"].write(
            "BEGIN; INSERT INTO items VALUES (1, 'a'); SAVEPOINT s;"
            " INSERT INTO items VALUES (2, 'b'); ROLLBACK TO s;"
            " INSERT INTO items VALUES (3, 'c'); COMMIT",
            "BEGIN; INSERT INTO items VALUES (4, 'd'); ROLLBACK",
        )
        following.catch_up("acme")

    assert way["acme"].rows("items") == ["(1,a)", "(3,c)"]


def test_reverse_moves_a_row_that_is_given_to_another_tenant(way: Any) -> None:
    way.table("items", "id integer, name text")
    way.ensure()
    way.go_live()
    acme, globex = way["acme"], way["globex"]

    with way.follow() as following:
        acme.write("INSERT INTO items VALUES (1, 'a'), (2, 'b')")
        way.execute(
            way.target,
            "UPDATE public.items SET tenant_id = %s WHERE id = 2",
            str(globex.tenant.id),
        )
        following.catch_up()

    assert acme.rows("items") == ["(1,a)"]
    assert globex.rows("items") == ["(2,b)"]


def test_a_row_that_comes_from_another_tenant_without_its_value_costs_the_way_back(
    way: Any,
) -> None:
    way.table("docs", "id integer, body text, note text")
    way.ensure()
    way.go_live()
    acme, globex = way["acme"], way["globex"]

    with way.follow() as following:
        acme.write(f"INSERT INTO docs VALUES (1, {LONG}, 'a')")
        way.execute(way.target, "UPDATE public.docs SET tenant_id = %s", str(globex.tenant.id))
        following.catch_up("acme")
        wait_until(lambda: way.grace("globex").lost_at is not None)
        acme.write("INSERT INTO docs VALUES (2, 'short', 'b')")
        following.catch_up("acme")

    assert "given to it by another tenant" in way.grace("globex").lost_reason
    assert acme.rows("docs") == ["(2,short,b)"]


def test_reverse_applies_a_transaction_larger_than_its_memory(way: Any) -> None:
    way.table("items", "id integer, name text")
    way.table("others", "id integer, name text")
    way.ensure()
    way.go_live("acme")
    acme = way["acme"]

    with way.follow(memory_bytes=1 << 20) as following:
        acme.write(
            "BEGIN; INSERT INTO items SELECT i, 'n' || i FROM generate_series(1, 20000) AS i;"
            " INSERT INTO others SELECT i, 'n' || i FROM generate_series(1, 10) AS i;"
            " UPDATE items SET name = name || '!' WHERE id % 2 = 0;"
            " DELETE FROM items WHERE id % 3 = 0; COMMIT"
        )
        following.catch_up("acme")

    assert acme.rows("items") == acme.target_rows("items")
    assert acme.rows("others") == acme.target_rows("others")
    transactions = way.execute(
        acme.source, "SELECT transactions, changes FROM tenantferry.reverse_positions"
    )
    assert transactions == [(1, 20000 + 10 + 10000 + 6666)]


def test_reverse_ignores_tables_that_do_not_move_and_tenants_that_are_not_live(way: Any) -> None:
    way.table("items", "id integer, name text")
    way.table("scratch", "id integer, name text")
    acme = way["acme"]
    acme.tenant = acme.tenant.model_copy(update={"tables": {"public.scratch": TableKind.SKIP}})
    way.ensure()
    way.go_live("acme")

    with way.follow() as following:
        way["globex"].write("INSERT INTO items VALUES (1, 'x')")
        acme.write("INSERT INTO scratch VALUES (1, 'x')", "INSERT INTO items VALUES (2, 'y')")
        following.catch_up("acme")

    assert acme.rows("items") == ["(2,y)"]
    assert acme.rows("scratch") == []
    assert way["globex"].rows("items") == []


def test_reverse_decodes_no_change_of_a_tenant_that_is_not_live(
    way: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Another tenant's backfill must not hold up this one's rollback.
    decoded: list[str] = []

    def count(data: bytes, at: int) -> Message:
        decoded.append(chr(data[at]))
        return decode(data, at)

    monkeypatch.setattr("tenantferry.reverse.dispatching.decode", count)
    way.table("items", "id integer, name text")
    way.ensure()
    way.go_live("acme")

    with way.follow() as following:
        way["globex"].write(
            "INSERT INTO items SELECT i, 'g' FROM generate_series(1, 1000) AS i",
            "UPDATE items SET id = id + 1000 WHERE id < 500",
            "DELETE FROM items WHERE id > 1200",
        )
        way["acme"].write("INSERT INTO items VALUES (1, 'a')", "UPDATE items SET id = 2")
        following.catch_up("acme")

    assert [kind for kind in decoded if kind in "IUD"] == ["I", "U"]
    assert way["acme"].rows("items") == ["(2,a)"]
    assert following.result.changes == 2 + 1000 + 499 + 299


def test_reverse_carries_values_that_can_only_be_sent_as_text(way: Any) -> None:
    # An array of a type without binary output makes the server refuse binary values at all, and
    # whose a change is comes as text, too.
    way.table("grants", "id integer, rights aclitem[], name text, at timestamptz")
    way.ensure()
    way.go_live()
    acme, globex = way["acme"], way["globex"]

    with way.follow() as following:
        globex.write("INSERT INTO grants VALUES (1, NULL, 'globex', 'epoch')")
        acme.write(
            "INSERT INTO grants VALUES (1, '{=r/tenantferry}', 'acme', '2024-02-29 12:00+00')",
            "UPDATE grants SET name = 'changed'",
            "INSERT INTO grants VALUES (2, '{}', NULL, 'infinity')",
            "DELETE FROM grants WHERE id = 2",
        )
        following.catch_up()

    assert acme.rows("grants") == acme.target_rows("grants")
    assert len(acme.rows("grants")) == 1
    assert globex.rows("grants") == globex.target_rows("grants")


def test_reverse_follows_tables_that_inherit_each_with_its_own_rows(way: Any) -> None:
    child = " INHERITS (places)"
    for side in way.sides.values():
        way.execute(
            side.owner,
            "CREATE TABLE places (id integer PRIMARY KEY, name text);"
            f" CREATE TABLE cities (people integer, PRIMARY KEY (id)){child}",
        )
    way.table("ignored", "id integer")
    way.execute(
        way.target,
        "SET search_path = public; CREATE TABLE places (id integer, name text,"
        " tenant_id uuid NOT NULL DEFAULT app.current_tenant(), PRIMARY KEY (tenant_id, id));"
        f" CREATE TABLE cities (people integer, PRIMARY KEY (tenant_id, id)){child};"
        " SET search_path = pg_catalog",
    )
    for table in ("places", "cities"):
        way.protect(table)
    way.ensure()
    way.go_live("acme")
    acme = way["acme"]

    with way.follow() as following:
        acme.write(
            "INSERT INTO places VALUES (1, 'place'), (2, 'place')",
            "INSERT INTO cities (id, name, people) VALUES (1, 'city', 5), (2, 'city', 6)",
            "UPDATE places SET name = name || '!' WHERE id = 1",
            "DELETE FROM ONLY places WHERE id = 2",
        )
        following.catch_up("acme")
        rows = way.execute(
            acme.source, "SELECT tableoid::regclass::text, id, name FROM public.places"
        )

    assert sorted(rows) == [
        ("public.cities", 1, "city!"),
        ("public.cities", 2, "city"),
        ("public.places", 1, "place!"),
    ]


def test_reverse_writes_to_a_source_whose_table_is_partitioned(way: Any) -> None:
    acme = way["acme"]
    way.execute(
        acme.owner,
        "CREATE TABLE events (id integer, day date, name text, PRIMARY KEY (id, day))"
        " PARTITION BY RANGE (day);"
        " CREATE TABLE events_1 PARTITION OF events"
        " FOR VALUES FROM ('2024-01-01') TO ('2024-02-01');"
        " CREATE TABLE events_2 PARTITION OF events DEFAULT",
    )
    way.execute(
        way.target,
        "CREATE TABLE public.events (id integer, day date, name text, tenant_id uuid NOT NULL"
        " DEFAULT app.current_tenant(), PRIMARY KEY (tenant_id, id, day))",
    )
    way.protect("events")
    way.ensure()
    way.go_live("acme")

    with way.follow() as following:
        acme.write(
            "INSERT INTO events VALUES (1, '2024-01-05', 'a'), (2, '2024-05-05', 'b')",
            "UPDATE events SET day = '2024-06-01' WHERE id = 1",
            "UPDATE events SET name = 'c' WHERE id = 2",
        )
        following.catch_up("acme")
        parts = way.execute(acme.source, "SELECT count(*) FROM public.events_2")

    assert acme.rows("events") == acme.target_rows("events")
    assert parts == [(2,)]


def test_a_deleted_row_that_does_not_say_whose_it_was_costs_everybody_the_way_back(
    way: Any,
) -> None:
    way.table("items", "id integer NOT NULL, name text")
    way.ensure()
    way.go_live()

    with way.follow() as following:
        way["acme"].write("INSERT INTO items VALUES (1, 'a'), (2, 'b')")
        following.catch_up()
        # As somebody may do who does not know what it is for.
        way.execute(way.target, "CREATE UNIQUE INDEX narrow ON public.items (id)")
        way.execute(way.target, "ALTER TABLE public.items REPLICA IDENTITY USING INDEX narrow")
        way["acme"].write("DELETE FROM items WHERE id = 1")
        wait_until(lambda: way.grace("globex").lost_at is not None)

    assert "replica identity did not hold tenant_id" in way.grace("acme").lost_reason
    # The next cutover mends the table.
    way.ensure()
    identity = way.execute(
        way.target, "SELECT relreplident::text FROM pg_class WHERE oid = 'public.items'::regclass"
    )
    assert identity == [("d",)]
