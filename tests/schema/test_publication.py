from __future__ import annotations

import pytest
from psycopg2.extensions import connection

from tenantferry.errors import PermanentError
from tenantferry.fleet import Tenant
from tenantferry.schema.catalog import read_tables
from tenantferry.schema.publication import drop_publication, ensure_publication


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


def test_ensure_publication_restores_the_operations(
    sample: connection, source: connection, acme: Tenant
) -> None:
    tables = read_tables(source, acme)
    ensure_publication(source, acme, tables)
    with source.cursor() as cursor:
        cursor.execute("ALTER PUBLICATION tenantferry_acme SET (publish = 'insert')")

    assert ensure_publication(source, acme, tables)
    assert not ensure_publication(source, acme, tables)


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
