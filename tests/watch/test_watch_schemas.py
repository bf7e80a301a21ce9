from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from psycopg2.extensions import connection

from tenantferry.connections import ConnectionParams
from tenantferry.schema.catalog import read_catalog
from tenantferry.schema.retrofit import apply_retrofit, plan_retrofit
from tenantferry.watch.schemas import check_schemas
from tenantferry.watch.watched import Watched

Declare = Callable[..., Watched]
Register = Callable[..., None]
Run = Callable[..., list[tuple[Any, ...]]]
Ask = Callable[[str], None]


@pytest.fixture
def on_source(source_owner: connection) -> Ask:
    """Run a statement as the application's owner."""

    def ask(statement: str) -> None:
        with source_owner.cursor() as cursor:
            cursor.execute(statement)

    return ask


@pytest.fixture
def watched(declare: Declare, on_source: Ask, source: connection, target: connection) -> Watched:
    """A tenant whose tables the target has."""
    on_source("CREATE TYPE public.mood AS ENUM ('sad', 'ok')")
    on_source("CREATE TABLE public.items (id bigint PRIMARY KEY, name text, mood public.mood)")
    watched = declare()
    with target.cursor() as cursor:
        cursor.execute("BEGIN")
        plan = plan_retrofit(
            read_catalog(source), read_catalog(target), watched.fleet.tenants["acme"]
        )
        apply_retrofit(target, plan)
        cursor.execute("COMMIT")
    return watched


def find(watched: Watched) -> list[str]:
    return [f"{found.subject}: {found.detail}" for found in check_schemas(watched).problems]


@pytest.mark.parametrize("phase", ["prepared", "backfilling", "streaming", "validated"])
def test_a_schema_that_is_as_it_was_prepared_is_no_finding(
    watched: Watched, register: Register, phase: str
) -> None:
    register(phase)

    report = check_schemas(watched)

    assert report.findings == []
    assert report.looks[0].numbers == {"tables": 1, "changes": 0}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("ALTER TABLE public.items ADD COLUMN colour text", "public.items.colour"),
        ("ALTER TABLE public.items ALTER COLUMN name TYPE varchar(9)", "public.items.name"),
        ("ALTER TABLE public.items RENAME COLUMN name TO title", "public.items.title"),
        ("CREATE TABLE public.more (id bigint PRIMARY KEY)", "CREATE TABLE public.more"),
        (
            "ALTER TYPE public.mood ADD VALUE 'glad'",
            "public.mood: The labels should be sad, ok, glad and are sad, ok.",
        ),
        (
            "ALTER TYPE public.mood RENAME VALUE 'ok' TO 'fine'",
            "public.mood: The labels should be sad, fine and are sad, ok.",
        ),
    ],
    ids=["column", "type", "renamed column", "table", "enum", "renamed label"],
)
def test_a_source_that_changed_its_schema_is_a_finding(
    watched: Watched, register: Register, on_source: Ask, change: str, told: str
) -> None:
    register("streaming")
    on_source(change)

    (finding,) = find(watched)

    assert finding.startswith('tenant "acme": The schema of its source changed')
    assert told in finding


def test_rows_of_a_table_that_the_source_dropped_are_a_finding(
    watched: Watched, register: Register, on_source: Ask, run: Run
) -> None:
    register("streaming")
    tenant_id = str(watched.fleet.tenants["acme"].id)
    run("INSERT INTO public.items (tenant_id, id) VALUES (%s, 1)", tenant_id)
    on_source("DROP TABLE public.items")

    report = check_schemas(watched)

    (finding,) = report.problems
    assert 'rows in table "public.items" of the target' in finding.detail
    assert f"tenant_id = '{tenant_id}' from public.items" in finding.hint


@pytest.mark.parametrize("phase", ["registered", "live", "retired"])
def test_a_schema_that_nobody_needs_alike_is_no_finding(
    watched: Watched, register: Register, on_source: Ask, phase: str
) -> None:
    register(phase)
    on_source("ALTER TABLE public.items ADD COLUMN colour text")

    assert find(watched) == []


@pytest.fixture
def in_grace(watched: Watched, register: Register, run: Run) -> Watched:
    """The same tenant, live, and able to go back."""
    register("live")
    run(
        "INSERT INTO tenantferry.write_pauses (tenant, deadline, resumed_at)"
        " VALUES ('acme', now(), now())"
    )
    run(
        "INSERT INTO tenantferry.graces (tenant, attempt, start_lsn, ends_at)"
        " SELECT 'acme', max(id), '0/1', now() + interval '1 day' FROM tenantferry.write_pauses"
    )
    return watched


def test_a_target_that_changed_in_grace_is_a_finding(in_grace: Watched, run: Run) -> None:
    before = find(in_grace)
    run("ALTER TABLE public.items ADD COLUMN colour text")

    (finding,) = find(in_grace)

    assert before == []
    assert "not alike any more, so it could not go back" in finding
    assert "Only the target has this column." in finding


def test_rows_of_a_tenant_in_grace_that_its_source_has_no_table_for_are_a_finding(
    in_grace: Watched, run: Run
) -> None:
    run("CREATE TABLE public.later (id bigint, tenant_id uuid)")
    without_rows = find(in_grace)
    tenant_id = str(in_grace.fleet.tenants["acme"].id)
    run("INSERT INTO public.later VALUES (1, %s)", tenant_id)

    (finding,) = find(in_grace)

    assert without_rows == []
    assert 'rows in table "public.later" of the target' in finding


def test_a_source_that_is_gone_is_unknown_and_no_change(
    in_grace: Watched, declare: Declare
) -> None:
    gone = ConnectionParams("127.0.0.1", 1, "x", "gone")

    report = check_schemas(declare(sources={"acme": gone}))

    assert [finding.verdict for finding in report.findings] == ["warning"]
    assert report.looks[0].numbers == {"changes": None}
