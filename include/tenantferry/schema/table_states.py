"""
What the tables of a source are made of at one instant.

The rows that a stream has written since a comparison are known. For all others that comparison
holds only while nothing has changed them, or has brought new ones, that no stream tells of.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from psycopg2.extensions import connection

from tenantferry.fleet import TableKind, Tenant
from tenantferry.schema.reading import Row, read_rows, read_schemas

# In place of a table's label; that has a dot.
TYPES = "types"

# By ``schema.table``.
RowFiles = dict[str, frozenset[str]]


class TableState(NamedTuple):
    """
    Fingerprints of one table.

    :ivar shape: its identity, its columns, its partitions, and how it is published.
    :ivar files: where its rows are, and what old ones have in columns that came later. ``TRUNCATE``
        and what rewrites every row change it, also where the rows stay as they are, as by
        ``VACUUM FULL``; so does ``ATTACH PARTITION``, after which its changes are another table's.
    """

    shape: str
    files: str


@dataclass(frozen=True, slots=True)
class Changes:
    """
    What became of tables, as ``schema.table``.

    :ivar reshaped: they came, went, were published anew, or have other columns, types or
        partitions.
    :ivar rewritten: the same, but for their files.
    """

    reshaped: tuple[str, ...]
    rewritten: tuple[str, ...]


def read_table_states(source: connection, tenant: Tenant) -> dict[str, TableState]:
    """
    Return the states of the tables that move with the tenant, and that of their types.

    :param source: open transaction or autocommit; only read. Of its snapshot.
    """
    return {
        TYPES if schema is None else f"{schema}.{name}": TableState(shape, files)
        for schema, name, shape, files, _ in _read(source, tenant)
        if schema is None or tenant.kind_of(schema, name) is TableKind.TENANT
    }


def read_row_files(source: connection, tenant: Tenant) -> RowFiles:
    """
    Return which files hold the rows of the tables that move with the tenant.

    Unlike `TableState.files` they stay the same where only columns change. A partition that was
    away has another one.

    :param source: open transaction or autocommit; only read. Of its snapshot.
    """
    return {
        f"{schema}.{name}": frozenset(row_files)
        for schema, name, _, _, row_files in _read(source, tenant)
        if schema is not None and tenant.kind_of(schema, name) is TableKind.TENANT
    }


def find_rewritten(before: RowFiles, after: RowFiles) -> list[str]:
    """
    Return the tables that came, or whose rows, or some of them, are not where they were.

    A further partition is no such change: it takes no rows along from where they were.

    >>> one, two, three = {"a.b": frozenset("1")}, {"a.b": frozenset("12")}, {"a.b": frozenset("2")}
    >>> find_rewritten(one, two), find_rewritten(two, three), find_rewritten({}, one)
    ([], ['a.b'], ['a.b'])
    """
    return sorted(
        label for label, files in after.items() if label not in before or before[label] - files
    )


def _read(source: connection, tenant: Tenant) -> list[Row]:
    schemas = list(read_schemas(source, None))
    parameters = {"schemas": schemas, "publication": tenant.publication}
    return read_rows(source, "table_states", parameters)


def find_changes(
    before: Mapping[str, tuple[str, str]], after: Mapping[str, tuple[str, str]]
) -> Changes:
    """
    Tell tables that changed.

    >>> one, two = {"public.a": ("x", "1")}, {"public.a": ("x", "2")}
    >>> find_changes(one, two)
    Changes(reshaped=(), rewritten=('public.a',))
    >>> find_changes(one, {})
    Changes(reshaped=('public.a',), rewritten=())
    """
    reshaped, rewritten = [], []
    for label in sorted(before.keys() | after.keys()):
        old, new = before.get(label), after.get(label)
        if old is None or new is None or old[0] != new[0]:
            reshaped.append(label)
        elif old != new:
            rewritten.append(label)
    return Changes(tuple(reshaped), tuple(rewritten))
