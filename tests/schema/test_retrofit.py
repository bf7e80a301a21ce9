from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Protocol

import pytest
from psycopg2 import errors
from psycopg2.extensions import connection

from tenantferry.connections import ConnectionParams, open_connection
from tenantferry.errors import PermanentError, TransientError
from tenantferry.fleet import Tenant
from tenantferry.schema.catalog import read_catalog
from tenantferry.schema.findings import Verdict
from tenantferry.schema.model import Table
from tenantferry.schema.retrofit import RetrofitPlan, apply_retrofit, expected_tables


class Pair(Protocol):
    """What the fixture of that name gives."""

    @property
    def source(self) -> connection: ...
    @property
    def target(self) -> connection: ...
    def change(self, side: connection, statement: str) -> None: ...
    def plan(self, tenant: Tenant) -> RetrofitPlan: ...


Plan = Callable[[Tenant], RetrofitPlan]
Prepare = Callable[[Tenant], tuple[str, ...]]


def _run(conn: connection, statement: str) -> None:
    with conn.cursor() as cursor:
        cursor.execute(statement)


def _find_drift(plan: RetrofitPlan) -> set[tuple[str, str]]:
    return {(finding.verdict.value, finding.subject) for finding in plan.drift}


@pytest.mark.usefixtures("prepared")
def test_plan_retrofit_finds_nothing_to_do_the_second_time(plan: Plan, acme: Tenant) -> None:
    again = plan(acme)

    assert again.statements == ()
    assert again.drift == ()


@pytest.mark.usefixtures("prepared")
def test_the_target_has_exactly_the_expected_tables(
    source: connection, target: connection, acme: Tenant
) -> None:
    expected = {t.qualified: t for t in expected_tables(read_catalog(source), acme)}
    actual = {t.qualified: t for t in read_catalog(target).tables}

    assert actual.keys() == expected.keys()
    for name, table in expected.items():
        if name != ("public", "countries"):
            assert _comparable(actual[name]) == _comparable(table)


def _comparable(table: Table) -> tuple[object, ...]:
    return (
        [(c.name, c.type_name, c.default, c.not_null, c.collation) for c in table.columns],
        set(table.keys),
        set(table.foreign_keys),
        table.checks,
        table.exclusions,
        set(table.indexes),
        table.triggers,
        table.comment,
        table.protection,
        table.key,
    )


@pytest.mark.usefixtures("prepared")
def test_the_tenant_column_is_the_last(target: connection) -> None:
    for table in read_catalog(target).tables:
        names = [column.name for column in table.columns]
        assert ("tenant_id" in names) is (table.name != "countries")
        assert "tenant_id" not in names[:-1]


def test_apply_retrofit_changes_nothing_when_a_statement_fails(
    sample: connection, source: connection, target: connection, plan: Plan, acme: Tenant
) -> None:
    _run(target, "CREATE TABLE public.countries (code char(2) NOT NULL, name text NOT NULL)")
    planned = plan(acme)
    target.autocommit = False

    with pytest.raises(errors.InvalidForeignKey), target:
        apply_retrofit(target, planned)

    target.autocommit = True
    catalog = read_catalog(target)
    assert [table.name for table in catalog.tables] == ["countries"]
    assert catalog.enums == ()


@pytest.mark.usefixtures("prepared")
def test_apply_retrofit_plans_again_when_another_tenant_was_first(
    target: connection, plan: Plan, acme: Tenant
) -> None:
    _run(target, "DROP VIEW public.a_first")
    planned = plan(acme)
    _run(target, planned.statements[0])

    applied = apply_retrofit(target, planned)

    assert len(applied) == len(planned.statements) - 1


@pytest.mark.usefixtures("prepared")
def test_apply_retrofit_refuses_drift(
    sample: connection, target: connection, plan: Plan, acme: Tenant
) -> None:
    _run(sample, "ALTER TABLE orders ADD COLUMN extra int")

    with pytest.raises(PermanentError, match="does not fit") as caught:
        apply_retrofit(target, plan(acme))

    assert "public.orders.extra" in caught.value.detail


