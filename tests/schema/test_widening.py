from __future__ import annotations

from dataclasses import replace

import pytest

from tenantferry.fleet import Tenant
from tenantferry.schema.model import (
    Check,
    Column,
    Exclusion,
    ForeignKey,
    Index,
    Key,
    Protection,
    Table,
)
from tenantferry.schema.rendering import (
    render_foreign_keys,
    render_indexes,
    render_protection,
    render_replica_identity,
    render_table,
)
from tenantferry.schema.widening import TENANT_COLUMN, keep_narrow, widen

ID = Column("id", "bigint", True)
TABLE = Table("public", "t", (ID,), ("id",), "d", keys=(Key("t_pkey", ("id",), True),))


def test_render_table_writes_the_multi_tenant_table(acme: Tenant) -> None:
    table = Table(
        "public",
        "user",
        (
            Column("id", "integer", True, identity="a", sequence=("public", "user's_seq")),
            Column("Total", "numeric", False, default="(id * 2)", generated="s"),
        ),
        ("id",),
        "d",
        keys=(Key("user_pkey", ("id",), primary=True),),
        checks=(Check("positive", "CHECK ((id > 0))"),),
        exclusions=(Exclusion("alone", "gist", (("id", "="),), "(id > 9)"),),
    )

    text = render_table(widen(table, acme))

    assert (
        text
        == """CREATE TABLE public."user" (
    id integer DEFAULT app.next_value('user''s_seq'::text) NOT NULL,
    "Total" numeric GENERATED ALWAYS AS ((id * 2)) STORED,
    tenant_id uuid DEFAULT app.current_tenant() NOT NULL,
    CONSTRAINT user_pkey PRIMARY KEY (tenant_id, id),
    CONSTRAINT positive CHECK ((id > 0)),
    CONSTRAINT alone EXCLUDE USING gist (tenant_id WITH =, id WITH =) WHERE ((id > 9))
)"""
    )


@pytest.mark.parametrize(
    ("default", "expected"),
    [
        ("nextval('public.s'::regclass)", "app.next_value('s'::text)"),
        ("nextval('public.\"S''s.x\"'::regclass)", "app.next_value('S''s.x'::text)"),
        (
            "('A'::text || nextval('public.s'::regclass))",
            "('A'::text || app.next_value('s'::text))",
        ),
        ("now()", "now()"),
        (None, None),
    ],
    ids=["serial", "quoted", "inside an expression", "no sequence", "no default"],
)
def test_widen_takes_values_from_the_tenants_sequence(
    acme: Tenant, default: str | None, expected: str | None
) -> None:
    column = replace(ID, default=default, sequence=("public", "s"))

    widened = widen(replace(TABLE, columns=(column,)), acme)

    assert widened.columns == (replace(ID, default=expected, sequence=widened.columns[0].sequence),
        TENANT_COLUMN)  # fmt: skip


FOREIGN_KEY = ForeignKey("t_fkey", ("a", "b"), "public", "other", ("x", "y"))


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (FOREIGN_KEY, ""),
        (
            replace(FOREIGN_KEY, on_delete="c", on_update="c"),
            " ON UPDATE CASCADE ON DELETE CASCADE",
        ),
        (replace(FOREIGN_KEY, on_delete="n"), " ON DELETE SET NULL (a, b)"),
        (replace(FOREIGN_KEY, on_delete="d"), " ON DELETE SET DEFAULT (a, b)"),
        (replace(FOREIGN_KEY, on_delete="n", set_columns=("b",)), " ON DELETE SET NULL (b)"),
        (replace(FOREIGN_KEY, deferrable=True), " DEFERRABLE"),
        (
            replace(FOREIGN_KEY, deferrable=True, initially_deferred=True, validated=False),
            " DEFERRABLE INITIALLY DEFERRED NOT VALID",
        ),
    ],
    ids=["plain", "cascade", "set null", "set default", "set one null", "deferrable", "not valid"],
)
def test_widen_puts_the_tenant_into_foreign_keys(
    acme: Tenant, key: ForeignKey, expected: str
) -> None:
    (text,) = render_foreign_keys(widen(replace(TABLE, foreign_keys=(key,)), acme))

    assert text == (
        "ALTER TABLE public.t ADD CONSTRAINT t_fkey FOREIGN KEY (tenant_id, a, b)"
        f" REFERENCES public.other (tenant_id, x, y){expected}"
    )


