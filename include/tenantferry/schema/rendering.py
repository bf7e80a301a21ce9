"""
Write tables as the SQL that makes them.

The text of a plan is meant to be read before it runs. Names go through `quoting`; expressions and
types are those that Postgres itself spelled, fully qualified.
"""

from __future__ import annotations

from collections.abc import Iterator

from tenantferry.schema.isolation import APP_GROUP
from tenantferry.schema.model import (
    Column,
    Exclusion,
    ForeignKey,
    Index,
    Key,
    Protection,
    Table,
    Trigger,
)
from tenantferry.schema.quoting import quote_name, quote_names, quote_text

_ACTIONS = {"r": "RESTRICT", "c": "CASCADE", "n": "SET NULL", "d": "SET DEFAULT"}
_IDENTITIES = {"a": "ALWAYS", "d": "BY DEFAULT"}
_GENERATED = {"s": "STORED", "v": "VIRTUAL"}
_ENABLING = {"D": "DISABLE TRIGGER", "R": "ENABLE REPLICA TRIGGER", "A": "ENABLE ALWAYS TRIGGER"}
_COMMANDS = {"*": "ALL", "r": "SELECT", "a": "INSERT", "w": "UPDATE", "d": "DELETE"}


def render_table(table: Table) -> str:
    """Write ``CREATE TABLE`` with keys, checks and exclusions; foreign keys stand apart."""
    lines = [
        *map(_render_column, table.columns),
        *map(_render_key, table.keys),
        *(f"CONSTRAINT {quote_name(c.name)} {c.definition}" for c in table.checks),
        *map(_render_exclusion, table.exclusions),
    ]
    body = ",\n    ".join(lines)
    return f"CREATE TABLE {quote_name(*table.qualified)} (\n    {body}\n)"


def render_indexes(table: Table) -> Iterator[str]:
    """Write ``CREATE INDEX`` for each index that no constraint owns."""
    for index in table.indexes:
        yield _render_index(table, index)


def render_foreign_keys(table: Table) -> Iterator[str]:
    """Write ``ALTER TABLE ADD`` for each foreign key, once all tables are there."""
    for key in table.foreign_keys:
        yield f"ALTER TABLE {quote_name(*table.qualified)} ADD {_render_foreign_key(key)}"


def render_inheritance(table: Table) -> Iterator[str]:
    """Write ``ALTER TABLE INHERIT`` for each parent, once all tables are there."""
    for parent in table.parents:
        yield f"ALTER TABLE {quote_name(*table.qualified)} INHERIT {quote_name(*parent)}"


def render_trigger(table: Table, trigger: Trigger) -> Iterator[str]:
    """Write a trigger, and whether it is enabled."""
    yield trigger.definition
    if trigger.enabled in _ENABLING:
        yield (
            f"ALTER TABLE {quote_name(*table.qualified)}"
            f" {_ENABLING[trigger.enabled]} {quote_name(trigger.name)}"
        )


def render_comments(table: Table) -> Iterator[str]:
    """Write the comments on a table and its columns."""
    if table.comment is not None:
        yield f"COMMENT ON TABLE {quote_name(*table.qualified)} IS {quote_text(table.comment)}"
    for column in table.columns:
        if column.comment is not None:
            name = quote_name(*table.qualified, column.name)
            yield f"COMMENT ON COLUMN {name} IS {quote_text(column.comment)}"


def render_replica_identity(table: Table) -> Iterator[str]:
    """Write the replica identity where it is not the primary key."""
    index = next((k.name for k in table.keys if k.columns == table.key), None) or next(
        (i.name for i in table.indexes if i.elements == tuple(map(quote_name, table.key))), None
    )
    prefix = f"ALTER TABLE {quote_name(*table.qualified)} REPLICA IDENTITY"
    if table.replica_identity == "f":
        yield f"{prefix} FULL"
    elif table.replica_identity == "i" and index is not None:
        yield f"{prefix} USING INDEX {quote_name(index)}"