@pytest.mark.parametrize(
    ("statement", "subject"),
    [
        ("ALTER TABLE orders ADD COLUMN extra int", "public.orders.extra"),
        ("ALTER TABLE orders DROP COLUMN tags", "public.orders.tags"),
        ("ALTER TABLE orders ALTER COLUMN tags TYPE varchar(9)[]", "public.orders.tags"),
        ("ALTER TABLE orders ALTER COLUMN tags SET NOT NULL", "public.orders.tags"),
        ("ALTER TABLE orders ALTER COLUMN status DROP NOT NULL", "public.orders.status"),
        ('ALTER TABLE customers ALTER COLUMN "Slug" DROP EXPRESSION', "public.customers.Slug"),
        ('ALTER TABLE orders ALTER reference TYPE text COLLATE "C"', "public.orders.reference"),
        (
            "ALTER TABLE orders DROP COLUMN tags, ADD COLUMN tags text[];"
            "ALTER TABLE orders DROP COLUMN total, ADD COLUMN total billing.money_amount",
            "public.orders",
        ),
        ("ALTER TABLE orders ADD UNIQUE (customer, status)", "public.orders"),
        ("ALTER TABLE orders DROP CONSTRAINT orders_number_key", "public.orders"),
        ("DROP INDEX orders_open_key", "public.orders"),
        ('ALTER TABLE billing."Booking Slots" DROP CONSTRAINT no_overlap', "billing.Booking Slots"),
        ("ALTER TYPE status ADD VALUE 'lost'", "public.status"),
        ("ALTER TYPE status RENAME VALUE 'paid' TO 'settled'", "public.status"),
        (
            "ALTER TYPE billing.money_amount ALTER ATTRIBUTE currency TYPE char(3)",
            "billing.money_amount",
        ),
        ("ALTER DOMAIN email ADD CHECK (VALUE <> 'x')", "public.email"),
    ],
    ids=[
        "column added", "column dropped", "type", "not null", "nullable", "generated", "collation",
        "order", "unique added", "unique dropped", "unique index dropped", "exclusion dropped",
        "enum label added", "enum label renamed", "composite", "domain",
    ],
)  # fmt: skip
def test_plan_retrofit_finds_what_does_not_fit(
    pair: Pair, globex: Tenant, statement: str, subject: str
) -> None:
    pair.change(pair.source, "DROP VIEW a_first, order_totals; DROP FUNCTION newest_orders")
    if "money_amount ALTER" in statement:
        pair.change(pair.source, "ALTER TABLE orders DROP COLUMN total")
    pair.change(pair.source, statement)

    found = _find_drift(pair.plan(globex))

    assert ("error", subject) in found
    assert {name for verdict, name in found if verdict == "error"} <= {subject,
        "public.orders.total"}  # fmt: skip


@pytest.mark.parametrize(
    ("statement", "subject"),
    [
        ("ALTER TABLE orders ALTER COLUMN customer SET DEFAULT 1", "public.orders.customer"),
        ("ALTER TABLE customers DROP CONSTRAINT customers_name_check", "public.customers"),
        ("DROP INDEX customers_lower_idx", "public.customers"),
        ("ALTER TABLE orders DROP CONSTRAINT orders_customer_fkey", "public.orders"),
        ("DROP TRIGGER customers_touch ON customers", "public.customers"),
        ("ALTER TABLE customers DISABLE TRIGGER customers_touch", "public.customers"),
        ("COMMENT ON TABLE customers IS 'others'", "public.customers"),
        ("COMMENT ON COLUMN customers.id IS 'others'", "public.customers.id"),
        (
            "CREATE OR REPLACE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql"
            " AS $$ BEGIN RETURN NULL; END $$",
            "public.touch()",
        ),
        (
            "CREATE OR REPLACE VIEW order_totals AS"
            " SELECT customer, count(*) + 1 AS orders FROM orders GROUP BY customer",
            "public.order_totals",
        ),
    ],
    ids=[
        "default", "check", "index", "foreign key", "trigger", "trigger disabled", "table comment",
        "column comment", "function", "view",
    ],
)  # fmt: skip
def test_plan_retrofit_warns_of_what_behaves_differently(
    pair: Pair, globex: Tenant, statement: str, subject: str
) -> None:
    pair.change(pair.source, statement)

    assert _find_drift(pair.plan(globex)) == {("warning", subject)}