def test_widen_keeps_foreign_keys_to_shared_tables_narrow(acme: Tenant) -> None:
    key = ForeignKey("t_fkey", ("a",), "public", "countries", ("code",), on_delete="n")

    (widened,) = widen(replace(TABLE, foreign_keys=(key,)), acme).foreign_keys

    assert widened == key


def test_widen_turns_match_full_into_a_check(acme: Tenant) -> None:
    columns = (Column("a", "int", False), Column("b", "int", False))
    key = replace(FOREIGN_KEY, match_full=True)

    widened = widen(replace(TABLE, columns=columns, foreign_keys=(key,)), acme)

    assert not widened.foreign_keys[0].match_full
    assert widened.checks == (
        Check("t_fkey_match_full", "CHECK ((num_nulls(a, b) = ANY (ARRAY[0, 2])))"),
    )


def test_widen_leads_ordered_indexes_with_the_tenant(acme: Tenant) -> None:
    indexes = (
        Index("a", "btree", ("lower(x) DESC",), include=("y",), predicate="(z > 0)"),
        Index("b", "btree", ("x",), unique=True, nulls_not_distinct=True),
        Index("c", "gin", ("x",)),
        Index("d", "brin", ("x",)),
        Index("e", "hash", ("x",)),
    )

    texts = list(render_indexes(widen(replace(TABLE, indexes=indexes), acme)))

    assert texts == [
        "CREATE INDEX a ON public.t USING btree (tenant_id, lower(x) DESC)"
        " INCLUDE (y) WHERE (z > 0)",
        "CREATE UNIQUE INDEX b ON public.t USING btree (tenant_id, x) NULLS NOT DISTINCT",
        "CREATE INDEX c ON public.t USING gin (x)",
        "CREATE INDEX d ON public.t USING brin (x)",
        "CREATE INDEX e ON public.t USING hash (x)",
    ]


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (TABLE, []),
        (replace(TABLE, replica_identity="f"), ["ALTER TABLE public.t REPLICA IDENTITY FULL"]),
        (
            replace(TABLE, replica_identity="i", keys=(Key("k", ("id",), False),)),
            ["ALTER TABLE public.t REPLICA IDENTITY USING INDEX k"],
        ),
        (
            replace(
                TABLE, replica_identity="i", keys=(), indexes=(Index("i", "btree", ("id",), True),)
            ),
            ["ALTER TABLE public.t REPLICA IDENTITY USING INDEX i"],
        ),
    ],
    ids=["primary key", "full", "unique constraint", "unique index"],
)
def test_render_replica_identity_keeps_that_of_the_source(
    acme: Tenant, table: Table, expected: list[str]
) -> None:
    assert list(render_replica_identity(widen(table, acme))) == expected


def test_render_protection_never_grants_truncate(acme: Tenant) -> None:
    texts = list(render_protection(widen(TABLE, acme), Protection()))

    assert texts[0] == "ALTER TABLE public.t ENABLE ROW LEVEL SECURITY"
    assert texts[1] == "ALTER TABLE public.t FORCE ROW LEVEL SECURITY"
    assert texts[3] == "GRANT DELETE, INSERT, SELECT, UPDATE ON public.t TO tenantferry_app"


def test_keep_narrow_adds_no_tenant() -> None:
    column = replace(ID, default="nextval('public.t_id_seq'::regclass)")

    table = keep_narrow(replace(TABLE, columns=(column,)))

    assert table.columns == (replace(ID, identity="d"),)
    assert list(render_protection(table, Protection())) == [
        "GRANT SELECT ON public.t TO tenantferry_app"
    ]
