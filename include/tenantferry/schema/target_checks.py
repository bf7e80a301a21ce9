"""Preflight's questions to the target that its schema does not answer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from tenantferry.fleet import Tenant
from tenantferry.schema.findings import Finding, error, warning

Facts = Mapping[str, Any]
Check = Callable[[Facts, Facts], Iterator[Finding]]

TARGET_VERSIONS = range(15, 19)


def check_server(facts: Facts, source: Facts) -> Iterator[Finding]:
    """Check version, role in a cluster, encoding and sort order."""
    if facts["major"] not in TARGET_VERSIONS:
        detail = f"The target runs PostgreSQL {facts['major']}; it has to be 15 to 18."
        yield error("version", "target", detail, "Upgrade the target first.")
    elif facts["major"] < source["major"]:
        detail = f"The target runs PostgreSQL {facts['major']}, the source {source['major']}."
        yield warning("version", "target", detail, "Newer features of the source do not exist.")
    if facts["standby"]:
        yield error("server", "target", "The target is a standby.", "Connect to its primary.")
    if facts["encoding"] != source["encoding"]:
        detail = f"It is {source['encoding']} on the source, {facts['encoding']} in the target."
        yield error("encoding", "target", detail, "Recreate one database with the other's.")
    if facts["collation"] != source["collation"]:
        detail = f"It is {source['collation']} on the source, {facts['collation']} in the target."
        yield warning("collation", "target", detail, "ORDER BY sorts text differently.")


def check_origins(facts: Facts, _source: Facts) -> Iterator[Finding]:
    """Check that there is room for the stream's position."""
    if facts["used_origins"] >= facts["max_origins"]:
        detail = f"All {facts['max_origins']} replication origins are in use."
        hint = "Raise max_active_replication_origins (before 18: max_replication_slots)."
        yield error("origins", "target", detail, hint)


def check_way_back(facts: Facts, _source: Facts) -> Iterator[Finding]:
    """Check that the reverse stream can have its slot."""
    if facts["wal_level"] != "logical":
        detail = f"wal_level is {facts['wal_level']}: no tenant could go back to its source."
        yield error("wal_level", "target", detail, "Set wal_level = logical and restart.")
    if facts["used_slots"] >= facts["max_slots"]:
        detail = f"All {facts['max_slots']} replication slots are in use: none is left for the way"
        hint = "Raise max_replication_slots, or drop slots that nobody reads."
        yield error("slots", "target", f"{detail} back.", hint)
    elif facts["witness"] and facts["used_slots"] + 1 >= facts["max_slots"]:
        detail = f"Only one of {facts['max_slots']} replication slots is left: the way back and the"
        hint = "Raise max_replication_slots, or set witness: false."
        yield error("slots", "target", f"{detail} witness need one each.", hint)


def check_privileges(facts: Facts, _source: Facts) -> Iterator[Finding]:
    """Check that the migration role can do its work."""
    missing = [f"EXECUTE on {name}" for name in facts["missing_functions"] or ()]
    missing += [f'CREATE on schema "{name}"' for name in facts["unusable_schemas"] or ()]
    for held, what in (
        (facts["bypassrls"], "the attribute BYPASSRLS"),
        (facts["replication"], "the attribute REPLICATION"),
        (facts["createrole"], "the attribute CREATEROLE"),
        (facts["create"], "CREATE on the database"),
        (facts["replica_role"], "SET on session_replication_role"),
    ):
        if not held:
            missing.append(what)
    for what in missing:
        hint = "Run target_privileges.sql as a superuser."
        yield error("privileges", "target", f"The migration role lacks {what}.", hint)
    for schema, table, owner in facts["foreign_owners"] or ():
        if [schema, table] in facts["needed_tables"]:
            detail = f'It belongs to "{owner}", of which the migration role is not a member.'
            hint = "ALTER TABLE ... OWNER TO the migration role."
            yield error("privileges", f"{schema}.{table}", detail, hint)
    for member in facts["members"] or ():
        detail = f'Role "{member}" is a member of the migration role, which owns every table.'
        yield warning("privileges", "target", detail, "REVOKE that membership.")


def check_search_path(facts: Facts, _source: Facts) -> Iterator[Finding]:
    """Check that no tenant can put a function into a schema that others search."""
    for name in facts["open_schemas"] or ():
        detail = "Everybody may create in it: a tenant's function could run with another's rights."
        hint = f'REVOKE CREATE ON SCHEMA "{name}" FROM PUBLIC.'
        yield error("open schema", name, detail, hint)


def check_extensions(facts: Facts, _source: Facts) -> Iterator[Finding]:
    """Check that missing extensions can be made."""
    for name, available, allowed in facts["missing_extensions"] or ():
        if not available:
            hint = "Install it on the target's server."
            yield error("extension", name, "The target's server does not have it.", hint)
        elif not allowed:
            hint = "CREATE EXTENSION in the target as a superuser."
            yield error("extension", name, "Only a superuser can create it.", hint)


def check_throttle(facts: Facts, tenant: Tenant) -> Iterator[Finding]:
    """Check that the throttle can see what it limits; on the source the fence needs that too."""
    if tenant.throttle.replica_lag_seconds is not None and not facts["sees_standbys"]:
        detail = "The migration role cannot see standbys: their lag does not slow down the move."
        hint = "GRANT pg_monitor TO it, or set throttle: {replica_lag_seconds: null}."
        yield warning("throttle", "target", detail, hint)


def check_region(tenant: Tenant, regions: Collection[str]) -> Iterator[Finding]:
    """Check that the target may hold the tenant."""
    if regions and tenant.region not in regions:
        detail = (
            f"Its region is {tenant.region or 'not declared'};"
            f" the target holds {', '.join(sorted(regions))}."
        )
        yield error("region", tenant.key, detail, "Choose a target of its region.")


TARGET_CHECKS: Mapping[str, Check] = {
    "server": check_server,
    "origins": check_origins,
    "way back": check_way_back,
    "privileges": check_privileges,
    "search path": check_search_path,
    "extensions": check_extensions,
}
