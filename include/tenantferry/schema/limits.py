"""Find what the multi-tenant schema cannot express."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from tenantferry.fleet import TableKind, Tenant
from tenantferry.schema.database import Catalog, UncarriedKind
from tenantferry.schema.findings import Finding, error, warning
from tenantferry.schema.model import ForeignKey, Table
from tenantferry.schema.trees import find_in_trees
from tenantferry.schema.widening import TENANT_COLUMN

# MaxHeapAttributeNumber and INDEX_MAX_KEYS of a default build.
MAX_COLUMNS = 1600
MAX_INDEX_COLUMNS = 32
_VERSION_18 = 180000
# As pg_catalog spells them; those of the application are carried with its other objects.
_COLLATION = re.compile(r' COLLATE pg_catalog\.("(?:[^"]|"")+"|\w+)')
_EXCLUDABLE = frozenset({"gist", "btree"})

# What holds rows that the stream and the copy would miss.
_BLOCKING = {
    UncarriedKind.UNLOGGED_TABLE: "Changes of an unlogged table are not in the write-ahead log.",
    UncarriedKind.FOREIGN_TABLE: "The rows of a foreign table lie in another server.",
    UncarriedKind.TEMPORAL_KEY: "A key WITHOUT OVERLAPS cannot be widened.",
    UncarriedKind.RANGE_TYPE: "A range type with functions of its own is not carried; its columns"
    " cannot be created.",
    UncarriedKind.COLLATION: "A collation is not carried; its columns cannot be created.",
}
_LEAVE_BEHIND = 'Declare it as "skip" in the fleet file, or change it on the source.'
_TABLE_KINDS = frozenset(
    {
        UncarriedKind.UNLOGGED_TABLE,
        UncarriedKind.FOREIGN_TABLE,
        UncarriedKind.TEMPORAL_KEY,
    }
)


def find_obstacles(source: Catalog, target: Catalog, tenant: Tenant) -> tuple[Finding, ...]:
    """Return what keeps a tenant's schema from being made multi-tenant."""
    findings = [*_find_reserved_names(source, tenant), *_find_uncarried(source, target, tenant)]
    findings += _find_extensions(source, target)
    findings += find_in_trees(source, tenant)
    for domain in source.domains:
        texts = [f" COLLATE {domain.collation}"]
        findings += _find_unknown_collations(f"{domain.schema}.{domain.name}", texts, target)
    for composite in source.composites:
        texts = [type_name for _, type_name in composite.attributes]
        findings += _find_unknown_collations(f"{composite.schema}.{composite.name}", texts, target)
    for table in source.tables:
        kind = tenant.kind_of(*table.qualified)
        if kind is TableKind.TENANT:
            findings += _find_in_table(table, target)
            findings += _find_in_triggers(table, source, target)
        if kind is not TableKind.SKIP:
            findings += _find_in_foreign_keys(table, source, tenant, kind)
    return tuple(findings)


def _find_reserved_names(source: Catalog, tenant: Tenant) -> Iterator[Finding]:
    if tenant.schema_name in source.schemas:
        yield error(
            "schema",
            tenant.schema_name,
            "The target needs this name for the tenant's own sequences.",
            "Rename the schema on the source, or give the tenant another key.",
        )


def _find_uncarried(source: Catalog, target: Catalog, tenant: Tenant) -> Iterator[Finding]:
    known = {(u.kind, u.schema, u.name) for u in target.uncarried}
    for thing in source.uncarried:
        subject = f"{thing.schema}.{thing.name}"
        table = thing.table or thing.name
        if thing.kind in _TABLE_KINDS:
            if tenant.kind_of(thing.schema, table) is TableKind.TENANT:
                yield error(thing.kind, subject, _BLOCKING[thing.kind], _LEAVE_BEHIND)
        elif thing.kind in _BLOCKING:
            if (thing.kind, thing.schema, thing.name) not in known:
                hint = "Create it in the target, in the same schema."
                yield error(thing.kind, subject, _BLOCKING[thing.kind], hint)
        elif (thing.kind, thing.schema, thing.name) not in known:
            where = (
                f' of table "{thing.table}"' if thing.table and thing.table != thing.name else ""
            )
            detail = f"The {thing.kind}{where} is not carried."
            yield warning(thing.kind, subject, detail, "Create its equal in the target if needed.")


def _find_extensions(source: Catalog, target: Catalog) -> Iterator[Finding]:
    there = {extension.name: extension for extension in target.extensions}
    for extension in source.extensions:
        found = there.get(extension.name)
        if found is None:
            continue
        if found.schema != extension.schema:
            detail = f'It is in schema "{extension.schema}" and in "{found.schema}" in the target.'
            hint = "ALTER EXTENSION ... SET SCHEMA on one side."
            yield error("extension", extension.name, detail, hint)
        elif _version(found.version) < _version(extension.version):
            detail = f"Its version is {extension.version} and {found.version} in the target."
            yield warning("extension", extension.name, detail, "ALTER EXTENSION ... UPDATE.")


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text))