def test_gotcha_27_plan_retrofit_compares_enum_labels_in_order(pair: Pair, globex: Tenant) -> None:
    pair.change(pair.source, "ALTER TYPE status ADD VALUE 'lost' BEFORE 'new'")
    pair.change(pair.target, "ALTER TYPE status ADD VALUE 'lost'")

    assert _find_drift(pair.plan(globex)) == {("error", "public.status")}


def test_plan_retrofit_allows_a_label_that_only_the_target_has(pair: Pair, globex: Tenant) -> None:
    pair.change(pair.target, "ALTER TYPE status ADD VALUE 'lost' BEFORE 'paid'")

    assert _find_drift(pair.plan(globex)) == {("warning", "public.status")}


@pytest.mark.usefixtures("prepared")
def test_plan_retrofit_creates_a_table_that_only_a_later_tenant_has(
    sample: connection, prepare: Prepare, plan: Plan, globex: Tenant
) -> None:
    _run(sample, "CREATE TABLE extra (id int PRIMARY KEY, orders int REFERENCES orders)")

    statements = prepare(globex)

    assert statements[0].startswith("CREATE TABLE public.extra")
    assert plan(globex).statements == ()


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE public.orders DISABLE ROW LEVEL SECURITY",
        "ALTER TABLE public.orders NO FORCE ROW LEVEL SECURITY",
        "DROP POLICY tenant_isolation ON public.orders",
        "REVOKE UPDATE ON public.orders FROM tenantferry_app",
        "REVOKE SELECT ON public.a_first FROM tenantferry_app",
    ],
    ids=["disabled", "not forced", "no policy", "privilege", "view privilege"],
)
def test_plan_retrofit_restores_the_isolation(pair: Pair, acme: Tenant, statement: str) -> None:
    pair.change(pair.target, statement)

    assert len(apply_retrofit(pair.target, pair.plan(acme))) == 1
    assert pair.plan(acme).statements == ()


@pytest.mark.parametrize(
    ("statement", "subject"),
    [
        ("CREATE POLICY p ON public.orders USING (true)", "public.orders"),
        ("ALTER POLICY tenant_isolation ON public.orders USING (true)", "public.orders"),
        ("GRANT TRUNCATE ON public.orders TO PUBLIC", "public.orders"),
        ("ALTER VIEW public.a_first RESET (security_invoker)", "public.a_first"),
        (
            "ALTER TABLE public.orders ALTER tenant_id SET DEFAULT gen_random_uuid()",
            "public.orders.tenant_id",
        ),
    ],
    ids=["policy", "weaker policy", "truncate", "view", "tenant default"],
)
def test_plan_retrofit_finds_holes_in_the_isolation(
    pair: Pair, acme: Tenant, statement: str, subject: str
) -> None:
    pair.change(pair.target, statement)

    assert ("error", subject) in _find_drift(pair.plan(acme))


