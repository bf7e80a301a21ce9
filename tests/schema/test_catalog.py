from __future__ import annotations

import pytest
from psycopg2 import sql
from psycopg2.extensions import connection

from tenantferry.fleet import Tenant
from tenantferry.schema.catalog import read_catalog, read_tables
from tenantferry.schema.database import Sequence, View
from tenantferry.schema.model import Column, Exclusion, ForeignKey, Index, Key


def test_read_tables_returns_only_what_moves_with_the_tenant(
    sample: connection, source: connection, acme: Tenant
) -> None:
    labels = {table.label for table in read_tables(source, acme)}

    assert labels == {"billing.Booking Slots", "public.customers", "public.orders"}


def test_read_tables_returns_the_largest_first(
    sample: connection, source: connection, acme: Tenant
) -> None:
    with sample.cursor() as cursor:
        cursor.execute(
            'INSERT INTO billing."Booking Slots" (room, during, position)'
            " SELECT -n, 'empty', n FROM generate_series(1, 2000) AS n"
        )

    tables = read_tables(source, acme)

    assert tables[0].label == "billing.Booking Slots"
    assert [table.bytes for table in tables] == sorted((t.bytes for t in tables), reverse=True)


def test_read_catalog_describes_columns(sample: connection, source: connection) -> None:
    table = read_catalog(source).find_table("public", "customers")

    assert table is not None
    by_name = {column.name: column for column in table.columns}
    assert by_name["id"] == Column(
        "id", "bigint", True, identity="a", sequence=("public", "customers_id_seq")
    )
    assert by_name["email"] == Column("email", "public.email", True)
    assert by_name["name"] == Column("name", "text", True, collation='pg_catalog."C"')
    assert by_name["Slug"] == Column(
        "Slug", "text", False, default="public.slug(name)", generated="s", comment="for addresses"
    )
    assert "Slug" not in {column.name for column in table.copied_columns}
    assert table.comment == "who buys; it's them"


def test_read_catalog_finds_the_sequence_that_a_default_reads(
    sample: connection, source: connection
) -> None:
    table = read_catalog(source).find_table("public", "orders")

    assert table is not None
    assert {c.name: c.sequence for c in table.columns if c.sequence} == {
        "id": ("public", "orders_id_seq"),
        "number": ("public", "invoice_numbers"),
        "reference": ("public", "countdown"),
    }


def test_read_catalog_describes_keys_and_indexes(sample: connection, source: connection) -> None:
    catalog = read_catalog(source)
    customers = catalog.find_table("public", "customers")
    slots = catalog.find_table("billing", "Booking Slots")

    assert customers is not None
    assert slots is not None
    assert set(customers.keys) == {
        Key("customers_pkey", ("id",), primary=True),
        Key("customers_email_key", ("email",), primary=False, include=("name",)),
    }
    assert set(customers.indexes) == {
        Index("customers_notes_idx", "gin", ("notes pg_catalog.jsonb_path_ops",)),
        Index("customers_name_trgm_idx", "gin", ("name public.gin_trgm_ops",)),
        Index(
            "customers_lower_idx",
            "btree",
            (
                'lower(name) COLLATE pg_catalog."C" pg_catalog.text_pattern_ops',
                "updated_at DESC NULLS LAST",
            ),
            include=("email",),
            predicate="(name <> 'nobody'::text)",
        ),
        Index("customers_slug_key", "btree", ('"Slug"',), unique=True, nulls_not_distinct=True),
    }
    assert slots.exclusions == (
        Exclusion("no_overlap", "gist", (("room", "="), ("during", "&&")), "(room > 0)"),
    )
    assert slots.key == ("room", "position")


def test_read_catalog_describes_foreign_keys(sample: connection, source: connection) -> None:
    slots = read_catalog(source).find_table("billing", "Booking Slots")

    assert slots is not None
    assert slots.foreign_keys == (
        ForeignKey(
            "Booking order",
            ("order",),
            "public",
            "orders",
            ("id",),
            on_delete="n",
            set_columns=("order",),
        ),
    )


def test_read_catalog_describes_the_rest(sample: connection, source: connection) -> None:
    catalog = read_catalog(source)

    assert catalog.schemas == ("billing", "public")
    assert {e.name for e in catalog.extensions} == {"citext", "btree_gist", "pg_trgm"}
    assert [e.labels for e in catalog.enums] == [("new", "paid", "it's void")]
    assert [(d.name, d.type_name, d.not_null) for d in catalog.domains] == [
        ("email", "public.citext", False),
        ("work_email", "public.email", True),
    ]
    assert catalog.composites[0].attributes == (
        ("amount", "numeric(12,2)"),
        ("currency", 'text COLLATE pg_catalog."C"'),
    )
    assert Sequence("public", "countdown", "integer", 100, -1, -1000, 100, 1, False) in (
        catalog.sequences
    )
    assert [f.needs_tables for f in catalog.functions] == [False, False, True]
    assert [v.name for v in catalog.views] == ["order_totals", "a_first"]
    assert isinstance(catalog.views[1], View)
    assert catalog.views[1].options == ("security_barrier=true",)
    assert catalog.uncarried == ()


