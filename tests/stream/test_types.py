"""Values of every ordinary type arrive as they are."""

from __future__ import annotations

from typing import Any

import pytest

VALUES = {
    "smallint": "'-32768'",
    "bigint": "'9223372036854775807'",
    "numeric": "'NaN'",
    "numeric(40,20)": "'12345678901234567890.12345678901234567890'",
    "real": "'-0'",
    "double precision": "'-Infinity'",
    "boolean": "'t'",
    '"char"': "'x'",
    "character(6)": "'ab'",
    "character varying(10)": "'äöü €'",
    "bytea": r"'\x00ff10'",
    "date": "'infinity'",
    "time": "'24:00:00'",
    "timetz": "'12:00:00.5+05:30'",
    "timestamp": "'0044-03-15 12:00:00 BC'",
    "timestamptz": "'-infinity'",
    "interval": "'1 year -2 days 03:00:00.000001'",
    "uuid": "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'",
    "json": '\'{"b": 1, "a":  [1, 2]}\'',
    "jsonb": '\'{"b": 1.0, "a": null}\'',
    "inet": "'2001:db8::1/64'",
    "cidr": "'10.0.0.0/8'",
    "macaddr": "'08:00:2b:01:02:03'",
    "bit(5)": "'10101'",
    "varbit": "'101'",
    "money": "'12.34'",
    "point": "'(1,2)'",
    "polygon": "'((0,0),(1,1),(1,0))'",
    "int4range": "'[1,10)'",
    "tstzmultirange": "'{[2020-01-01,2021-01-01)}'",
    "tsvector": "'a:1 b:2'",
    "tsquery": "'a & b'",
    "int[]": "'{{1,2},{3,NULL}}'",
    "text[]": "'{}'",
    "pg_lsn": "'1/2'",
    "aclitem": "'tenantferry=r/tenantferry'",
    "public.mood": "'sad'",
    "public.mood[]": "'{sad,ok}'",
    "public.pair": "'(1,x)'",
    "public.pair[]": "'{\"(1,x)\"}'",
    "public.positive": "'5'",
    "public.required": "'there'",
    "public.mood_pair": "'(sad)'",
}
CREATE_TYPES = (
    "CREATE TYPE public.mood AS ENUM ('ok', 'sad')",
    "CREATE TYPE public.pair AS (a integer, b text)",
    "CREATE TYPE public.mood_pair AS (m public.mood)",
    "CREATE DOMAIN public.positive AS integer CHECK (VALUE > 0)",
    "CREATE DOMAIN public.required AS text NOT NULL",
)


# No binary output inside the array: the source then sends every value as text.
TEXT_ONLY = {"aclitem[]": "'{tenantferry=r/tenantferry}'"}


@pytest.mark.parametrize("values", [VALUES, VALUES | TEXT_ONLY], ids=["binary", "text"])
def test_stream_carries_all_ordinary_types(move: Any, values: dict[str, str]) -> None:
    for statement in CREATE_TYPES:
        # Other OIDs on the other side.
        move.execute(move.target, "CREATE TYPE public.padding AS ENUM (); DROP TYPE public.padding")
        move.execute(move.target, statement)
        move.execute(move.owner, statement)
    columns = ", ".join(f"c{i} {name}" for i, name in enumerate(values))
    move.pair("everything", f"id integer, note text, {columns}")
    move.begin()
    required = list(values).index("public.required")

    with move.stream() as stream:
        move.run(
            f"INSERT INTO everything VALUES (1, 'all', {', '.join(values.values())})",
            f"INSERT INTO everything (id, c{required}) VALUES (2, 'nulls')",
            "INSERT INTO everything SELECT 3, note"
            f", {', '.join(f'c{i}' for i in range(len(values)))} FROM everything WHERE id = 1",
        )
        stream.catch_up()
        inserted = move.rows("everything")
        expected = move.source_rows("everything")
        move.run("UPDATE everything SET note = 'updated'", "DELETE FROM everything WHERE id = 3")
        stream.catch_up()

    assert inserted == expected
    assert move.rows("everything") == move.source_rows("everything")


KEYS = {
    "text": "'a', 'B', 'ä'",
    "uuid": "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '00000000-0000-0000-0000-000000000000'",
    "numeric": "1.00, 1.5, 'NaN'",
    "public.mood": "'ok', 'sad'",
    "public.positive": "1, 2",
    "timestamptz": "'infinity', '2020-01-01'",
    'text COLLATE "C"': "'a', 'b'",
    "character(5)": "'a', 'b'",
    "bytea": r"'\x00', '\x01'",
    "int[]": "'{1,2}', '{}'",
}


@pytest.mark.parametrize("type_name", KEYS)
def test_stream_finds_rows_by_keys_of_any_type(move: Any, type_name: str) -> None:
    for session in (move.target, move.owner):
        move.execute(session, CREATE_TYPES[0])
        move.execute(session, CREATE_TYPES[3])
    move.pair("items", f"id {type_name}, note text")
    move.begin()
    keys = KEYS[type_name].split(", ")

    with move.stream() as stream:
        for key in keys:
            move.run(f"INSERT INTO items VALUES ({key}, 'new')")
        stream.catch_up()
        move.run("UPDATE items SET note = 'changed'", f"DELETE FROM items WHERE id = {keys[1]}")
        stream.catch_up()

    assert move.rows("items") == move.source_rows("items")
    assert len(move.rows("items")) == len(keys) - 1


@pytest.mark.parametrize("key", ["id", ""], ids=["key", "no key"])
def test_stream_carries_rows_whose_column_without_binary_input_is_null(move: Any, key: str) -> None:
    whole = "ALTER TABLE granted REPLICA IDENTITY FULL"
    move.pair("granted", "id integer, more aclitem", key=key, source="" if key else whole)
    move.begin()

    with move.stream() as stream:
        for statement in (
            "INSERT INTO granted VALUES (1, NULL), (2, NULL)",
            "DELETE FROM granted WHERE id = 1",
            "UPDATE granted SET more = 'tenantferry=r/tenantferry' WHERE id = 2",
            "INSERT INTO granted VALUES (3, NULL)",
        ):
            move.run(statement)
            stream.catch_up()

    assert move.rows("granted") == move.source_rows("granted")
    assert len(move.rows("granted")) == 2