@pytest.mark.parametrize(
    ("statement", "subject"),
    [
        ("CREATE TABLE t (id int PRIMARY KEY, tenant_id int)", "public.t"),
        ("CREATE TABLE t (id int PRIMARY KEY, f int REFERENCES flags)", "public.t"),
        (
            "CREATE TABLE t (id int PRIMARY KEY, o int REFERENCES orders ON UPDATE SET NULL)",
            "public.t",
        ),
        ("ALTER TABLE countries ADD COLUMN o int REFERENCES orders", "public.countries"),
        (
            "CREATE TABLE t (id int PRIMARY KEY) PARTITION BY LIST (id);"
            " CREATE UNLOGGED TABLE t1 PARTITION OF t FOR VALUES IN (1)",
            "public.t",
        ),
        ("CREATE UNLOGGED TABLE t (id int PRIMARY KEY)", "public.t"),
        ("CREATE TABLE t () INHERITS (flags)", "public.t"),
        (
            "CREATE FUNCTION gap(a float8, b float8) RETURNS float8 IMMUTABLE LANGUAGE sql"
            " AS 'SELECT a - b'; CREATE TYPE span AS RANGE (subtype = float8, subtype_diff = gap)",
            "public.span",
        ),
        (
            "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS"
            " 'BEGIN RETURN NEW; END';"
            "CREATE TRIGGER t BEFORE UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION f()",
            "public.orders",
        ),
        ("CREATE VIEW v AS SELECT id, number FROM orders GROUP BY id", "public.v"),
        ("CREATE SCHEMA t_acme", "t_acme"),
    ],
    ids=[
        "tenant_id", "reference to skipped", "on update set null", "shared to tenant",
        "partitioned", "unlogged", "inheritance", "range type", "security definer trigger",
        "view on primary key", "schema name",
    ],
)  # fmt: skip
def test_plan_retrofit_reports_what_cannot_be_carried(
    pair: Pair, acme: Tenant, statement: str, subject: str
) -> None:
    pair.change(pair.source, statement)

    assert ("error", subject) in _find_drift(pair.plan(acme))


def test_plan_retrofit_reports_a_missing_shared_table(
    sample: connection, plan: Plan, acme: Tenant
) -> None:
    blockers = plan(acme).blockers

    assert [(f.check, f.subject) for f in blockers] == [("shared table", "public.countries")]


def test_plan_retrofit_leaves_security_definer_functions_behind(
    sample: connection, shared_tables: None, plan: Plan, prepare: Prepare, acme: Tenant
) -> None:
    _run(sample, "CREATE FUNCTION hole() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1'")

    found = plan(acme)

    assert {(f.verdict, f.subject) for f in found.drift if f.check == "isolation"} == {
        (Verdict.WARNING, "public.hole()")
    }
    assert not any("hole" in statement for statement in prepare(acme))


def test_match_full_lives_on_as_a_check(
    source_owner: connection, prepare: Prepare, plan: Plan, target: connection, acme: Tenant
) -> None:
    _run(
        source_owner,
        "CREATE TABLE a (x int, y int, PRIMARY KEY (x, y));"
        "CREATE TABLE b (id int PRIMARY KEY, x int, y int,"
        " FOREIGN KEY (x, y) REFERENCES a MATCH FULL)",
    )
    prepare(acme)

    with pytest.raises(errors.CheckViolation):
        _run(target, f"INSERT INTO public.b VALUES (1, 1, NULL, '{acme.id}')")
    _run(target, f"INSERT INTO public.b VALUES (1, NULL, NULL, '{acme.id}')")
    assert (plan(acme).statements, plan(acme).drift) == ((), ())


def test_row_types_procedures_and_parsed_bodies_are_carried(
    source_owner: connection, prepare: Prepare, plan: Plan, acme: Tenant
) -> None:
    _run(
        source_owner,
        "CREATE TABLE a (id int PRIMARY KEY);"
        "CREATE FUNCTION f(a) RETURNS int LANGUAGE sql AS 'SELECT $1.id';"
        "CREATE FUNCTION g() RETURNS bigint LANGUAGE sql BEGIN ATOMIC SELECT count(*) FROM a; END;"
        "CREATE PROCEDURE p(OUT x int) LANGUAGE plpgsql AS 'BEGIN x := 1; END';"
        "CREATE VIEW v AS SELECT f(a) AS one, g() AS two FROM a",
    )

    prepare(acme)

    assert plan(acme).statements == ()
    assert plan(acme).drift == ()