@pytest.mark.parametrize(
    ("definition", "identity", "expected"),
    [
        ("a int, b int, PRIMARY KEY (b, a)", "DEFAULT", ("b", "a")),
        ("a int PRIMARY KEY, b int", "FULL", ("a",)),
        ("a int NOT NULL UNIQUE, b int", "FULL", ("a",)),
        ("a int UNIQUE, b int", "FULL", ()),
        ("a int NOT NULL UNIQUE DEFERRABLE, b int", "FULL", ()),
        ("a int NOT NULL UNIQUE, b int", "DEFAULT", ()),
        ("a int PRIMARY KEY, b int NOT NULL UNIQUE", "USING INDEX t_b_key", ("b",)),
        ("a int PRIMARY KEY, b int", "NOTHING", ()),
    ],
    ids=[
        "primary key",
        "full with primary key",
        "full with unique",
        "full with nullable unique",
        "full with deferrable unique",
        "unique is not the identity",
        "index",
        "nothing",
    ],
)
def test_read_tables_chooses_the_key_of_the_replica_identity(
    *,
    source_owner: connection,
    source: connection,
    acme: Tenant,
    definition: str,
    identity: str,
    expected: tuple[str, ...],
) -> None:
    with source_owner.cursor() as cursor:
        cursor.execute(sql.SQL("CREATE TABLE t ({})").format(sql.SQL(definition)))
        cursor.execute(sql.SQL("ALTER TABLE t REPLICA IDENTITY {}").format(sql.SQL(identity)))

    (table,) = read_tables(source, acme)

    assert table.key == expected


def test_read_catalog_lists_what_is_not_carried(
    source_owner: connection, source: connection
) -> None:
    with source_owner.cursor() as cursor:
        cursor.execute(
            "CREATE VIEW quick AS SELECT 1 AS a;"
            "CREATE UNLOGGED TABLE fast (a int);"
            "CREATE MATERIALIZED VIEW kept AS SELECT 1 AS a;"
            "CREATE RULE quiet AS ON DELETE TO quick DO INSTEAD NOTHING;"
            "CREATE FUNCTION gap(a float8, b float8) RETURNS float8 IMMUTABLE LANGUAGE sql"
            " AS 'SELECT a - b';"
            "CREATE TYPE span AS RANGE (subtype = float8, subtype_diff = gap);"
        )

    catalog = read_catalog(source)

    assert {(u.kind.value, u.name) for u in catalog.uncarried} == {
        ("unlogged table", "fast"),
        ("materialized view", "kept"),
        ("rule", "quiet"),
        ("range type", "span"),
    }
    assert catalog.tables == ()


def test_read_catalog_takes_a_partitioned_table_for_one(
    source_owner: connection, source: connection
) -> None:
    with source_owner.cursor() as cursor:
        cursor.execute(
            "CREATE TABLE whole (a int, b int, PRIMARY KEY (a, b)) PARTITION BY LIST (a);"
            "CREATE TABLE one PARTITION OF whole FOR VALUES IN (1);"
            "CREATE TABLE more PARTITION OF whole DEFAULT PARTITION BY RANGE (b);"
            "CREATE TABLE rest PARTITION OF more DEFAULT;"
            "ALTER TABLE one REPLICA IDENTITY FULL; ALTER TABLE one ADD CHECK (b > 0);"
            "INSERT INTO whole SELECT n % 3, n FROM generate_series(1, 3000) AS n; ANALYZE"
        )

    catalog = read_catalog(source)

    (whole,) = catalog.tables
    assert (whole.label, whole.is_partitioned, whole.only) == ("public.whole", True, False)
    assert (whole.key, whole.estimated_rows) == (("a", "b"), 3000)
    assert whole.bytes > 100_000
    assert [(p.name, p.kind, p.replica_identity, p.key, p.own) for p in catalog.partitions] == [
        ("more", "p", "d", ("a", "b"), ()),
        ("one", "r", "f", (), ('check "one_b_check"',)),
        ("rest", "r", "d", ("a", "b"), ()),
    ]


def test_read_catalog_tells_what_inherits(source_owner: connection, source: connection) -> None:
    with source_owner.cursor() as cursor:
        cursor.execute(
            "CREATE TABLE parent (a int PRIMARY KEY); CREATE TABLE other (b int);"
            "CREATE TABLE child (PRIMARY KEY (a)) INHERITS (other, parent);"
            "CREATE TABLE single (a int)"
        )

    tables = {table.name: table for table in read_catalog(source).tables}

    assert tables["child"].parents == (("public", "other"), ("public", "parent"))
    assert {name for name, table in tables.items() if table.only} == {"parent", "other", "child"}
