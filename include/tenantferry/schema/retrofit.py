"""
Plan and apply the multi-tenant schema: the first tenant creates, later ones are compared.

The plan is pure: from two catalogs to SQL that people can read. Applying it makes the plan again
from the target as it then is, so that two tenants prepared at once do not both create.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from psycopg2 import errors
from psycopg2.extensions import connection

from tenantferry.errors import PermanentError, TransientError
from tenantferry.fleet import TableKind, Tenant
from tenantferry.schema.catalog import read_catalog
from tenantferry.schema.comparison import compare_shared_tables, compare_tables
from tenantferry.schema.database import Catalog, Extension
from tenantferry.schema.definitions import (
    render_extension,
    render_schema,
    render_schema_usage,
)
from tenantferry.schema.drift import (
    plan_functions,
    plan_types,
    plan_views,
)
from tenantferry.schema.findings import Finding, Verdict, error
from tenantferry.schema.isolation import ensure_isolation
from tenantferry.schema.limits import find_obstacles
from tenantferry.schema.model import Protection, Table
from tenantferry.schema.rendering import (
    render_comments,
    render_foreign_keys,
    render_indexes,
    render_inheritance,
    render_protection,
    render_replica_identity,
    render_table,
    render_trigger,
)
from tenantferry.schema.widening import keep_narrow, widen

# A function's body may name a table that comes later. Whoever waits for a lock of a live table
# makes that table's clients queue behind; they must not notice.
_SETTINGS = "SET LOCAL check_function_bodies = off; SET LOCAL lock_timeout = '2s'"
_BTREE_GIST = Extension("btree_gist", "public", "")


@dataclass(frozen=True, slots=True)
class RetrofitPlan:
    """
    What it takes until the target can hold a tenant.

    :ivar statements: SQL in the order it runs; empty where the target has all.
    :ivar drift: where source and target do not fit, and what cannot be carried.
    """

    tenant: Tenant
    source: Catalog
    statements: tuple[str, ...]
    drift: tuple[Finding, ...]

    @property
    def blockers(self) -> tuple[Finding, ...]:
        """Findings that forbid to apply it."""
        return tuple(finding for finding in self.drift if finding.verdict is Verdict.ERROR)

    @property
    def changes(self) -> tuple[str, ...]:
        """What is not as it was prepared: empty for a target that holds the tenant as it is."""
        return (*(f"{f.subject}: {f.detail}" for f in self.blockers), *self.statements)


def plan_retrofit(source: Catalog, target: Catalog, tenant: Tenant) -> RetrofitPlan:
    """Plan what the target needs for a tenant, and find where the two do not fit."""
    expected = expected_tables(source, tenant)
    there = {table.qualified: table for table in target.tables}
    missing = [table for table in expected if table.qualified not in there]
    types = plan_types(source, target)
    early = plan_functions(source, target, needs_tables=False)
    late = plan_functions(source, target, needs_tables=True)
    views = plan_views(source, target, tenant)
    statements = (
        *_plan_schemas(source, target),
        *_plan_extensions(source, target, expected),
        *types.statements,
        *early.statements,
        *_plan_tables(missing),
        *late.statements,
        *_plan_triggers(missing, source, target),
        *views.statements,
        *_plan_protection(expected, there),
    )
    drift = (
        *find_obstacles(source, target, tenant),
        *types.findings,
        *early.findings,
        *late.findings,
        *_compare(expected, there, tenant),
        *views.findings,
    )
    return RetrofitPlan(tenant, source, statements, drift)


def apply_retrofit(target: connection, plan: RetrofitPlan) -> tuple[str, ...]:
    """
    Make the target's schema able to hold the tenant.

    Waits for other preparations of the same target.

    :param target: open transaction; the caller commits.
    :return: the statements that ran: those of the plan, without what another tenant's
        preparation made in the meantime.
    :raises PermanentError: if source and target do not fit.
    :raises TransientError: if transactions of other tenants hold a table for too long.
    """
    ensure_isolation(target)
    current = plan_retrofit(plan.source, read_catalog(target), plan.tenant)
    if current.blockers:
        lines = [f"{f.subject}: {f.detail}" for f in current.blockers]
        raise PermanentError(
            f'the target does not fit tenant "{plan.tenant.key}"',
            detail=" ".join(lines),
            hint="Run the preflight for what to do about each.",
        )
    with target.cursor() as cursor:
        cursor.execute(_SETTINGS)
        for statement in current.statements:
            try:
                cursor.execute(statement)
            except errors.LockNotAvailable:
                raise TransientError(
                    "could not lock a table of the target",
                    detail=f"Other tenants' transactions hold it, against: {statement}",
                    hint="Retry when fewer long transactions run. Nothing was changed.",
                ) from None
    return current.statements


def expected_tables(source: Catalog, tenant: Tenant) -> tuple[Table, ...]:
    """Return the tables that the target has to have for a tenant."""
    expected = []
    for table in source.tables:
        kind = tenant.kind_of(*table.qualified)
        if kind is TableKind.TENANT:
            expected.append(widen(table, tenant))
        elif kind is TableKind.SHARED:
            expected.append(keep_narrow(table))
    return tuple(expected)


def _plan_schemas(source: Catalog, target: Catalog) -> Iterator[str]:
    for name in source.schemas:
        if name not in target.schemas:
            yield render_schema(name)
        if name not in target.usable_schemas:
            yield render_schema_usage(name)


def _plan_extensions(
    source: Catalog, target: Catalog, expected: tuple[Table, ...]
) -> Iterator[str]:
    present = {extension.name for extension in target.extensions}
    wanted = {extension.name: extension for extension in source.extensions}
    if any(e.method == "gist" for table in expected for e in table.exclusions):
        # GiST has no operator class for uuid of its own.
        wanted.setdefault(_BTREE_GIST.name, _BTREE_GIST)
    for name, extension in wanted.items():
        if name not in present:
            yield render_extension(extension)


def _plan_tables(missing: list[Table]) -> Iterator[str]:
    """Write tables first, then what refers to others: foreign keys may form circles."""
    for table in missing:
        yield render_table(table)
        yield from render_indexes(table)
        yield from render_replica_identity(table)
        yield from render_comments(table)
    for table in missing:
        yield from render_inheritance(table)
    for table in missing:
        yield from render_foreign_keys(table)


def _plan_triggers(missing: list[Table], source: Catalog, target: Catalog) -> Iterator[str]:
    carried = {(f.schema, f.name) for f in source.functions if f.is_carried}
    carried |= {(f.schema, f.name) for f in target.functions}
    own = {(f.schema, f.name) for f in source.functions}
    for table in missing:
        for trigger in table.triggers:
            # One that is not of the application's functions is an extension's.
            if trigger.function in carried or trigger.function not in own:
                yield from render_trigger(table, trigger)


def _plan_protection(
    expected: tuple[Table, ...], there: dict[tuple[str, str], Table]
) -> Iterator[str]:
    for table in expected:
        present = there.get(table.qualified)
        yield from render_protection(table, present.protection if present else Protection())


def _compare(
    expected: tuple[Table, ...], there: dict[tuple[str, str], Table], tenant: Tenant
) -> Iterator[Finding]:
    for table in expected:
        actual = there.get(table.qualified)
        if tenant.kind_of(*table.qualified) is TableKind.TENANT:
            if actual is not None:
                yield from compare_tables(table, actual)
        elif actual is not None:
            yield from compare_shared_tables(table, actual)
        else:
            yield error(
                "shared table",
                table.label,
                "The target does not have this shared table.",
                "Create it there with its rows, e.g. with pg_dump --table.",
            )
