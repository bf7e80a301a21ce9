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
from tenantferry.schema.reading import read_rows, read_schemas

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
    """Return the states of `read_states_and_files`."""
    return read_states_and_files(source, tenant)[0]


def read_row_files(source: connection, tenant: Tenant) -> RowFiles:
    """Return the files of `read_states_and_files`."""
    return read_states_and_files(source, tenant)[1]


def read_states_and_files(
    source: connection, tenant: Tenant
) -> tuple[dict[str, TableState], RowFiles]:
    """
    Return what the tables that move with the tenant are made of.

    :param source: open transaction or autocommit; only read. Of its snapshot.
    :return: their states and that of their types, and which files hold their rows. Unlike
        `TableState.files` these stay the same where only columns change.
    """
    schemas = list(read_schemas(source, None))
    parameters = {"schemas": schemas, "publication": tenant.publication}
    states, row_files = {}, {}
    for schema, name, shape, files, parts in read_rows(source, "table_states", parameters):
        if schema is None:
            states[TYPES] = TableState(shape, files)
        elif tenant.kind_of(schema, name) is TableKind.TENANT:
            states[f"{schema}.{name}"] = TableState(shape, files)
            row_files[f"{schema}.{name}"] = frozenset(parts)
    return states, row_files


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


def find_rewritten(before: RowFiles, after: RowFiles) -> list[str]:
    """
    Return the tables that came, or whose rows, or some of them, are not where they were.

    >>> find_rewritten({"a.b": frozenset("1")}, {"a.b": frozenset("12"), "a.c": frozenset("3")})
    ['a.b', 'a.c']
    """
    return sorted(label for label, files in after.items() if before.get(label) != files)
