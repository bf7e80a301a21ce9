"""Preflight's questions to the source that its schema does not answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tenantferry.fleet import TableKind, Tenant
from tenantferry.schema.findings import Finding, error, warning

Facts = Mapping[str, Any]
Check = Callable[[Facts, Tenant], Iterator[Finding]]

SOURCE_VERSIONS = range(14, 19)
# The durable slot and, in a later round of the backfill or a validation, a temporary one.
_NEEDED_SLOTS = 2
_VERSION_WITH_PARAMETER_GRANTS = 15


def check_server(facts: Facts, _tenant: Tenant) -> Iterator[Finding]:
    """Check version, role in a cluster, and WAL level."""
    if facts["major"] not in SOURCE_VERSIONS:
        detail = f"The source runs PostgreSQL {facts['major']}; 14 to 18 can be moved."
        yield error("version", "source", detail, "Upgrade the source first.")
    if facts["standby"]:
        yield error("server", "source", "The source is a standby.", "Connect to its primary.")
    if facts["wal_level"] != "logical":
        detail = f"wal_level is {facts['wal_level']}."
        yield error("wal_level", "source", detail, "Set wal_level = logical and restart.")


def check_slots(facts: Facts, _tenant: Tenant) -> Iterator[Finding]:
    """Check free slots and senders, and what would invalidate a slot."""
    for name, free in (
        ("max_replication_slots", facts["max_slots"] - facts["used_slots"]),
        ("max_wal_senders", facts["max_senders"] - facts["used_senders"]),
    ):
        if free < _NEEDED_SLOTS:
            detail = f"{max(free, 0)} of {name} are free; a move needs {_NEEDED_SLOTS}."
            yield error("slots", "source", detail, f"Raise {name}, or free some.")
    if facts["slot_keep_size"] != "-1":
        detail = f"max_slot_wal_keep_size is {facts['slot_keep_size']}: a slot that falls behind"
        hint = "Keep it above the WAL of the longest interruption."
        yield warning("slots", "source", f"{detail} further is lost.", hint)
    if facts["slot_idle_timeout"] not in (None, "0"):
        detail = f"idle_replication_slot_timeout is {facts['slot_idle_timeout']}."
        yield warning("slots", "source", detail, "A stream that rests for longer loses its slot.")


def check_privileges(facts: Facts, _tenant: Tenant) -> Iterator[Finding]:
    """Check that the migration role can do its work, and that nobody else can be it."""
    for held, what in (
        (facts["replication"], "the attribute REPLICATION"),
        (facts["create"], "CREATE on the database"),
        (facts["monitor"], "membership in pg_monitor"),
        (facts["signal"], "membership in pg_signal_backend"),
    ):
        if not held:
            hint = "Run source_privileges.sql as a superuser."
            yield error("privileges", "source", f"The migration role lacks {what}.", hint)
    for schema, table, owner in facts["foreign_owners"] or ():
        if [schema, table] in facts["moving_tables"]:
            detail = f'The migration role is not a member of its owner "{owner}".'
            yield error("privileges", f"{schema}.{table}", detail, f'GRANT "{owner}" TO it.')
    for member in facts["members"] or ():
        detail = f'Role "{member}" is a member of the migration role and could write past the'
        hint = "REVOKE that membership."
        yield error("privileges", "source", f"{detail} fence.", hint)


def check_way_back(facts: Facts, _tenant: Tenant) -> Iterator[Finding]:
    """Check that the reverse stream could write here: without foreign keys and triggers."""
    if facts["replica_role"]:
        return
    detail = "The migration role may not set session_replication_role: no tenant could go back."
    if facts["major"] < _VERSION_WITH_PARAMETER_GRANTS:
        hint = "Before PostgreSQL 15 only a superuser may: make it one, or go without a way back."
        yield warning("way back", "source", detail, hint)
    else:
        hint = "Run source_privileges.sql as a superuser."
        yield error("way back", "source", detail, hint)


def check_app_roles(facts: Facts, _tenant: Tenant) -> Iterator[Finding]:
    """Check that the fence can hold the application's roles."""
    if not facts["app_roles"]:
        detail = "No app role is declared, so none was checked."
        yield warning("app role", "source", detail, "Declare app_roles in the fleet file.")
    for name, exists, is_super, bypasses, is_ours in facts["app_roles"] or ():
        if not exists:
            yield error("app role", name, "The role does not exist.", "Mend the fleet file.")
        if is_super:
            hint = "Give the application a role that is not a superuser."
            yield error("app role", name, "It is a superuser, whom no fence holds.", hint)
        elif bypasses:
            hint = f'ALTER ROLE "{name}" NOBYPASSRLS.'
            yield error("app role", name, "It has BYPASSRLS.", hint)
        if is_ours:
            hint = "Give the application a role of its own."
            yield error("app role", name, "It is the migration role.", hint)


def check_bystanders(facts: Facts, _tenant: Tenant) -> Iterator[Finding]:
    """Check for what a stream does not carry or a cutover would stop."""
    if facts["large_objects"]:
        detail = f"There are {facts['large_objects']} large objects, which no stream carries."
        hint = (
            "Copy them into bytea columns with lo_get(), or remove them; vacuumlo removes those"
            " that nothing refers to."
        )
        yield error("large objects", "source", detail, hint)
    for gid in facts["prepared"] or ():
        hint = "COMMIT PREPARED or ROLLBACK PREPARED it."
        yield error("prepared transaction", gid, "It holds up every new slot.", hint)
    for name in facts["subscriptions"] or ():
        detail = "The source receives rows from elsewhere, which would go on after the cutover."
        yield error("subscription", name, detail, "Drop the subscription.")
    for name in facts["event_triggers"] or ():
        yield warning("event trigger", name, "An event trigger is not carried.")
    for name in facts["other_slots"] or ():
        detail = "Another consumer reads changes of the source; after the cutover it gets none."
        yield warning("slot", name, detail, "Let it read from the target.")


def check_schema(facts: Facts, tenant: Tenant) -> Iterator[Finding]:
    """Check names and row security that are in our way."""
    for name in facts["reserved_schemas"] or ():
        hint = "Rename the schema on the source."
        yield error("schema", name, "The schema's name is reserved in the target.", hint)
    for schema, table in facts["forced_row_security"] or ():
        if tenant.kind_of(schema, table) is TableKind.TENANT:
            detail = "Its row security is forced, so that the copy would not see every row."
            hint = "ALTER TABLE ... NO FORCE ROW LEVEL SECURITY."
            yield error("row security", f"{schema}.{table}", detail, hint)


SOURCE_CHECKS: Mapping[str, Check] = {
    "server": check_server,
    "slots": check_slots,
    "privileges": check_privileges,
    "way back": check_way_back,
    "app roles": check_app_roles,
    "bystanders": check_bystanders,
    "names": check_schema,
}
