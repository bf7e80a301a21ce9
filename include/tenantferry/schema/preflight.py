"""Tell everything that stands against a move, all at once, and change nothing."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from psycopg2 import sql
from psycopg2.extensions import connection

from tenantferry.control.phases import Phase
from tenantferry.control.registry import read_registration
from tenantferry.fleet import TableKind, Tenant
from tenantferry.schema.catalog import read_catalog
from tenantferry.schema.database import Catalog
from tenantferry.schema.findings import Finding, Verdict, error, ok
from tenantferry.schema.hazards import find_hazards
from tenantferry.schema.model import Table
from tenantferry.schema.reading import read_rows
from tenantferry.schema.retrofit import expected_tables, plan_retrofit
from tenantferry.schema.roles import read_role_settings
from tenantferry.schema.sequences import check_sequences
from tenantferry.schema.source_checks import SOURCE_CHECKS
from tenantferry.schema.target_checks import TARGET_CHECKS, check_region, check_throttle

# Before the copy began no row of the tenant can be in the target.
_BEFORE_COPY = frozenset({None, Phase.REGISTERED, Phase.PREPARED})
# From this version on a server refuses UPDATE where the identity has columns that are not sent.
_VERSION_THAT_WANTS_ALL_SENT = 180000
_HAS_ROWS = sql.SQL("SELECT {label} WHERE EXISTS (SELECT FROM {table} WHERE tenant_id = {id})")
_MAY_SET_REPLICA_ROLE = (
    "SELECT pg_catalog.has_parameter_privilege('session_replication_role', 'SET')"
)
_IS_SUPERUSER = "SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user"
_VERSION_WITH_PARAMETER_GRANTS = 150000
_TENANT_ROLES = "SELECT role_name, tenant_id::text FROM app.tenant_roles"
_NAMESAKES = """
SELECT tenant, tenant_id::text FROM tenantferry.tenants
WHERE (tenant = %(key)s) <> (tenant_id = %(id)s)
"""


def run_preflight(
    source: connection,
    target: connection,
    tenant: Tenant,
    *,
    target_regions: Collection[str],
) -> list[Finding]:
    """
    Check whether a tenant can be moved.

    Runs in read-only transactions of its own; an open transaction is rolled back.

    :param target_regions: regions that the target may hold; empty means every region.
    :return: errors first, then warnings, then what is in order.
    """
    with _reading(source), _reading(target):
        theirs, ours = read_catalog(source), read_catalog(target)
        source_facts = _read_source_facts(source, tenant, theirs)
        target_facts = _read_target_facts(target, tenant, theirs)
        groups: dict[str, list[Finding]] = {
            f"source {name}": list(check(source_facts, tenant))
            for name, check in SOURCE_CHECKS.items()
        }
        for name, judge in TARGET_CHECKS.items():
            groups[f"target {name}"] = list(judge(target_facts, source_facts))
        groups["tables"] = list(_check_tables(theirs, tenant))
        groups["hazards"] = list(find_hazards(theirs, tenant, read_role_settings(source, tenant)))
        groups["sequences"] = list(check_sequences(source, tenant))
        groups["drift"] = list(plan_retrofit(theirs, ours, tenant).drift)
        groups["region"] = list(check_region(tenant, target_regions))
        groups["throttle"] = list(check_throttle(target_facts, tenant))
        groups["tenant"] = list(_check_presence(target, tenant, ours, target_facts))
    return _sort(groups)


@contextmanager
def _reading(conn: connection) -> Iterator[None]:
    """Hold a read-only transaction at one instant, whatever the session's mode."""
    autocommit = conn.autocommit
    conn.rollback()
    conn.autocommit = False
    try:
        with conn.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        yield
    finally:
        conn.rollback()
        conn.autocommit = autocommit


def _read_source_facts(source: connection, tenant: Tenant, catalog: Catalog) -> dict[str, Any]:
    parameters = {"slot": tenant.slot, "roles": list(tenant.app_roles)}
    ((facts,),) = read_rows(source, "source_facts", parameters)
    return {
        **facts,
        "major": source.server_version // 10000,
        "replica_role": _may_set_replica_role(source),
        "moving_tables": [[table.schema, table.name] for table in _moving(catalog, tenant)],
    }


def _may_set_replica_role(source: connection) -> bool:
    has_grants = source.server_version >= _VERSION_WITH_PARAMETER_GRANTS
    with source.cursor() as cursor:
        cursor.execute(_MAY_SET_REPLICA_ROLE if has_grants else _IS_SUPERUSER)
        return cursor.fetchone() == (True,)


def _read_target_facts(target: connection, tenant: Tenant, source: Catalog) -> dict[str, Any]:
    tables = expected_tables(source, tenant)
    extensions = {extension.name for extension in source.extensions}
    if any(exclusion.method == "gist" for table in tables for exclusion in table.exclusions):
        extensions.add("btree_gist")
    parameters = {
        "origin": tenant.origin,
        "witness": tenant.witness,
        "witness_slot": tenant.witness_slot,
        "extensions": sorted(extensions),
        "schemas": list(source.schemas),
    }
    ((facts,),) = read_rows(target, "target_facts", parameters)
    return {
        **facts,
        "major": target.server_version // 10000,
        "needed_tables": [[table.schema, table.name] for table in tables],
        "tenant_roles": _read_tenant_roles(target),
    }


