"""
Orders of events around whole tables, and around keys that are not plain numbers.

As in test_rounds_orders.py: a round copies one chunk and compares all copied chunks.
"""

from __future__ import annotations

import pytest

from round_stage import Rounds, run
from tenantferry.errors import TransientError


@pytest.fixture
def items(rounds: Rounds) -> Rounds:
    """A table of three chunks of ten rows, of which none is copied."""
    rounds.pair(
        "items",
        "id bigint, name text, big text",
        source="ALTER TABLE items ALTER big SET STORAGE EXTERNAL",
    )
    rounds.write(
        "INSERT INTO items SELECT id, 'name ' || id, repeat(md5(id::text), 200)"
        " FROM generate_series(1, 30) id"
    )
    return rounds


def test_truncate_catch_up(items: Rounds) -> None:
    items.copy_round()

    items.write(
        "TRUNCATE items",
        "INSERT INTO items SELECT id, 'new', 'x' FROM generate_series(-5, 35) id",
    )

    items.finish()


def test_change_truncate_change_catch_up(items: Rounds) -> None:
    """All of it in one transaction, with a row that would have made a chunk pending."""
    items.copy_round()

    items.write(
        "BEGIN; UPDATE items SET name = 'gone' WHERE id = 5;"
        " UPDATE items SET id = -25 WHERE id = 25; TRUNCATE items;"
        " INSERT INTO items VALUES (7, 'new', 'x'), (17, 'new', 'x');"
        " UPDATE items SET id = 8 WHERE id = 17; COMMIT"
    )
    items.copy_round()

    assert items.copied() == {"items": {1, 2}}
    items.finish()


def test_truncate_of_a_table_that_is_not_copied_catch_up(items: Rounds) -> None:
    items.pair("later", "id bigint")
    items.write("INSERT INTO later SELECT generate_series(1, 5)")
    items.copy_round()

    items.write("TRUNCATE later", "INSERT INTO later VALUES (7)")
    items.copy_round()

    assert items.copied()["later"] == set()
    items.finish()


def test_snapshot_truncate_copy_catch_up(items: Rounds) -> None:
    """The snapshot would show an empty table. The round fails, and the next one goes on."""
    items.copy_round()

    with pytest.raises(TransientError, match="truncated or rewritten"):
        items.copy_round(
            while_copying=["TRUNCATE items", "INSERT INTO items VALUES (15, 'n', 'x')"]
        )

    assert items.copied() == {"items": {1}}
    items.finish()


def test_rewrite_catch_up(items: Rounds) -> None:
    items.copy_round()

    with pytest.raises(TransientError, match="truncated or rewritten"):
        items.copy_round(while_copying=["VACUUM FULL items"])

    items.finish()


def test_keyless_duplicates_catch_up(rounds: Rounds) -> None:
    """A table without a key is copied as a whole, and its changes are skipped until then."""
    rounds.pair("log", "line text", key="", source="ALTER TABLE log REPLICA IDENTITY FULL")
    rounds.pair("items", "id bigint, pad text")
    rounds.write(
        "INSERT INTO items SELECT id, repeat('x', 1000) FROM generate_series(1, 20) id",
        "INSERT INTO log SELECT 'same' FROM generate_series(1, 5)",
    )
    rounds.copy_round()
    rounds.write("INSERT INTO log VALUES ('same')", "INSERT INTO log VALUES ('other')")
    rounds.copy_round()
    assert rounds.copied() == {"items": {1, 2}, "log": set()}

    rounds.write("DELETE FROM log WHERE ctid = (SELECT min(ctid) FROM log)")
    rounds.copy_round(while_copying=["INSERT INTO log VALUES ('same'), ('same')"])

    rounds.write(
        "DELETE FROM log WHERE ctid = (SELECT max(ctid) FROM log)",
        "UPDATE log SET line = 'same' WHERE line = 'other'",
    )
    rounds.finish()


def test_keyless_table_is_copied_first_catch_up(rounds: Rounds) -> None:
    rounds.pair(
        "log", "line text, pad text", key="", source="ALTER TABLE log REPLICA IDENTITY FULL"
    )
    rounds.pair("items", "id bigint")
    rounds.write(
        "INSERT INTO items SELECT generate_series(1, 20)",
        "INSERT INTO log SELECT 'same', repeat('x', 5000) FROM generate_series(1, 500)",
    )
    rounds.copy_round()
    assert rounds.copied() == {"items": set(), "log": {1}}

    rounds.write(
        "INSERT INTO log VALUES ('same'), ('same')",
        "DELETE FROM log WHERE ctid IN (SELECT ctid FROM log LIMIT 3)",
        "UPDATE log SET line = 'other' WHERE ctid = (SELECT min(ctid) FROM log)",
    )

    rounds.finish()


def test_table_whose_rows_the_stream_cannot_tell_apart_by_the_key_of_its_chunks(
    rounds: Rounds,
) -> None:
    """
    A deferrable key orders chunks, but rows may share it within a transaction: the stream counts
    whole rows, and each image falls into a chunk of its own.
    """
    rounds.pair(
        "places",
        "id bigint, name text",
        key="",
        source="ALTER TABLE places ADD PRIMARY KEY (id) DEFERRABLE;"
        " ALTER TABLE places REPLICA IDENTITY FULL",
        target="ALTER TABLE public.places ADD PRIMARY KEY (tenant_id, id) DEFERRABLE",
    )
    rounds.write("INSERT INTO places SELECT id, 'p' || id FROM generate_series(1, 30) id")
    rounds.copy_round()

    rounds.write(
        "BEGIN; SET CONSTRAINTS ALL DEFERRED; UPDATE places SET id = 31 - id; COMMIT",
        "UPDATE places SET name = 'new' WHERE id IN (5, 15, 25)",
        "DELETE FROM places WHERE id IN (6, 16, 26)",
        "INSERT INTO places VALUES (0, 'x'), (100, 'x')",
    )
    rounds.copy_round()

    assert rounds.copied() == {"places": {1, 2}}
    rounds.finish()


