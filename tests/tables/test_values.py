"""Values of every type arrive as they are, through the copy, the stream and the comparison."""

from __future__ import annotations

from typing import Any

TYPES = """
    CREATE TYPE mood AS ENUM ('ok', 'sad');
    CREATE TYPE place AS (street text, moods mood[], at point);
    CREATE DOMAIN amount AS numeric(12, 4) CHECK (VALUE >= 0);
    CREATE DOMAIN amounts AS amount[];
    CREATE TYPE span AS RANGE (subtype = float8, subtype_diff = float8mi);
    CREATE DOMAIN home AS place CHECK ((VALUE).street <> '');
    CREATE DOMAIN label AS citext NOT NULL DEFAULT 'none'"""
# Of each type: one value for a row that is copied, one for what it is changed to.
VALUES = {
    "integer": ("-2147483648", "2147483647"),
    "bigint": ("9223372036854775807", "0"),
    "boolean": ("true", "NULL"),
    "numeric": ("'NaN'", "'Infinity'"),
    "numeric(40,20)": ("12345678901234567890.12345678901234567890", "-0.1"),
    "real": ("'-0'", "'1e-40'"),
    "double precision": ("'-Infinity'", "0.1::float8 + 0.2"),
    "money": ("'12.34'", "'-0.01'"),
    "text": ("''", "E'tab\\t\\\\N \"quoted\" ü'"),
    "varchar(10)": ("'äöü €  '", "'%s'"),
    "char(6)": ("'ab'", "' a'"),
    '"char"': ("'x'", "''"),
    "name": ("'public'", "repeat('n', 63)"),
    "citext": ("'MiXed'", "'mIxED'"),
    "bytea": (r"'\x00ff10'", r"'\x'"),
    "uuid": ("'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'", "'00000000-0000-0000-0000-000000000000'"),
    "date": ("'infinity'", "'4713-01-01 BC'"),
    "time": ("'24:00:00'", "'00:00:00.000001'"),
    "timetz": ("'24:00:00+05:30'", "'12:00:00-15:59'"),
    "timestamp": ("'0044-03-15 12:00:00 BC'", "'-infinity'"),
    "timestamptz": ("'infinity'", "'294276-12-31 23:59:59.999999+00'"),
    "interval": ("'1 year -2 days 03:00:00.000001'", "'30 days'"),
    "json": ("""'{"b": 1, "a":  [1, 2], "b": 2}'""", "'null'"),
    "jsonb": ("""'{"b": 1.0, "a": null}'""", "'1.00'"),
    "hstore": ("""'a=>1, "b c"=>NULL'""", "''"),
    "xid8": ("'5'", "'18446744073709551615'"),
    "inet": ("'2001:db8::1/64'", "'10.0.0.1/8'"),
    "macaddr8": ("'08:00:2b:01:02:03:04:05'", "NULL"),
    "bit(5)": ("'10101'", "'00000'"),
    "varbit": ("'101'", "''"),
    "path": ("'[(0,0),(1,1)]'", "'((0,0),(1,1))'"),
    "int4range": ("'[1,10)'", "'empty'"),
    "tstzrange": ("'[2020-01-01,infinity]'", "'(,2020-01-01)'"),
    "nummultirange": ("'{[1.0,2.5),[5,9)}'", "'{}'"),
    "int4range[]": ("'{\"[1,3)\",empty}'", "'{}'"),
    "tsvector": ("'a:1 b:2A'", "''"),
    "integer[]": ("'[0:1]={1,NULL}'", "'{{1,2},{3,NULL}}'"),
    "text[]": ("""'{NULL,"NULL",""}'""", "'{}'"),
    "mood": ("'sad'", "'ok'"),
    "mood[]": ("'{sad,ok}'", "'{NULL}'"),
    "place": ("""ROW('a,"b"', '{sad}', '(1,2)')::place""", "ROW(NULL, NULL, NULL)::place"),
    "place[]": ("""ARRAY[ROW('x', '{ok,sad}', '(1,2)')::place, NULL]""", "'{}'"),
    "span": ("'[1.5,2.5)'", "'empty'"),
    "span_multirange": ("'{[1.5,2.5),[3,4)}'", "'{}'"),
    "home": ("""ROW('a', '{sad}', '(1,2)')::place""", "NULL"),
    "amount": ("'NaN'", "1.5"),
    "amounts": ("'{1.5,2.50}'", "NULL"),
    "label": ("'Label'", "'lABEL'"),
}


def test_values_of_every_type_arrive_as_they_are(trip: Any) -> None:
    create = ("-c", "CREATE EXTENSION citext SCHEMA public", "-c",
              "CREATE EXTENSION hstore SCHEMA public")  # fmt: skip
    trip.source_server.psql(*create, database=trip.move.source.database)
    # Types get other OIDs on the other side.
    with trip.target.cursor() as cursor:
        cursor.execute("CREATE TYPE public.padding AS ENUM (); DROP TYPE public.padding")
    columns = ", ".join(f"c{i} {name}" for i, name in enumerate(VALUES))
    copied = ", ".join(f"{a}" for a, _ in VALUES.values())
    changed = ", ".join(f"c{i} = {b}" for i, (_, b) in enumerate(VALUES.values()))
    trip.run(
        TYPES,
        f"CREATE TABLE keyed (id integer PRIMARY KEY, note text, {columns})",
        f"CREATE TABLE loose (id integer, note text, {columns})",
        "ALTER TABLE loose REPLICA IDENTITY FULL",
        *(
            f"INSERT INTO {table} SELECT n, 'old', {copied} FROM generate_series(1, 30) AS n"
            for table in ("keyed", "loose")
        ),
    )

    trip.travel(
        *(
            statement.replace("TABLE", table)
            for table in ("keyed", "loose")
            for statement in (
                f"UPDATE TABLE SET {changed} WHERE id = {{n}}",
                "UPDATE TABLE SET note = 'only the note' WHERE id = 31 - {n}",
                f"INSERT INTO TABLE SELECT 1000 + {{n}}, 'new', {copied}",
                "DELETE FROM TABLE WHERE id = {n} * 3",
            )
        ),
        finally_run=(f"UPDATE loose SET {changed} WHERE id < 20",),
    )


def test_values_beyond_a_page_arrive_whether_they_change_or_not(trip: Any) -> None:
    trip.run(
        "CREATE TABLE pages (id integer PRIMARY KEY, note text, body text, data bytea)",
        "CREATE TABLE loose (id integer, note text, body text)",
        "ALTER TABLE loose REPLICA IDENTITY FULL",
        "ALTER TABLE pages ALTER COLUMN data SET STORAGE EXTERNAL",
        "INSERT INTO pages SELECT n, 'old', repeat(md5(n::text), 1000 + n),"
        " decode(repeat(md5(n::text), 2000), 'hex') FROM generate_series(1, 60) AS n",
        "INSERT INTO loose SELECT id, note, body FROM pages",
    )

    trip.travel(
        "UPDATE pages SET note = note || {n} WHERE id = {n}",
        "UPDATE pages SET id = 5000 + id WHERE id = {n} * 4",
        "UPDATE pages SET body = repeat(md5('{n}'), 3000) WHERE id = {n} * 5",
        "UPDATE loose SET note = note || {n} WHERE id = {n}",
        "INSERT INTO pages SELECT 1000 + {n}, 'new', repeat('x', 50000), NULL",
        finally_run=("UPDATE pages SET note = 'last', id = -id WHERE id % 2 = 0",),
    )
