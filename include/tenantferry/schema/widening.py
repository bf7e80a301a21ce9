"""
The multi-tenant table made of a single-tenant one.

Invariant: whatever identifies, refers to or excludes a row does so within one tenant. Checks of
keys and foreign keys bypass row security, so ``tenant_id`` has to be inside of them.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace

from tenantferry.fleet import TableKind, Tenant
from tenantferry.schema.model import (
    Check,
    Column,
    Exclusion,
    ForeignKey,
    Index,
    Key,
    Policy,
    Protection,
    Table,
)
from tenantferry.schema.quoting import quote_name, quote_names, quote_text, split_name

TENANT_COLUMN = Column("tenant_id", "uuid", True, default="app.current_tenant()")
_OWN = TENANT_COLUMN.name
_IS_OWN = "(tenant_id = ( SELECT app.current_tenant() AS current_tenant))"
ISOLATION = Policy("tenant_isolation", "*", True, _IS_OWN, _IS_OWN)
# Not TRUNCATE: it empties the table of every tenant, row security or not.
TENANT_PROTECTION = Protection(
    enabled=True,
    forced=True,
    policies=(ISOLATION,),
    granted=("DELETE", "INSERT", "SELECT", "UPDATE"),
)
SHARED_PROTECTION = Protection(granted=("SELECT",))

_NEXTVAL = re.compile(r"nextval\('((?:[^']|'')+)'::regclass\)")
_ONLY_NEXTVAL = re.compile(_NEXTVAL.pattern + r"\Z")
_MAX_NAME_BYTES = 63


def widen(table: Table, tenant: Tenant) -> Table:
    """
    Return the table that holds the rows of every tenant.

    :param tenant: says which of the tables referred to are shared and stay as they are.
    """
    foreign_keys = [
        key
        if tenant.kind_of(key.referenced_schema, key.referenced_table) is TableKind.SHARED
        else _widen_foreign_key(key)
        for key in table.foreign_keys
    ]
    full_matches = [
        check for key in table.foreign_keys if (check := _check_full_match(table, key)) is not None
    ]
    return replace(
        table,
        columns=(*map(_widen_column, table.columns), TENANT_COLUMN),
        key=(_OWN, *table.key) if table.key else (),
        keys=tuple(map(_widen_key, table.keys)),
        foreign_keys=tuple(foreign_keys),
        checks=(*table.checks, *full_matches),
        exclusions=tuple(map(_widen_exclusion, table.exclusions)),
        indexes=tuple(map(_widen_index, table.indexes)),
        protection=TENANT_PROTECTION,
        is_partitioned=False,
    )


def keep_narrow(table: Table) -> Table:
    """Return the table of reference data that every tenant reads and none of them writes."""
    return replace(
        table,
        columns=tuple(map(_own_identity, table.columns)),
        protection=SHARED_PROTECTION,
        is_partitioned=False,
    )


def _widen_column(column: Column) -> Column:
    """Let the values of a sequence come from that of the tenant."""
    if column.identity and column.sequence:
        return replace(
            column, identity="", sequence=None, default=_next_value_call(column.sequence[1])
        )
    if column.default is None or column.generated:
        return column
    default = _NEXTVAL.sub(
        lambda match: _next_value_call(split_name(match[1].replace("''", "'"))[-1]), column.default
    )
    return replace(column, default=default, sequence=None)


def _next_value_call(sequence_name: str) -> str:
    return f"app.next_value({quote_text(sequence_name)}::text)"


def _own_identity(column: Column) -> Column:
    """Turn a serial into an identity: the sequence of the source is not there."""
    if column.default and not column.generated and _ONLY_NEXTVAL.match(column.default):
        return replace(column, default=None, identity="d", sequence=None)
    return replace(column, sequence=None)


def _widen_key(key: Key) -> Key:
    return replace(key, columns=(_OWN, *key.columns))


def _widen_foreign_key(key: ForeignKey) -> ForeignKey:
    # SET NULL on all columns would null tenant_id.
    sets = key.on_delete in ("n", "d")
    return replace(
        key,
        columns=(_OWN, *key.columns),
        referenced_columns=(_OWN, *key.referenced_columns),
        set_columns=(key.set_columns or key.columns) if sets else (),
        # MATCH FULL wants all or none to be null, and tenant_id never is.
        match_full=False,
    )


def _check_full_match(table: Table, key: ForeignKey) -> Check | None:
    """Return what remains of ``MATCH FULL``: no row with only some of the columns null."""
    nullable = {column.name for column in table.columns if not column.not_null}
    if not key.match_full or len(key.columns) == 1 or nullable.isdisjoint(key.columns):
        return None
    # A foreign key is not inherited.
    scope = " NO INHERIT" if table.only else ""
    return Check(
        _derive_name(key.name, "_match_full"),
        f"CHECK ((num_nulls({quote_names(key.columns)}) = ANY (ARRAY[0, {len(key.columns)}])))"
        + scope,
    )


def _derive_name(name: str, suffix: str) -> str:
    """
    Return a name for what is made of something named.

    Names that are cut short may become the same; what is cut off is told by its hash.
    """
    if len((name + suffix).encode()) <= _MAX_NAME_BYTES:
        return name + suffix
    suffix = f"_{hashlib.sha256(name.encode()).hexdigest()[:8]}{suffix}"
    return name.encode()[: _MAX_NAME_BYTES - len(suffix)].decode(errors="ignore") + suffix


def _widen_exclusion(exclusion: Exclusion) -> Exclusion:
    return replace(exclusion, elements=((_OWN, "="), *exclusion.elements))


def _widen_index(index: Index) -> Index:
    # GIN, BRIN, GiST and hash answer queries that a leading uuid would not make faster.
    if index.method != "btree":
        return index
    return replace(index, elements=(quote_name(_OWN), *index.elements))