@pytest.mark.usefixtures("prepared")
def test_apply_retrofit_gives_up_before_clients_queue_behind_it(
    *,
    sample: connection,
    target: connection,
    plan: Plan,
    target_params: ConnectionParams,
    globex: Tenant,
) -> None:
    _run(sample, "CREATE TABLE extra (id int PRIMARY KEY, orders int REFERENCES orders)")
    planned = plan(globex)
    with closing(open_connection(target_params, purpose="test")) as client:
        _run(client, "LOCK TABLE public.orders IN ROW EXCLUSIVE MODE")
        target.autocommit = False

        with pytest.raises(TransientError, match="could not lock"), target:
            apply_retrofit(target, planned)

        target.autocommit = True


def test_apply_retrofit_makes_one_table_of_a_partitioned_one(
    sample: connection, shared_tables: None, target: connection, prepare: Prepare, acme: Tenant
) -> None:
    _run(
        sample,
        "CREATE TABLE visits (id int, day date, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);"
        " CREATE TABLE visits_1 PARTITION OF visits DEFAULT; CREATE INDEX ON visits (day)",
    )

    prepare(acme)

    catalog = read_catalog(target)
    table = catalog.find_table("public", "visits")
    assert table is not None
    assert (table.is_partitioned, catalog.partitions) == (False, ())
    assert [key.columns for key in table.keys] == [("tenant_id", "id", "day")]
    assert [index.elements for index in table.indexes] == [("tenant_id", "day")]


def test_apply_retrofit_lets_a_child_inherit_from_its_parent(
    sample: connection, shared_tables: None, target: connection, prepare: Prepare, acme: Tenant
) -> None:
    _run(
        sample,
        "CREATE TABLE child (extra text, PRIMARY KEY (id)) INHERITS (orders);"
        " CREATE TABLE pairs (a int, b int, id int PRIMARY KEY, UNIQUE (a, b),"
        ' CONSTRAINT "full" FOREIGN KEY (a, b) REFERENCES pairs (a, b) MATCH FULL);'
        " CREATE TABLE more (PRIMARY KEY (id)) INHERITS (pairs)",
    )

    prepare(acme)

    tables = {table.name: table for table in read_catalog(target).tables}
    assert tables["child"].parents == (("public", "orders"),)
    assert tables["more"].parents == (("public", "pairs"),)
    assert tables["child"].columns[-1].name == "tenant_id"


def test_plan_retrofit_finds_a_child_that_inherits_on_one_side_only(
    pair: Pair, acme: Tenant, globex: Tenant
) -> None:
    pair.change(pair.source, "CREATE TABLE child (PRIMARY KEY (id)) INHERITS (orders)")
    apply_retrofit(pair.target, pair.plan(acme))
    pair.change(pair.source, "ALTER TABLE child NO INHERIT orders")

    assert _find_drift(pair.plan(globex)) == {("error", "public.child")}


def test_apply_retrofit_makes_types_behind_those_that_they_are_made_of(
    sample: connection, shared_tables: None, prepare: Prepare, plan: Plan, acme: Tenant
) -> None:
    _run(
        sample,
        'CREATE TYPE span AS RANGE (subtype = text, collation = "C");'
        " CREATE TYPE stay AS (during span); CREATE DOMAIN long_stay AS stay NOT NULL;"
        " CREATE TYPE days AS RANGE (subtype = float8, subtype_diff = float8mi,"
        " multirange_type_name = \"Many Days\"); COMMENT ON TYPE days IS 'of a stay';"
        ' CREATE TABLE stays (id int PRIMARY KEY, stay long_stay, days "Many Days")',
    )
    # What is a part of it now was made after it.
    _run(sample, "CREATE TYPE mood AS ENUM ('ok'); ALTER TYPE stay ADD ATTRIBUTE moods mood[]")

    prepare(acme)

    assert plan(acme).statements == ()
    assert plan(acme).drift == ()


def test_plan_retrofit_finds_a_range_type_that_differs(pair: Pair, globex: Tenant) -> None:
    pair.change(pair.source, "CREATE TYPE span AS RANGE (subtype = float8)")
    pair.change(pair.target, "CREATE TYPE span AS RANGE (subtype = float4)")

    assert _find_drift(pair.plan(globex)) == {("error", "public.span")}
