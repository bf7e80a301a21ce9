"""Find what will work in the target, but differently or more slowly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from tenantferry.fleet import TableKind, Tenant
from tenantferry.schema.database import Catalog
from tenantferry.schema.findings import Finding, warning
from tenantferry.schema.model import Table
from tenantferry.schema.quoting import quote_name
from tenantferry.schema.roles import CARRIED_SETTINGS
from tenantferry.schema.widening import widen

# Of these the comparison operators are leakproof, so that they stay index conditions below row
# security.
_LEAKPROOF_TYPES = frozenset(
    {
        "smallint",
        "integer",
        "bigint",
        "text",
        "uuid",
        "date",
        "timestamp with time zone",
        "timestamp without time zone",
        "boolean",
        "oid",
        "bytea",
    }
)
_LEAKPROOF_FAMILIES = ("character", "timestamp", "time")
_MOST_NAMES = 5


def find_hazards(source: Catalog, tenant: Tenant, settings: Mapping[str, str]) -> Iterator[Finding]:
    """
    Return what the application's people should know before the cutover.

    :param settings: what ``ALTER ROLE SET`` and ``ALTER DATABASE SET`` say on the source.
    """
    moving = [t for t in source.tables if tenant.kind_of(*t.qualified) is TableKind.TENANT]
    if conflicts := [k.name for t in moving for k in t.keys] + [
        i.name for t in moving for i in t.indexes if i.unique
    ]:
        yield warning(
            "on conflict",
            _list_names(conflicts),
            "Unique keys get tenant_id: ON CONFLICT (column) of the old columns finds none.",
            "ON CONFLICT ON CONSTRAINT, ON CONFLICT DO NOTHING and tenant_id in the list work.",
        )
    if leaky := [name for table in moving for name in _find_leaky_indexes(table)]:
        yield warning(
            "index condition",
            _list_names(leaky),
            "Operators that are not leakproof are no index conditions below row security.",
            "Look at the plans of queries that need these indexes.",
        )
    for table in moving:
        yield from _find_in_defaults(table, tenant)
        if table.replica_identity == "f" and not table.key:
            yield warning(
                "replica identity",
                table.label,
                "It has no key: it is copied in one piece, and a change looks for its whole row.",
                "Add a primary key if it is large.",
            )
    for name in sorted(settings):
        if name.lower() not in CARRIED_SETTINGS and name != "search_path":
            detail = f"{name} = {settings[name]} is set for the application and is not carried."
            yield warning("setting", name, detail, f"ALTER ROLE {tenant.role} SET it if needed.")


def _find_leaky_indexes(table: Table) -> Iterator[str]:
    leakproof = {
        quote_name(c.name)
        for c in table.columns
        if c.type_name in _LEAKPROOF_TYPES or c.type_name.startswith(_LEAKPROOF_FAMILIES)
    }
    for index in table.indexes:
        if index.method != "btree" or index.elements[0].split(" ")[0] not in leakproof:
            yield index.name
    for key in table.keys:
        if quote_name(key.columns[0]) not in leakproof:
            yield key.name


def _find_in_defaults(table: Table, tenant: Tenant) -> Iterator[Finding]:
    for column in widen(table, tenant).columns:
        if column.default and "nextval(" in column.default:
            detail = f"Its default names a sequence as text: {column.default}."
            hint = "It works if the name is not qualified: the tenant's own schema comes first."
            yield warning("default", f"{table.label}.{column.name}", detail, hint)


def _list_names(names: Sequence[str]) -> str:
    shown = ", ".join(sorted(names)[:_MOST_NAMES])
    more = len(names) - _MOST_NAMES
    return f"{shown} and {more} more" if more > 0 else shown