def _find_in_table(table: Table, target: Catalog) -> Iterator[Finding]:
    if any(column.name == TENANT_COLUMN.name for column in table.columns):
        detail = "The source has a column of the name that the target adds."
        hint = "Rename the column on the source, e.g. to account_id."
        yield error("tenant column", table.label, detail, hint)
    texts = [f" COLLATE {column.collation}" for column in table.columns]
    texts += [element for index in table.indexes for element in index.elements]
    yield from _find_unknown_collations(table.label, texts, target)
    yield from _find_unenforceable(table, target)
    if len(table.columns) >= MAX_COLUMNS:
        detail = f"It has {len(table.columns)} columns; there is no room for tenant_id."
        hint = "Move columns into another table of the same key, e.g. those used least."
        yield error("columns", table.label, detail, hint)
    widths = [(k.name, len(k.columns) + len(k.include)) for k in table.keys]
    widths += [(i.name, len(i.elements) + len(i.include)) for i in table.indexes]
    for name, width in widths:
        if width >= MAX_INDEX_COLUMNS:
            detail = f'Index "{name}" has {width} columns; there is no room for tenant_id.'
            yield error("columns", table.label, detail, "Drop a column of that index.")
    for exclusion in table.exclusions:
        if exclusion.method not in _EXCLUDABLE:
            detail = f'Exclusion "{exclusion.name}" cannot hold tenant_id: {exclusion.method}.'
            yield error("exclusion", table.label, detail, "Use GiST for it on the source.")


def _find_unknown_collations(
    subject: str, texts: Iterable[str], target: Catalog
) -> Iterator[Finding]:
    """Find collations of Postgres itself, in the text of definitions, that the target lacks."""
    used = {f"pg_catalog.{name}" for text in texts for name in _COLLATION.findall(text)}
    for name in sorted(used - target.collations):
        yield error(
            "collation",
            subject,
            f"It sorts by {name}, which the target's server does not have.",
            "Install that locale there, or a server built with ICU, and run"
            " pg_import_system_collations('pg_catalog'); or choose another collation.",
        )


def _find_unenforceable(table: Table, target: Catalog) -> Iterator[Finding]:
    """Find constraints that the target would enforce otherwise than the source."""
    for check in table.checks:
        if check.definition.endswith("NOT VALID"):
            yield error(
                "check",
                table.label,
                f'"{check.name}" was never validated; the target would refuse rows that violate'
                " it.",
                "ALTER TABLE ... VALIDATE CONSTRAINT, or drop it.",
            )
    if target.version >= _VERSION_18:
        return
    newer = [f"Generated column {c.name} is virtual" for c in table.columns if c.generated == "v"]
    newer += [
        f'"{check.name}" is not enforced'
        for check in table.checks
        if check.definition.endswith("NOT ENFORCED")
    ]
    newer += [f'"{key.name}" is not enforced' for key in table.foreign_keys if not key.enforced]
    for what in newer:
        detail = f"{what}, which PostgreSQL {target.version // 10000} does not know."
        yield error("version", table.label, detail, "Upgrade the target to PostgreSQL 18.")


def _find_in_triggers(table: Table, source: Catalog, target: Catalog) -> Iterator[Finding]:
    lost = {(f.schema, f.name) for f in source.functions if not f.is_carried}
    lost -= {(f.schema, f.name) for f in target.functions}
    for trigger in table.triggers:
        if trigger.function in lost:
            yield error(
                "trigger",
                table.label,
                f'Trigger "{trigger.name}" calls {".".join(trigger.function)}, which is not'
                " carried.",
                "Make the function SECURITY INVOKER, or create one in the target yourself.",
            )
        elif trigger.enabled in "AR":
            # Loading and applying run with session_replication_role = replica.
            yield error(
                "trigger",
                table.label,
                f'Trigger "{trigger.name}" also fires for replicated rows: it would fire again in'
                " the target for rows that it has dealt with on the source.",
                f'ALTER TABLE ... ENABLE TRIGGER "{trigger.name}".',
            )


def _find_in_foreign_keys(
    table: Table, source: Catalog, tenant: Tenant, kind: TableKind
) -> Iterator[Finding]:
    for key in table.foreign_keys:
        name = f'Foreign key "{key.name}"'
        referenced = f"{key.referenced_schema}.{key.referenced_table}"
        referenced_kind = tenant.kind_of(key.referenced_schema, key.referenced_table)
        if referenced_kind is TableKind.SKIP:
            detail = f"{name} refers to {referenced}, which is left behind."
            yield error("foreign key", table.label, detail, "Move both tables, or leave both.")
        elif kind is TableKind.SHARED and referenced_kind is TableKind.TENANT:
            detail = f"{name} of a shared table refers to {referenced}, which has tenants."
            yield error("foreign key", table.label, detail, "Declare both tables alike.")
        elif source.find_table(key.referenced_schema, key.referenced_table) is None:
            detail = f"{name} refers to {referenced}, which cannot be moved."
            yield error("foreign key", table.label, detail, "See what is said about that table.")
        elif referenced_kind is TableKind.TENANT and key.on_update == "n":
            yield _report_update_action(table, key)


def _report_update_action(table: Table, key: ForeignKey) -> Finding:
    return error(
        "foreign key",
        table.label,
        f'Foreign key "{key.name}" says ON UPDATE SET NULL, which would null tenant_id.',
        "Make it ON UPDATE CASCADE or NO ACTION on the source.",
    )
