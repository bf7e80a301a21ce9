"""
What partitions a table has at one instant.

A publication of the root tells neither that a partition comes or goes with its rows, nor that one
is truncated. An exact comparison sees what is missing or left over then; it holds for as long as
the partitions are those that it saw.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from psycopg2.extensions import connection

from tenantferry.schema.model import Table
from tenantferry.schema.reading import read_rows


def read_partition_state(source: connection, tables: Iterable[Table]) -> dict[str, str]:
    """
    Return a fingerprint of the partitions of each partitioned table, by ``schema.table``.

    A partition that is rewritten, e.g. by VACUUM FULL, changes it too.

    :param source: open transaction or autocommit; only read. Of its snapshot.
    """
    partitioned = [table for table in tables if table.is_partitioned]
    parameters = {
        "schemas": [table.schema for table in partitioned],
        "names": [table.name for table in partitioned],
    }
    rows = read_rows(source, "partition_state", parameters) if partitioned else []
    return {f"{schema}.{name}": state for schema, name, state in rows}


def find_changed_partitions(before: Mapping[str, str], after: Mapping[str, str]) -> tuple[str, ...]:
    """
    Return the tables whose partitions changed, as ``schema.table``.

    >>> find_changed_partitions({"public.a": "1", "public.b": "1"}, {"public.a": "1"})
    ('public.b',)
    """
    labels = sorted(before.keys() | after.keys())
    return tuple(label for label in labels if before.get(label) != after.get(label))
