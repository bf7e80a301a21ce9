"""What happens on the source happens to the tenant's rows in the target, and to nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from psycopg2.extensions import connection

OTHER_ID = "22222222-2222-2222-2222-222222222222"
# More than TOAST keeps inline, and not compressible.
LONG = "(SELECT string_agg(md5(i::text), '') FROM generate_series(1, 200) AS i)"


def test_stream_applies_inserts_updates_and_deletes(move: Any) -> None:
    move.pair("items", "id integer, name text")
    move.begin()

    with move.stream() as stream:
        move.run(
            "INSERT INTO items SELECT i, 'name ' || i FROM generate_series(1, 50) AS i",
            "UPDATE items SET name = NULL WHERE id % 3 = 0",
            "DELETE FROM items WHERE id % 5 = 0",
        )
        stream.catch_up()

    assert move.rows("items") == move.source_rows("items")
    assert len(move.rows("items")) == 40


def test_stream_keeps_unchanged_toast_values_gotcha_3(move: Any) -> None:
    move.pair("docs", "id integer, body text, note text")
    move.begin()

    with move.stream() as stream:
        move.run(f"INSERT INTO docs SELECT i, {LONG} || i, 'a' FROM generate_series(1, 3) AS i")
        stream.catch_up()
        move.run(
            "UPDATE docs SET note = 'b' WHERE id = 1",
            "UPDATE docs SET note = 'c', id = 12 WHERE id = 2",
            # Insert and partial update in one transaction: the image merges.
            f"INSERT INTO docs VALUES (4, {LONG}, 'x'); UPDATE docs SET note = 'y' WHERE id = 4",
            f"UPDATE docs SET body = {LONG} || 'new' WHERE id = 3;"
            " UPDATE docs SET note = 'z' WHERE id = 3; UPDATE docs SET id = 13 WHERE id = 3",
        )
        stream.catch_up()

    assert move.rows("docs") == move.source_rows("docs")


def test_stream_turns_truncate_into_a_delete_of_the_tenant_gotcha_1(move: Any) -> None:
    move.pair("items", "id integer, name text")
    move.execute(move.target, f"INSERT INTO public.items VALUES (1, 'other', '{OTHER_ID}')")
    move.begin()

    with move.stream() as stream:
        move.run("INSERT INTO items VALUES (1, 'a'), (2, 'b')")
        stream.catch_up()
        move.run(
            "BEGIN; INSERT INTO items VALUES (3, 'c'); TRUNCATE items;"
            " INSERT INTO items VALUES (2, 'again'), (4, 'd'); COMMIT"
        )
        stream.catch_up()

    assert move.rows("items") == ["(2,again)", "(4,d)"]
    assert move.rows("items", tenant_id=OTHER_ID) == ["(1,other)"]


def test_stream_updates_a_table_whose_key_is_widened_gotcha_2(move: Any) -> None:
    move.pair("items", "region text, id bigint, name text", key="region, id")
    move.execute(move.target, f"INSERT INTO public.items VALUES ('eu', 1, 'other', '{OTHER_ID}')")
    move.begin()

    with move.stream() as stream:
        move.run(
            "INSERT INTO items VALUES ('eu', 1, 'a'), ('us', 1, 'b'), ('us', 2, 'c')",
            "UPDATE items SET name = 'changed' WHERE region = 'eu'",
            "DELETE FROM items WHERE region = 'us' AND id = 1",
            "UPDATE items SET region = 'eu' WHERE region = 'us' AND id = 2",
        )
        stream.catch_up()

    assert move.rows("items") == ["(eu,1,changed)", "(eu,2,c)"]
    assert move.rows("items", tenant_id=OTHER_ID) == ["(eu,1,other)"]


SWAPS = {
    "unique": (
        "CREATE UNIQUE INDEX places_slot ON places (slot)",
        "CREATE UNIQUE INDEX places_slot ON places (tenant_id, slot)",
    ),
    "partial": (
        "CREATE UNIQUE INDEX places_slot ON places (slot) WHERE name <> 'free'",
        "CREATE UNIQUE INDEX places_slot ON places (tenant_id, slot) WHERE name <> 'free'",
    ),
    "deferrable": (
        "ALTER TABLE places ADD UNIQUE (slot) DEFERRABLE",
        "ALTER TABLE places ADD UNIQUE (tenant_id, slot) DEFERRABLE",
    ),
    "exclusion": (
        "ALTER TABLE places ADD EXCLUDE USING gist (int4range(slot, slot + 1) WITH &&)",
        "ALTER TABLE places ADD EXCLUDE USING gist (int4range(slot, slot + 1) WITH &&)",
    ),
}


@pytest.mark.parametrize("kind", SWAPS)
def test_stream_carries_value_swaps_under_unique_constraints_gotcha_8(move: Any, kind: str) -> None:
    source, target = SWAPS[kind]
    columns = "id integer, slot integer, name text, body text"
    move.pair("places", columns, source=source, target=target)
    move.begin()
    free = "-1" if kind != "deferrable" else "99"

    with move.stream() as stream:
        move.run(f"INSERT INTO places SELECT i, i, 'p' || i, {LONG} FROM generate_series(1, 5) i")
        stream.catch_up()
        move.run(
            f"BEGIN; UPDATE places SET slot = {free} WHERE id = 1;"
            " UPDATE places SET slot = 1 WHERE id = 2;"
            " UPDATE places SET slot = 2 WHERE id = 1; COMMIT",
            # A value passes from a deleted row to an updated one, and its old one to a new row.
            "BEGIN; DELETE FROM places WHERE id = 5; UPDATE places SET slot = 5 WHERE id = 4;"
            " INSERT INTO places VALUES (6, 4, 'new', NULL); COMMIT",
        )
        stream.catch_up()

    assert move.rows("places") == move.source_rows("places")


def test_stream_carries_swaps_of_primary_keys(move: Any) -> None:
    move.pair("items", "id integer, name text, body text")
    move.begin()

    with move.stream() as stream:
        move.run(f"INSERT INTO items SELECT i, 'n' || i, {LONG} || i FROM generate_series(1, 4) i")
        stream.catch_up()
        move.run(
            "BEGIN; UPDATE items SET id = -1 WHERE id = 1; UPDATE items SET id = 1 WHERE id = 2;"
            " UPDATE items SET id = 2 WHERE id = -1; COMMIT",
            "BEGIN; DELETE FROM items WHERE id = 3; UPDATE items SET id = 3 WHERE id = 4;"
            " INSERT INTO items VALUES (4, 'fresh', NULL); COMMIT",
        )
        stream.catch_up()

    assert move.rows("items") == move.source_rows("items")


def test_stream_applies_in_commit_order_gotcha_5(
    move: Any, source_params: Any, source_owner: connection
) -> None:
    move.pair("items", "id integer, name text")
    move.begin()

    with move.stream() as stream:
        move.run("INSERT INTO items VALUES (1, 'first')")
        stream.catch_up()
        # Begins first, commits last.
        move.execute(
            move.source, "SET ROLE app_owner; BEGIN; INSERT INTO public.items VALUES (2, 'x')"
        )
        move.run("UPDATE items SET name = 'short' WHERE id = 1")
        move.execute(move.source, "UPDATE public.items SET name = 'long' WHERE id = 1; COMMIT")
        move.execute(move.source, "RESET ROLE")
        stream.catch_up()

    assert move.rows("items") == ["(1,long)", "(2,x)"]


def test_stream_leaves_out_what_was_rolled_back_to_a_savepoint(move: Any) -> None:
    move.pair("items", "id integer, name text")
    move.begin()

    with move.stream() as stream:
        move.run(
            "BEGIN; INSERT INTO items VALUES (1, 'a'); SAVEPOINT s;"
            " INSERT INTO items VALUES (2, 'b'); ROLLBACK TO s;"
            " INSERT INTO items VALUES (3, 'c'); COMMIT",
            "BEGIN; INSERT INTO items VALUES (4, 'd'); ROLLBACK",
            "DO $$ BEGIN INSERT INTO items VALUES (5, 'e');"
            " BEGIN INSERT INTO items VALUES (5, 'f');"
            " EXCEPTION WHEN unique_violation THEN NULL; END; END $$",
        )
        stream.catch_up()

    assert move.rows("items") == ["(1,a)", "(3,c)", "(5,e)"]


def test_stream_applies_a_prepared_transaction_when_it_commits(move: Any) -> None:
    move.pair("items", "id integer, name text")
    move.begin()

    with move.stream() as stream:
        name = f"tx_{move.source_params.database}"
        move.run("BEGIN; INSERT INTO items VALUES (1, 'a');"
                 f" PREPARE TRANSACTION '{name}'")  # fmt: skip
        stream.catch_up()
        before = move.rows("items")
        move.run(f"COMMIT PREPARED '{name}'")
        stream.catch_up()

    assert before == []
    assert move.rows("items") == ["(1,a)"]


def test_stream_tells_duplicate_rows_apart_without_a_key_gotcha_4(move: Any) -> None:
    move.pair("log", "at integer, doc json, body text", key="")
    move.execute(move.owner, "ALTER TABLE log REPLICA IDENTITY FULL")
    move.execute(move.target, f"INSERT INTO public.log VALUES (1, '1', NULL, '{OTHER_ID}')")
    move.begin()

    with move.stream() as stream:
        move.run(
            "INSERT INTO log VALUES (1, '{\"a\": 1}', 'x'), (1, '{\"a\": 1}', 'x')",
            f"INSERT INTO log VALUES (1, '1', NULL), (2, NULL, {LONG}), (2, NULL, {LONG})",
        )
        stream.catch_up()
        move.run(
            "DELETE FROM log WHERE ctid = (SELECT min(ctid) FROM log WHERE body = 'x')",
            "UPDATE log SET at = 3 WHERE ctid = (SELECT min(ctid) FROM log WHERE at = 2)",
            "DELETE FROM log WHERE at = 1 AND body IS NULL",
        )
        stream.catch_up()

    assert move.rows("log") == move.source_rows("log")
    assert len(move.rows("log")) == 3
    assert len(move.rows("log", tenant_id=OTHER_ID)) == 1


def test_stream_uses_the_key_of_a_table_with_full_identity(move: Any) -> None:
    move.pair("items", "id integer, name text, body text")
    move.execute(move.owner, "ALTER TABLE items REPLICA IDENTITY FULL")
    move.begin()

    with move.stream() as stream:
        move.run(f"INSERT INTO items SELECT i, 'a', {LONG} FROM generate_series(1, 4) AS i")
        stream.catch_up()
        move.run(
            "UPDATE items SET name = 'b' WHERE id = 1",
            "UPDATE items SET id = 20 WHERE id = 2",
            "DELETE FROM items WHERE id = 3",
        )
        stream.catch_up()

    assert move.rows("items") == move.source_rows("items")


def test_stream_carries_two_rows_that_share_a_deferrable_key(move: Any) -> None:
    move.pair("items", "id integer, name text", key="",
              source="ALTER TABLE items ADD PRIMARY KEY (id) DEFERRABLE;"
              " ALTER TABLE items REPLICA IDENTITY FULL",
              target="ALTER TABLE items ADD PRIMARY KEY (tenant_id, id) DEFERRABLE")  # fmt: skip
    move.begin()

    with move.stream() as stream:
        move.run("INSERT INTO items VALUES (1, 'a'), (2, 'b')")
        stream.catch_up()
        move.run("UPDATE items SET id = 3 - id")
        stream.catch_up()

    assert move.rows("items") == ["(1,b)", "(2,a)"]


def test_stream_computes_generated_columns_in_the_target(move: Any) -> None:
    columns = "id integer, a integer, twice integer GENERATED ALWAYS AS (a * 2) STORED, b text"
    move.pair("items", columns)
    move.begin()

    with move.stream() as stream:
        move.run("INSERT INTO items (id, a, b) VALUES (1, 5, 'x')", "UPDATE items SET a = 6")
        stream.catch_up()

    assert move.rows("items") == ["(1,6,12,x)"]


def test_stream_ignores_a_table_outside_the_move_gotcha_9(move: Any) -> None:
    move.pair("items", "id integer, name text")
    move.begin()

    with move.stream() as stream:
        stream.catch_up()
        # Published by somebody after the stream has read which tables it moves.
        move.run("CREATE TABLE elsewhere (id integer PRIMARY KEY)")
        move.execute(
            move.source, f"ALTER PUBLICATION {move.tenant.publication} ADD TABLE public.elsewhere"
        )
        move.run("INSERT INTO elsewhere VALUES (1)", "INSERT INTO items VALUES (1, 'a')")
        stream.catch_up()

    assert move.rows("items") == ["(1,a)"]
