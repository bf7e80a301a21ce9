"""
Tell where a table of the target differs from what a tenant needs.

What would refuse or change the tenant's rows, or let a row be reached by others, is an error. What
makes the application behave a little differently is a warning.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace

from tenantferry.schema.findings import Finding, error, warning
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
from tenantferry.schema.quoting import quote_names
from tenantferry.schema.widening import TENANT_COLUMN

CHECK = "drift"
_ALIGN = "Make source and target equal, on the side where that is right."


def compare_tables(expected: Table, actual: Table) -> tuple[Finding, ...]:
    """Return every difference between the table a tenant needs and the one the target has."""
    label = expected.label
    return (
        *_compare_columns(label, expected.columns, actual.columns),
        *_compare_order(expected, actual),
        *_compare_parents(expected, actual),
        *_compare_uniqueness(expected, actual),
        *_compare_exclusions(expected, actual),
        *_compare_named(label, "check", _checks(expected), _checks(actual)),
        *_compare_named(label, "index", _indexes(expected), _indexes(actual)),
        *_compare_named(label, "foreign key", _foreign_keys(expected), _foreign_keys(actual)),
        *_compare_named(label, "trigger", _triggers(expected), _triggers(actual)),
        *_compare_comments(expected, actual),
        *_compare_protection(label, expected.protection, actual.protection),
    )


def compare_shared_tables(expected: Table, actual: Table) -> tuple[Finding, ...]:
    """
    Return what keeps a shared table of the target from serving a tenant.

    Its keys, indexes and defaults are the target's own business.
    """
    wanted = {column.name for column in expected.columns}
    return tuple(
        _compare_columns(
            expected.label,
            map(_without_default, expected.columns),
            (_without_default(column) for column in actual.columns if column.name in wanted),
        )
    )


def spell_loosely(text: str) -> str:
    """
    Strip what versions of Postgres spell differently: white space and needless parentheses.

    >>> spell_loosely("CHECK ((a > 0))") == spell_loosely("CHECK (a > 0)")
    True
    """
    return re.sub(r"[\s()]+", "", text)


def _compare_columns(
    label: str, expected: Iterable[Column], actual: Iterable[Column]
) -> Iterator[Finding]:
    wanted, there = {c.name: c for c in expected}, {c.name: c for c in actual}
    for name, column in wanted.items():
        subject = f"{label}.{name}"
        if name in there:
            yield from _compare_column(subject, column, there[name])
        else:
            yield error(CHECK, subject, "The target does not have this column.", _ALIGN)
    for name in there.keys() - wanted.keys():
        yield error(CHECK, f"{label}.{name}", "Only the target has this column.", _ALIGN)


def _without_default(column: Column) -> Column:
    return column if column.generated else replace(column, default=None, identity="")


def _compare_column(subject: str, wanted: Column, there: Column) -> Iterator[Finding]:
    pairs: tuple[tuple[str, object, object], ...] = (
        ("type", wanted.type_name, there.type_name),
        ("collation", wanted.collation, there.collation),
        ("nullability", _nullability(wanted), _nullability(there)),
        ("generation", _generation(wanted), _generation(there)),
    )
    for what, ours, theirs in pairs:
        if ours != theirs:
            detail = f"The {what} should be {ours or 'none'} and is {theirs or 'none'}."
            yield error(CHECK, subject, detail, _ALIGN)
    if wanted.generated or there.generated:
        return
    ours, theirs = _default(wanted), _default(there)
    if spell_loosely(ours) != spell_loosely(theirs):
        detail = f"The default should be {ours or 'none'} and is {theirs or 'none'}."
        # Without this default a row of the tenant's application would not be the tenant's.
        find = error if wanted.name == TENANT_COLUMN.name else warning
        yield find(CHECK, subject, detail, _ALIGN)


def _nullability(column: Column) -> str:
    return "NOT NULL" if column.not_null else "nullable"


def _generation(column: Column) -> str:
    return spell_loosely(f"{column.generated} {column.default}") if column.generated else ""


def _default(column: Column) -> str:
    return f"identity {column.identity}" if column.identity else column.default or ""


def _compare_order(expected: Table, actual: Table) -> Iterator[Finding]:
    wanted = [c.name for c in expected.columns if c.name != TENANT_COLUMN.name]
    there = [c.name for c in actual.columns if c.name in wanted]
    if set(wanted) == set(there) and wanted != there:
        detail = f"The columns should stand in the order {', '.join(wanted)}."
        hint = "INSERT without a column list relies on it. Make the table anew on one side."
        yield error(CHECK, expected.label, detail, hint)


def _compare_parents(expected: Table, actual: Table) -> Iterator[Finding]:
    """Compare what a table inherits from: queries on those tables show its rows, too."""
    wanted, there = set(expected.parents), set(actual.parents)
    for names in sorted(wanted ^ there):
        verb = "should inherit" if names in wanted else "should not inherit"
        yield error(CHECK, expected.label, f"It {verb} from {'.'.join(names)}.", _ALIGN)


def _compare_uniqueness(expected: Table, actual: Table) -> Iterator[Finding]:
    """Compare what must be unique by its columns: a name does not change what rows are allowed."""
    wanted, there = _uniques(expected), _uniques(actual)
    for shape, name in wanted.items():
        if shape not in there:
            detail = f'The target does not have the key "{name}": {shape}.'
            yield error(CHECK, expected.label, detail, _ALIGN)
        elif there[shape] != name:
            detail = f'The key "{name}" is called "{there[shape]}" in the target.'
            yield warning(CHECK, expected.label, detail, "ON CONFLICT ON CONSTRAINT names it.")
    for shape, name in there.items():
        if shape not in wanted:
            detail = f'Only the target has the key "{name}": {shape}.'
            yield error(CHECK, expected.label, detail, _ALIGN)


def _uniques(table: Table) -> dict[str, str]:
    constraints = {_key_shape(key): key.name for key in table.keys}
    indexes = {_index_shape(index): index.name for index in table.indexes if index.unique}
    return {**constraints, **indexes}


def _key_shape(key: Key) -> str:
    kind = "PRIMARY KEY" if key.primary else "UNIQUE"
    nulls = " NULLS NOT DISTINCT" if key.nulls_not_distinct else ""
    include = f" INCLUDE ({quote_names(key.include)})" if key.include else ""
    timing = " DEFERRABLE" if key.deferrable else ""
    deferred = " INITIALLY DEFERRED" if key.initially_deferred else ""
    return f"{kind}{nulls} ({quote_names(key.columns)}){include}{timing}{deferred}"


def _index_shape(index: Index) -> str:
    unique = "UNIQUE " if index.unique else ""
    nulls = " NULLS NOT DISTINCT" if index.nulls_not_distinct else ""
    include = f" INCLUDE ({quote_names(index.include)})" if index.include else ""
    where = f" WHERE {spell_loosely(index.predicate)}" if index.predicate else ""
    elements = ", ".join(map(spell_loosely, index.elements))
    return f"{unique}{index.method} ({elements}){include}{nulls}{where}"


def _compare_exclusions(expected: Table, actual: Table) -> Iterator[Finding]:
    wanted = {_exclusion_shape(e): e.name for e in expected.exclusions}
    there = {_exclusion_shape(e): e.name for e in actual.exclusions}
    for shape in wanted.keys() ^ there.keys():
        side = "The target does not have" if shape in wanted else "Only the target has"
        name = (wanted | there)[shape]
        detail = f'{side} the exclusion "{name}": {shape}.'
        yield error(CHECK, expected.label, detail, _ALIGN)


def _exclusion_shape(exclusion: Exclusion) -> str:
    elements = ", ".join(f"{text} WITH {operator}" for text, operator in exclusion.elements)
    where = f" WHERE {spell_loosely(exclusion.predicate)}" if exclusion.predicate else ""
    return f"{exclusion.method} ({elements}){where}"


def _checks(table: Table) -> dict[str, str]:
    return {check.name: spell_loosely(check.definition) for check in table.checks}


def _indexes(table: Table) -> dict[str, str]:
    return {index.name: _index_shape(index) for index in table.indexes if not index.unique}


def _foreign_keys(table: Table) -> dict[str, str]:
    return {key.name: _foreign_key_shape(key) for key in table.foreign_keys}


def _foreign_key_shape(key: ForeignKey) -> str:
    referenced = f"{key.referenced_schema}.{key.referenced_table}"
    set_columns = quote_names(sorted(key.set_columns))
    timing = (key.deferrable, key.initially_deferred, key.match_full)
    return (
        f"({quote_names(key.columns)}) to {referenced} ({quote_names(key.referenced_columns)})"
        f" on update {key.on_update} on delete {key.on_delete} ({set_columns}) {timing}"
    )


def _triggers(table: Table) -> dict[str, str]:
    def spell(trigger: Trigger) -> str:
        return f"{spell_loosely(trigger.definition)} {trigger.enabled}"

    return {trigger.name: spell(trigger) for trigger in table.triggers}


def _compare_named(
    label: str, kind: str, wanted: dict[str, str], there: dict[str, str]
) -> Iterator[Finding]:
    for name in sorted(wanted.keys() | there.keys()):
        if name not in there:
            yield warning(CHECK, label, f'The target does not have the {kind} "{name}".', _ALIGN)
        elif name not in wanted:
            yield warning(CHECK, label, f'Only the target has the {kind} "{name}".', _ALIGN)
        elif wanted[name] != there[name]:
            yield warning(CHECK, label, f'The {kind} "{name}" differs in the target.', _ALIGN)


def _compare_comments(expected: Table, actual: Table) -> Iterator[Finding]:
    there = {column.name: column.comment for column in actual.columns}
    if expected.comment != actual.comment:
        yield warning(CHECK, expected.label, "The comment differs in the target.")
    for column in expected.columns:
        if column.name in there and column.comment != there[column.name]:
            subject = f"{expected.label}.{column.name}"
            yield warning(CHECK, subject, "The comment differs in the target.")


def _compare_protection(label: str, wanted: Protection, there: Protection) -> Iterator[Finding]:
    """Find holes in the isolation. What is only missing is planned, not found."""
    policies = {policy.name: policy for policy in wanted.policies}
    for policy in there.policies:
        # A restrictive policy narrows: it can hide a row of the tenant, but shows none.
        if policy.name not in policies and policy.permissive:
            detail = f'The policy "{policy.name}" opens rows beyond those of the tenant.'
            yield error("isolation", label, detail, "Drop it, or make it RESTRICTIVE.")
        elif policy.name not in policies:
            detail = f'The policy "{policy.name}" may hide rows of the tenant.'
            yield error("isolation", label, detail, "Drop it.")
        elif policy != policies[policy.name]:
            detail = f'The policy "{policy.name}" is not the one that isolates tenants.'
            yield error("isolation", label, detail, "Drop it; it is made anew.")
    for privilege in sorted({"TRUNCATE", "TRIGGER", "REFERENCES"}.intersection(there.granted)):
        detail = f"The application may {privilege}, which row security does not hold back."
        yield error("isolation", label, detail, f"REVOKE {privilege} on this table.")
