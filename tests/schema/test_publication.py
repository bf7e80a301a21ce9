from __future__ import annotations

from contextlib import closing

import pytest
from psycopg2 import sql
from psycopg2.extensions import connection

from tenantferry.connections import open_connection
from tenantferry.errors import PermanentError
from tenantferry.fleet import Tenant
from tenantferry.local.postgres import PostgresServer
from tenantferry.schema.catalog import read_tables
from tenantferry.schema.publication import (
    check_published,
    drop_publication,
    ensure_publication,
    read_entries,
)


def _read_published(source: connection) -> set[str]:
    with source.cursor() as cursor:
        cursor.execute("SELECT tablename FROM pg_publication_tables")
        return {name for (name,) in cursor.fetchall()}


def test_ensure_publication_publishes_what_moves(
    sample: connection, source: connection, acme: Tenant
) -> None:
    tables = read_tables(source, acme)

    changed = [ensure_publication(source, acme, tables) for _ in range(2)]

    assert changed == [True, False]
    assert _read_published(source) == {"customers", "orders", "Booking Slots"}


def test_ensure_publication_follows_the_tables(
    sample: connection, source: connection, acme: Tenant
) -> None:
    tables = read_tables(source, acme)
    ensure_publication(source, acme, tables[:1])

    assert ensure_publication(source, acme, tables)
    assert len(_read_published(source)) == 3


@pytest.mark.parametrize("option", ["publish = 'insert'", "publish_via_partition_root = false"])
def test_ensure_publication_restores_its_options(
    sample: connection, source: connection, acme: Tenant, option: str
) -> None:
    tables = read_tables(source, acme)
    ensure_publication(source, acme, tables)
    with source.cursor() as cursor:
        cursor.execute(
            sql.SQL("ALTER PUBLICATION tenantferry_acme SET ({})").format(sql.SQL(option))
        )

    assert ensure_publication(source, acme, tables)
    assert not ensure_publication(source, acme, tables)


def test_ensure_publication_takes_generated_columns_out(
    newest_source_server: PostgresServer, acme: Tenant
) -> None:
    newest_source_server.psql("-c", "CREATE DATABASE generated")
    params = newest_source_server.superuser.with_database("generated")
    with closing(open_connection(params, purpose="test", autocommit=True)) as source:
        with source.cursor() as cursor:
            cursor.execute(
                "CREATE TABLE public.items"
                " (id int PRIMARY KEY, n int GENERATED ALWAYS AS (1) STORED)"
            )
        tables = read_tables(source, acme)
        ensure_publication(source, acme, tables)
        with source.cursor() as cursor:
            cursor.execute(
                "ALTER PUBLICATION tenantferry_acme SET (publish_generated_columns = stored)"
            )

        assert ensure_publication(source, acme, tables)
        assert not ensure_publication(source, acme, tables)
    newest_source_server.psql("-c", "DROP DATABASE generated")


def test_ensure_publication_publishes_a_root_and_no_table_for_its_parent_s_sake(
    source_owner: connection, source: connection, acme: Tenant
) -> None:
    with source_owner.cursor() as cursor:
        cursor.execute(
            "CREATE TABLE whole (id int PRIMARY KEY) PARTITION BY LIST (id);"
            " CREATE TABLE one PARTITION OF whole FOR VALUES IN (1);"
            " CREATE TABLE parent (id int PRIMARY KEY);"
            " CREATE TABLE child (PRIMARY KEY (id)) INHERITS (parent)"
        )
    tables = [table for table in read_tables(source, acme) if table.name != "child"]

    ensure_publication(source, acme, tables)

    assert _read_published(source) == {"whole", "parent"}


def test_ensure_publication_refuses_an_empty_move(source: connection, acme: Tenant) -> None:
    with pytest.raises(PermanentError, match="no table moves"):
        ensure_publication(source, acme, [])


def test_drop_publication_may_run_twice(
    sample: connection, source: connection, acme: Tenant
) -> None:
    ensure_publication(source, acme, read_tables(source, acme))

    for _ in range(2):
        drop_publication(source, acme)

    assert _read_published(source) == set()


def test_entries_tell_a_table_that_was_away_from_one_that_was_not(
    sample: connection, source: connection, acme: Tenant
) -> None:
    """What is added, or taken out, leaves the entries of the other tables as they are."""
    tables = read_tables(source, acme)
    ensure_publication(source, acme, tables[:2])
    entries = [read_entries(source, acme)]
    for published in (tables, tables[1:], tables):
        ensure_publication(source, acme, published)
        entries.append(read_entries(source, acme))

    two, three, without_first, back = entries
    first, second, third = (table.qualified for table in tables)
    assert two == {name: three[name] for name in (first, second)}
    assert without_first == {name: three[name] for name in (second, third)}
    assert {**back, first: None} == {**three, first: None}
    assert back[first] != three[first]


@pytest.mark.parametrize(
    "changes",
    [
        ["SET (publish = 'insert')", None],
        ["SET (publish_via_partition_root = false)", "SET (publish_via_partition_root = true)"],
    ],
    ids=["mended by us", "mended by hand"],
)
def test_all_entries_change_where_other_changes_were_published(
    sample: connection, source: connection, acme: Tenant, changes: list[str | None]
) -> None:
    tables = read_tables(source, acme)
    ensure_publication(source, acme, tables)
    before = read_entries(source, acme)

    for change in filter(None, changes):
        with source.cursor() as cursor:
            cursor.execute(sql.SQL("ALTER PUBLICATION tenantferry_acme {}").format(sql.SQL(change)))
    assert ensure_publication(source, acme, tables) is (None in changes)

    after = read_entries(source, acme)
    assert after.keys() == before.keys()
    assert not set(after.values()) & set(before.values())


@pytest.mark.parametrize("part", ["(id)", "WHERE (id > 1)"])
def test_a_table_that_is_published_in_part_is_not_published(
    sample: connection, source: connection, acme: Tenant, part: str
) -> None:
    tables = read_tables(source, acme)
    ensure_publication(source, acme, tables)
    with source.cursor() as cursor:
        cursor.execute("ALTER PUBLICATION tenantferry_acme DROP TABLE public.customers")
        cursor.execute(
            sql.SQL("ALTER PUBLICATION tenantferry_acme ADD TABLE public.customers {}").format(
                sql.SQL(part)
            )
        )

    with pytest.raises(PermanentError, match=r"lacks tables[^:]*\n.*public\.customers"):
        check_published(source, acme, tables)
    assert ensure_publication(source, acme, tables)
    check_published(source, acme, tables)