def render_protection(table: Table, present: Protection) -> Iterator[str]:
    """Write what is missing until only the tenant's own rows can be reached."""
    name, wanted = quote_name(*table.qualified), table.protection
    if wanted.enabled and not present.enabled:
        yield f"ALTER TABLE {name} ENABLE ROW LEVEL SECURITY"
    if wanted.forced and not present.forced:
        yield f"ALTER TABLE {name} FORCE ROW LEVEL SECURITY"
    there = {policy.name for policy in present.policies}
    for policy in wanted.policies:
        if policy.name not in there:
            yield (
                f"CREATE POLICY {quote_name(policy.name)} ON {name}"
                f" FOR {_COMMANDS[policy.command]}"
                f"\n    USING {policy.using}\n    WITH CHECK {policy.check}"
            )
    if missing := [p for p in wanted.granted if p not in present.granted]:
        yield f"GRANT {', '.join(missing)} ON {name} TO {APP_GROUP}"


def _render_column(column: Column) -> str:
    parts = [quote_name(column.name), column.type_name]
    if column.collation:
        parts.append(f"COLLATE {column.collation}")
    if column.generated:
        parts.append(f"GENERATED ALWAYS AS ({column.default}) {_GENERATED[column.generated]}")
    elif column.identity:
        parts.append(f"GENERATED {_IDENTITIES[column.identity]} AS IDENTITY")
    elif column.default is not None:
        parts.append(f"DEFAULT {column.default}")
    if column.not_null:
        parts.append("NOT NULL")
    return " ".join(parts)


def _render_key(key: Key) -> str:
    parts = [f"CONSTRAINT {quote_name(key.name)}", "PRIMARY KEY" if key.primary else "UNIQUE"]
    if key.nulls_not_distinct:
        parts.append("NULLS NOT DISTINCT")
    parts.append(f"({quote_names(key.columns)})")
    if key.include:
        parts.append(f"INCLUDE ({quote_names(key.include)})")
    return " ".join(parts) + _render_timing(key)


def _render_exclusion(exclusion: Exclusion) -> str:
    elements = ", ".join(f"{text} WITH {operator}" for text, operator in exclusion.elements)
    where = f" WHERE ({exclusion.predicate})" if exclusion.predicate else ""
    return (
        f"CONSTRAINT {quote_name(exclusion.name)} EXCLUDE USING {exclusion.method}"
        f" ({elements}){where}{_render_timing(exclusion)}"
    )


def _render_index(table: Table, index: Index) -> str:
    include = f" INCLUDE ({quote_names(index.include)})" if index.include else ""
    nulls = " NULLS NOT DISTINCT" if index.nulls_not_distinct else ""
    where = f" WHERE {index.predicate}" if index.predicate else ""
    return (
        f"CREATE {'UNIQUE ' if index.unique else ''}INDEX {quote_name(index.name)}"
        f" ON {quote_name(*table.qualified)} USING {quote_name(index.method)}"
        f" ({', '.join(index.elements)}){include}{nulls}{where}"
    )


def _render_foreign_key(key: ForeignKey) -> str:
    referenced = quote_name(key.referenced_schema, key.referenced_table)
    parts = [
        f"CONSTRAINT {quote_name(key.name)} FOREIGN KEY ({quote_names(key.columns)})",
        f"REFERENCES {referenced} ({quote_names(key.referenced_columns)})",
    ]
    if key.match_full:
        parts.append("MATCH FULL")
    if key.on_update in _ACTIONS:
        parts.append(f"ON UPDATE {_ACTIONS[key.on_update]}")
    if key.on_delete in _ACTIONS:
        columns = f" ({quote_names(key.set_columns)})" if key.set_columns else ""
        parts.append(f"ON DELETE {_ACTIONS[key.on_delete]}{columns}")
    if not key.enforced:
        return " ".join(parts) + _render_timing(key) + " NOT ENFORCED"
    not_valid = "" if key.validated else " NOT VALID"
    return " ".join(parts) + _render_timing(key) + not_valid


def _render_timing(constraint: Key | ForeignKey | Exclusion) -> str:
    if not constraint.deferrable:
        return ""
    return " DEFERRABLE INITIALLY DEFERRED" if constraint.initially_deferred else " DEFERRABLE"