def test_table_that_is_identified_by_another_index_than_its_primary_key(rounds: Rounds) -> None:
    rounds.pair(
        "codes",
        "id bigint, code text NOT NULL",
        source="CREATE UNIQUE INDEX codes_code ON codes (code);"
        " ALTER TABLE codes REPLICA IDENTITY USING INDEX codes_code",
        target="CREATE UNIQUE INDEX codes_code ON public.codes (tenant_id, code)",
    )
    rounds.write(
        "INSERT INTO codes SELECT id, 'c' || lpad(id::text, 3, '0') FROM generate_series(1, 30) id"
    )
    rounds.copy_round()

    rounds.write(
        "UPDATE codes SET id = 1000 WHERE code = 'c005'",
        "UPDATE codes SET code = 'c900' WHERE code = 'c006'",
        "UPDATE codes SET code = 'c000' WHERE code = 'c025'",
        "DELETE FROM codes WHERE code IN ('c007', 'c017')",
    )
    rounds.copy_round()

    assert rounds.copied() == {"codes": {1, 2}}
    rounds.finish()


def test_text_keys_fall_into_the_chunks_that_copied_them(rounds: Rounds) -> None:
    """In the servers' collation "b" comes before "C"; the chunks are cut in that of the bytes."""
    rounds.pair("words", "word text, lang char(3), n integer", key="word, lang")
    rounds.write(
        "INSERT INTO words SELECT chr(64 + n), 'de', n FROM generate_series(1, 15) n",
        "INSERT INTO words SELECT chr(96 + n), 'de', n FROM generate_series(1, 15) n",
    )
    rounds.copy_round()

    rounds.write(
        "UPDATE words SET n = -n",
        "UPDATE words SET word = lower(word) || '!' WHERE word IN ('B', 'C')",
        "UPDATE words SET word = upper(word) || '!' WHERE word IN ('m', 'n')",
        "INSERT INTO words VALUES ('Á', 'fr', 1), ('', 'de', 2), ('_', 'en', 3)",
        "DELETE FROM words WHERE word IN ('D', 'd')",
    )
    rounds.copy_round()

    assert rounds.copied() == {"words": {1, 2}}
    rounds.finish()


def test_keys_that_lie_out_of_line_catch_up(rounds: Rounds) -> None:
    """Such a key is sent with the old row only, also where it does not change."""
    rounds.pair(
        "docs",
        'id text COLLATE "C", n integer, pad text',
        source="ALTER TABLE docs ALTER id SET STORAGE EXTERNAL",
    )
    rounds.write(
        "INSERT INTO docs"
        " SELECT lpad(n::text, 3, '0') || left(string_agg(md5(n || '-' || part), ''), 2200), n, 'x'"
        " FROM generate_series(1, 30) n, generate_series(1, 70) part GROUP BY n"
    )
    rounds.copy_round()

    rounds.write(
        "UPDATE docs SET n = -n WHERE n IN (5, 6, 15, 16, 25, 26)",
        "UPDATE docs SET id = 'z' || id WHERE n = 7",
        "UPDATE docs SET id = '0' || id WHERE n = 27",
    )
    rounds.copy_round()

    assert rounds.copied() == {"docs": {1, 2}}
    rounds.finish()


TYPES = {
    "uuid": "md5({}::text)::uuid",
    "numeric": "({} / 7.0)",
    "timestamptz": "timestamptz '2020-03-29 UTC' + {} * interval '1 h'",
    "interval": "{} * interval '1 day 1 h'",
    "bytea": "sha256({}::text::bytea)",
    "jsonb": "jsonb_build_object('k', {})",
    "integer[]": "ARRAY[{}, 1]",
    "public.positive": "{}",
    "public.mood": "('m' || {})::public.mood",
    "double precision": "({} / 3.0)::double precision",
    "inet": "inet '10.0.0.0' + {}",
    "money": "{}::money",
    '"char"': 'chr(64 + {})::"char"',
}


def test_keys_of_any_type_fall_into_the_chunks_that_copied_them(rounds: Rounds) -> None:
    labels = ", ".join(f"'m{n}'" for n in range(61))
    types = (
        f"CREATE TYPE public.mood AS ENUM ({labels});"
        "CREATE DOMAIN public.positive AS bigint CHECK (VALUE > 0)"
    )
    rounds.write(types)
    run(rounds.target, types)
    for number, (type_name, make) in enumerate(TYPES.items()):
        rounds.pair(f"t{number}", f"id {type_name}, n integer")
        rounds.write(
            f"INSERT INTO t{number} SELECT {make.format('n')}, n FROM generate_series(1, 30) n"
        )
    rounds.tenant = rounds.tenant.model_copy(update={"round_budget_seconds": 600.0})
    rounds.copy_round()
    for number in range(len(TYPES)):
        rounds.reopen(f"t{number}", 2)

    for number, make in enumerate(TYPES.values()):
        rounds.write(
            f"UPDATE t{number} SET n = -n WHERE n % 3 = 0",
            f"UPDATE t{number} SET id = {make.format('(n + 30)')} WHERE n % 5 = 1",
            f"DELETE FROM t{number} WHERE n % 7 = 0",
        )
    rounds.copy_round(while_copying=[f"DELETE FROM t{n} WHERE n = 2" for n in range(len(TYPES))])

    rounds.finish()
