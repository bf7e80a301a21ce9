"""Plan types, functions and views that the target lacks; compare those it has."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from tenantferry.fleet import TableKind, Tenant
from tenantferry.schema.comparison import CHECK, spell_loosely
from tenantferry.schema.database import Catalog, Composite, Domain, Enum, Function, Range, View
from tenantferry.schema.definitions import (
    INVOKER,
    render_composite,
    render_domain,
    render_enum,
    render_range,
    render_view,
    render_view_privileges,
)
from tenantferry.schema.findings import Finding, error, warning

_QUALIFIER = re.compile(r'(?:"(?:[^"]|"")+"|\w+)\.')
Named = TypeVar("Named", Enum, Domain, Composite, Range, View)


@dataclass(frozen=True, slots=True)
class Part:
    """Part of a plan: what to run, and what was found."""

    statements: tuple[str, ...]
    findings: tuple[Finding, ...]


def plan_types(source: Catalog, target: Catalog) -> Part:
    """Plan enumerated, composite, range and domain types, what one is made of before it."""
    made: dict[tuple[str, str], Iterator[str]] = {}
    findings: list[Finding] = []
    enums, domains = _by_name(target.enums), _by_name(target.domains)
    composites, ranges = _by_name(target.composites), _by_name(target.ranges)
    for enum in source.enums:
        name = enum.schema, enum.name
        if name not in enums:
            made[name] = render_enum(enum)
        else:
            findings += _compare_enums(enum, enums[name])
    for domain in source.domains:
        name = domain.schema, domain.name
        if name not in domains:
            made[name] = render_domain(domain)
        elif _loosen(domain) != _loosen(domains[name]):
            findings.append(_differs(domain, "domain"))
    for composite in source.composites:
        name = composite.schema, composite.name
        if name not in composites:
            made[name] = render_composite(composite)
        elif composite.attributes != composites[name].attributes:
            findings.append(_differs(composite, "composite type"))
    for range_type in source.ranges:
        name = range_type.schema, range_type.name
        if name not in ranges:
            made[name] = render_range(range_type)
        elif replace(range_type, comment=None) != replace(ranges[name], comment=None):
            findings.append(_differs(range_type, "range type"))
    order = {name: number for number, name in enumerate(source.type_order)}
    names = sorted(made, key=lambda name: order.get(name, len(order)))
    return Part(tuple(s for name in names for s in made[name]), tuple(findings))


def plan_functions(source: Catalog, target: Catalog, *, needs_tables: bool) -> Part:
    """Plan functions: those that tables need before the tables, the others behind them."""
    there = {function.signature: function for function in target.functions}
    statements: list[str] = []
    findings: list[Finding] = []
    for function in source.functions:
        found = there.get(function.signature)
        if function.needs_tables is not needs_tables:
            continue
        if found is not None:
            findings += _compare_functions(function, found)
        elif function.is_carried:
            statements.append(function.definition.strip())
        else:
            findings.append(_report_function(function))
    return Part(tuple(statements), tuple(findings))


def plan_views(source: Catalog, target: Catalog, tenant: Tenant) -> Part:
    """Plan views with the rights of who asks; leave those behind that cannot work."""
    there = _by_name(target.views)
    ordinary = {table.qualified for table in source.tables}
    carried: set[tuple[str, str]] = set()
    statements: list[str] = []
    findings: list[Finding] = []
    for view in source.views:
        found = there.get((view.schema, view.name))
        if found is not None:
            carried.add((view.schema, view.name))
            findings += _compare_views(view, found)
            statements += render_view_privileges(view, found.granted)
            continue
        reason = _find_reason_to_leave(view, ordinary, carried, tenant)
        if reason is None:
            carried.add((view.schema, view.name))
            statements += [*render_view(view), *render_view_privileges(view, ())]
        else:
            findings.append(reason)
    return Part(tuple(statements), tuple(findings))


def _by_name(things: Sequence[Named]) -> dict[tuple[str, str], Named]:
    return {(thing.schema, thing.name): thing for thing in things}


def _compare_enums(wanted: Enum, there: Enum) -> Iterator[Finding]:
    if wanted.labels == there.labels:
        return
    subject = f"{wanted.schema}.{wanted.name}"
    detail = f"The labels should be {', '.join(wanted.labels)} and are {', '.join(there.labels)}."
    if tuple(label for label in there.labels if label in wanted.labels) == wanted.labels:
        # Every label is there and sorts as before.
        yield warning(CHECK, subject, detail)
    else:
        hint = "ALTER TYPE ... ADD VALUE ... BEFORE ... on the side that lacks labels."
        yield error(CHECK, subject, detail, hint)


def _loosen(domain: Domain) -> Domain:
    checks = tuple(replace(c, definition=spell_loosely(c.definition)) for c in domain.checks)
    return replace(domain, checks=checks, comment=None)


def _differs(thing: Domain | Composite | Range, kind: str) -> Finding:
    return error(
        CHECK,
        f"{thing.schema}.{thing.name}",
        f"The {kind} differs in the target.",
        "Make source and target equal, on the side where that is right.",
    )


def _compare_functions(wanted: Function, there: Function) -> Iterator[Finding]:
    if there.security_definer:
        yield warning(
            "isolation",
            wanted.signature,
            "The function of the target is SECURITY DEFINER: in it the owner speaks.",
            "Check that it reaches only rows of app.current_tenant().",
        )
    elif spell_loosely(wanted.definition) != spell_loosely(there.definition):
        yield warning(CHECK, wanted.signature, "The function differs in the target.")


def _report_function(function: Function) -> Finding:
    if function.security_definer:
        return warning(
            "isolation",
            function.signature,
            "A SECURITY DEFINER function is not carried: it would see every tenant's rows.",
            "Make it SECURITY INVOKER on the source, or create one in the target yourself.",
        )
    return warning(
        CHECK,
        function.signature,
        f"A function in language {function.language} is not carried.",
        "Create it in the target as a superuser.",
    )


def _find_reason_to_leave(
    view: View,
    ordinary: set[tuple[str, str]],
    carried: set[tuple[str, str]],
    tenant: Tenant,
) -> Finding | None:
    subject = f"{view.schema}.{view.name}"
    if view.needs_key:
        return error(
            "view",
            subject,
            "Its GROUP BY relies on a primary key, which the target has only with tenant_id.",
            "List every selected column in its GROUP BY.",
        )
    left = {t for t in view.tables if tenant.kind_of(*t) is TableKind.SKIP or t not in ordinary}
    if absent := sorted({*left, *(v for v in view.views if v not in carried)}):
        names = ", ".join(".".join(name) for name in absent)
        return warning(
            "view", subject, f"It is not carried: it reads {names}, which is not carried."
        )
    return None


def _compare_views(wanted: View, there: View) -> Iterator[Finding]:
    subject = f"{wanted.schema}.{wanted.name}"
    if not {INVOKER, "security_invoker=on", "security_invoker=1"} & set(there.options):
        yield error(
            "isolation",
            subject,
            "The view of the target reads with the rights of its owner, past row security.",
            "ALTER VIEW ... SET (security_invoker = true).",
        )
    if _spell_view(wanted.definition) != _spell_view(there.definition):
        yield warning(CHECK, subject, "The view differs in the target.")


def _spell_view(definition: str) -> str:
    # From version 16 on a view of one table does not qualify its columns.
    return spell_loosely(_QUALIFIER.sub("", definition))