def _read_tenant_roles(target: connection) -> dict[str, str]:
    with target.cursor() as cursor:
        cursor.execute("SELECT to_regclass('app.tenant_roles') IS NOT NULL")
        if cursor.fetchone() == (False,):
            return {}
        cursor.execute(_TENANT_ROLES)
        return dict(cursor.fetchall())


def _check_tables(source: Catalog, tenant: Tenant) -> Iterator[Finding]:
    """Check that every row that moves can be told from the others."""
    moving = _moving(source, tenant)
    if not moving:
        yield error("tables", "source", "No table moves.", "Check the database of the source.")
    for table in moving:
        yield from _check_identity(table, source.version)
    for name in tenant.tables:
        schema, _, table_name = name.partition(".")
        known = {(u.schema, u.name) for u in source.uncarried}
        known |= {(p.schema, p.name) for p in source.partitions}
        if source.find_table(schema, table_name) is None and (schema, table_name) not in known:
            hint = "Mend the fleet file."
            yield Finding("tables", Verdict.WARNING, name, "It is declared and not there.", hint)


def _check_identity(table: Table, version: int) -> Iterator[Finding]:
    generated = {column.name for column in table.columns if column.generated}
    hint = (
        "Add a primary key, or ALTER TABLE ... REPLICA IDENTITY USING INDEX, or ... FULL for a"
        " small table."
    )
    if table.replica_identity == "f":
        if not generated or version < _VERSION_THAT_WANTS_ALL_SENT:
            return
        detail = (
            "Its replica identity FULL has generated columns: publishing would stop its UPDATEs."
        )
        hint = "Give it a primary key, and ALTER TABLE ... REPLICA IDENTITY DEFAULT."
    elif table.key:
        return
    elif table.replica_identity == "n":
        detail = "Its replica identity is NOTHING: publishing it would stop its UPDATEs."
        hint = "ALTER TABLE ... REPLICA IDENTITY DEFAULT."
    elif any(generated.intersection(key.columns) for key in table.keys if key.primary):
        detail = "Its primary key holds a generated column, which is not sent."
    else:
        detail = "It has no primary key: publishing it would stop its UPDATEs."
    yield error("replica identity", table.label, detail, hint)


def _moving(catalog: Catalog, tenant: Tenant) -> list[Table]:
    return [t for t in catalog.tables if tenant.kind_of(*t.qualified) is TableKind.TENANT]


def _check_presence(
    target: connection, tenant: Tenant, catalog: Catalog, facts: Mapping[str, Any]
) -> Iterator[Finding]:
    """Check that the tenant's name, id and rows are not in the target already."""
    owner = facts["tenant_roles"].get(tenant.role)
    if owner not in (None, str(tenant.id)):
        detail = f'Role "{tenant.role}" belongs to tenant id {owner}.'
        yield error("tenant", tenant.key, detail, "Use another key.")
    registration = read_registration(target, tenant.key)
    with target.cursor() as cursor:
        cursor.execute("SELECT to_regclass('tenantferry.tenants') IS NOT NULL")
        if cursor.fetchone() == (True,):
            cursor.execute(_NAMESAKES, {"key": tenant.key, "id": str(tenant.id)})
            for key, tenant_id in cursor.fetchall():
                detail = f'Tenant "{key}" is registered with id {tenant_id}.'
                yield error("tenant", tenant.key, detail, "Use another key and another id.")
    if (registration.phase if registration else None) not in _BEFORE_COPY:
        return
    for label in _find_rows(target, tenant, catalog):
        detail = "It has rows of this tenant, though none were copied."
        hint = "Remove them, or give the tenant another id."
        yield error("tenant", label, detail, hint)


def _find_rows(target: connection, tenant: Tenant, catalog: Catalog) -> list[str]:
    parts = [
        _HAS_ROWS.format(
            label=sql.Literal(table.label),
            table=sql.Identifier(*table.qualified),
            id=sql.Literal(str(tenant.id)),
        )
        for table in catalog.tables
        if any(c.name == "tenant_id" and c.type_name == "uuid" for c in table.columns)
    ]
    if not parts:
        return []
    with target.cursor() as cursor:
        cursor.execute(sql.SQL(" UNION ALL ").join(parts))
        return [label for (label,) in cursor.fetchall()]


def _sort(groups: Mapping[str, list[Finding]]) -> list[Finding]:
    found = [finding for group in groups.values() for finding in group]
    passed = [ok(name, "", "In order.") for name, group in groups.items() if not group]
    order = {Verdict.ERROR: 0, Verdict.WARNING: 1, Verdict.OK: 2}
    return sorted([*found, *passed], key=lambda finding: order[finding.verdict])
