"""Whatever changes rows, or brings some, without a stream's knowing shows in a table's state."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar
from uuid import uuid4

import pytest
from psycopg2.extensions import connection

from tenantferry.fleet import Source, TableKind, Tenant
from tenantferry.schema.table_states import (
    TYPES,
    Changes,
    find_changes,
    find_rewritten,
    read_row_files,
    read_table_states,
)

Read = TypeVar("Read")

SCHEMA = """
CREATE TYPE mood AS ENUM ('sad', 'ok');
CREATE TYPE place AS (street text, number int);
CREATE TABLE items (id int PRIMARY KEY, note text, mood mood);
CREATE TABLE scratch (id int);
CREATE TABLE events (id int, day int) PARTITION BY RANGE (day);
CREATE TABLE events_1 PARTITION OF events FOR VALUES FROM (0) TO (10);
CREATE TABLE events_2 (LIKE events);
CREATE TABLE nested (id int, day int) PARTITION BY RANGE (day);
CREATE TABLE nested_1 PARTITION OF nested FOR VALUES FROM (0) TO (10) PARTITION BY RANGE (id);
CREATE TABLE nested_1_1 PARTITION OF nested_1 DEFAULT;
INSERT INTO items VALUES (1, 'a', 'ok');
ALTER TABLE items ADD COLUMN later int DEFAULT 5;
"""
TENANT = Tenant(
    key="acme", id=uuid4(), source=Source(conn_id="acme"), tables={"public.scratch": TableKind.SKIP}
)


def run(session: connection, statements: str) -> None:
    with session.cursor() as cursor:
        cursor.execute(statements)


def around(
    read: Callable[[connection, Tenant], Read],
    source: connection,
    owner: connection,
    statements: str,
) -> tuple[Read, Read]:
    """Return what was read before the statements, and after them."""
    run(owner, SCHEMA)
    before = read(source, TENANT)
    run(owner, statements)
    return before, read(source, TENANT)


def change(source: connection, owner: connection, statements: str) -> Changes:
    return find_changes(*around(read_table_states, source, owner, statements))


def rewrite(source: connection, owner: connection, statements: str) -> list[str]:
    return find_rewritten(*around(read_row_files, source, owner, statements))


@pytest.mark.parametrize(
    ("statements", "reshaped"),
    [
        ("CREATE TABLE late (id int)", "public.late"),
        ("DROP TABLE items", "public.items"),
        ("DROP TABLE items; CREATE TABLE items (id int PRIMARY KEY, note text, mood mood)",
         "public.items"),
        ("ALTER TABLE items ADD COLUMN extra int DEFAULT 5", "public.items"),
        ("ALTER TABLE items DROP COLUMN note; ALTER TABLE items ADD COLUMN note text",
         "public.items"),
        ("ALTER TABLE items RENAME COLUMN note TO remark", "public.items"),
        ("ALTER TYPE mood RENAME VALUE 'ok' TO 'fine'", TYPES),
        ("ALTER TYPE place ADD ATTRIBUTE city text", TYPES),
        ("ALTER TABLE events DETACH PARTITION events_1", "public.events"),
        ("ALTER TABLE events DETACH PARTITION events_1; UPDATE events_1 SET id = 7;"
         " ALTER TABLE events ATTACH PARTITION events_1 FOR VALUES FROM (0) TO (10)",
         "public.events"),
        ("ALTER TABLE events ATTACH PARTITION events_2 FOR VALUES FROM (10) TO (20)",
         "public.events"),
    ],
)  # fmt: skip
def test_what_comes_goes_or_is_altered_has_another_shape(
    source: connection, source_owner: connection, statements: str, reshaped: str
) -> None:
    assert reshaped in change(source, source_owner, statements).reshaped


@pytest.mark.parametrize(
    ("statements", "rewritten"),
    [
        ("TRUNCATE items", "public.items"),
        # It has a column that old rows do not hold, before.
        ("VACUUM FULL items", "public.items"),
        ("ALTER TABLE items ALTER COLUMN note TYPE text USING upper(note)", "public.items"),
        ("TRUNCATE events_1", "public.events"),
        ("VACUUM FULL events_1", "public.events"),
        # Its changes were sent as those of the root.
        (
            "CREATE TABLE roots (id int NOT NULL, note text, mood mood, later int)"
            " PARTITION BY RANGE (id); ALTER TABLE roots ATTACH PARTITION items DEFAULT;"
            " ALTER TABLE roots DETACH PARTITION items; DROP TABLE roots",
            "public.items",
        ),
    ],
)
def test_rows_that_are_rewritten_are_in_another_file(
    source: connection, source_owner: connection, statements: str, rewritten: str
) -> None:
    assert change(source, source_owner, statements) == Changes((), (rewritten,))


@pytest.mark.parametrize(
    "statements",
    [
        "INSERT INTO items VALUES (2, 'b', 'sad'); DELETE FROM items WHERE id = 1",
        "CREATE INDEX ON items (note); ANALYZE items; COMMENT ON TABLE items IS 'of theirs'",
        "TRUNCATE scratch; ALTER TABLE scratch ADD COLUMN note text",
        "GRANT SELECT ON ALL TABLES IN SCHEMA public TO public; ALTER TABLE items"
        " SET (autovacuum_enabled = off); ALTER TABLE items ADD CHECK (id > 0)",
        "CREATE TEMPORARY TABLE passing (id int); CREATE UNLOGGED TABLE lost (id int)",
    ],
)
def test_what_a_stream_tells_or_nobody_moves_changes_no_state(
    source: connection, source_owner: connection, statements: str
) -> None:
    assert change(source, source_owner, statements) == Changes((), ())


@pytest.mark.parametrize(
    "statements",
    [
        "ALTER PUBLICATION tenantferry_acme DROP TABLE items;"
        " ALTER PUBLICATION tenantferry_acme ADD TABLE items",
        "ALTER PUBLICATION tenantferry_acme SET (publish = 'insert');"
        " ALTER PUBLICATION tenantferry_acme SET (publish = 'insert, update, delete, truncate')",
    ],
    ids=["away", "changed"],
)
def test_a_table_whose_changes_were_not_sent_for_a_while_has_another_shape(
    source: connection, source_owner: connection, statements: str
) -> None:
    run(source_owner, SCHEMA)
    run(source, "CREATE PUBLICATION tenantferry_acme FOR TABLE public.items")
    before = read_table_states(source, TENANT)
    run(source, "SET search_path = public; " + statements)

    assert find_changes(before, read_table_states(source, TENANT)).reshaped == ("public.items",)


@pytest.mark.parametrize(
    ("statements", "rewritten"),
    [
        ("TRUNCATE items", "public.items"),
        ("VACUUM FULL items", "public.items"),
        ("DROP TABLE items; CREATE TABLE items (id int)", "public.items"),
        ("CREATE TABLE late (id int)", "public.late"),
        ('CREATE SCHEMA "of.them"; CREATE TABLE "of.them"."a ""name""" (id int)',
         'of.them.a "name"'),
        ("TRUNCATE events_1", "public.events"),
        ("DROP TABLE events_1", "public.events"),
        ("CREATE TABLE events_3 PARTITION OF events FOR VALUES FROM (20) TO (30)",
         "public.events"),
        ("ALTER TABLE nested DETACH PARTITION nested_1; UPDATE nested_1_1 SET id = 7;"
         " ALTER TABLE nested ATTACH PARTITION nested_1 FOR VALUES FROM (0) TO (10)",
         "public.nested"),
        ("ALTER TABLE events DETACH PARTITION events_1; UPDATE events_1 SET id = 7;"
         " ALTER TABLE events ATTACH PARTITION events_1 FOR VALUES FROM (0) TO (10)",
         "public.events"),
    ],
)  # fmt: skip
def test_rows_that_are_not_where_they_were_are_in_other_files(
    source: connection, source_owner: connection, statements: str, rewritten: str
) -> None:
    assert rewrite(source, source_owner, statements) == [rewritten]


@pytest.mark.parametrize(
    "statements",
    [
        "ALTER TABLE items ADD COLUMN extra int DEFAULT 5, DROP COLUMN note, ADD CHECK (id > 0)",
        "CREATE INDEX ON items (mood); REINDEX TABLE items; ANALYZE items",
        "TRUNCATE scratch; DROP TABLE scratch; CREATE TABLE scratch (id int)",
        "CREATE TEMPORARY TABLE passing (id int)",
    ],
)
def test_rows_that_stay_where_they_were_are_in_the_same_files(
    source: connection, source_owner: connection, statements: str
) -> None:
    assert rewrite(source, source_owner, statements) == []
