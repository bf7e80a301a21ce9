"""
Find what keeps partitioned tables and tables that inherit from being moved.

A partitioned table becomes one ordinary table; its root is what is published, read and written.
Tables that inherit stay tables of their own that inherit from one another, each with its own rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from tenantferry.fleet import TableKind, Tenant
from tenantferry.schema.database import Catalog, Partition
from tenantferry.schema.findings import Finding, error, warning
from tenantferry.schema.model import Check, Table

_MOST_NAMES = 5


def find_in_trees(source: Catalog, tenant: Tenant) -> Iterator[Finding]:
    """Return what stands against moving tables that consist of, or inherit from, others."""
    partitions = {
        root: tuple(group) for root, group in groupby(source.partitions, key=lambda p: p.root)
    }
    for table in source.tables:
        kind = tenant.kind_of(*table.qualified)
        if kind is TableKind.TENANT and table.is_partitioned:
            yield from _find_in_partitions(table, partitions.get(table.qualified, ()))
        yield from _find_in_parents(table, source, tenant, kind)
    for partition in source.partitions:
        if partition.label in tenant.tables:
            detail = f"It is a partition of {'.'.join(partition.root)}, with which it moves."
            yield error("partition", partition.label, detail, "Declare the partitioned table.")


def _find_in_partitions(root: Table, partitions: tuple[Partition, ...]) -> Iterator[Finding]:
    for partition in partitions:
        yield from _find_in_partition(root, partition)
    if own := [f"{what} of {p.label}" for p in partitions for what in p.own]:
        shown = ", ".join(own[:_MOST_NAMES])
        more = f" and {len(own) - _MOST_NAMES} more" if len(own) > _MOST_NAMES else ""
        yield warning(
            "partition",
            root.label,
            f"Its partitions have what it does not have, and the target will not: {shown}{more}.",
            "Give it to the partitioned table itself if the application relies on it.",
        )
    if root.replica_identity != "d":
        yield warning(
            "replica identity",
            root.label,
            "Partitions do not get its replica identity by themselves: the application's UPDATE of"
            " one that is made meanwhile fails, or the stream stops.",
            "ALTER TABLE ... REPLICA IDENTITY of a new partition when it is made.",
        )
    if partitions:
        yield warning(
            "partition",
            root.label,
            "In the target it is one ordinary table: statements that name a partition find none.",
            "ATTACH, DETACH, DROP and TRUNCATE of partitions have to wait until it was moved. Have"
            " partitions for the days of grace ready, or a DEFAULT one: the way back needs them.",
        )


def _find_in_partition(root: Table, partition: Partition) -> Iterator[Finding]:
    if partition.kind == "f":
        detail = f"Its partition {partition.label} is a foreign table: the rows lie elsewhere."
        yield error("partition", root.label, detail, "DETACH that partition.")
    elif partition.persistence != "p":
        detail = f"Changes of its unlogged partition {partition.label} are not in the log."
        yield error("partition", root.label, detail, "ALTER TABLE ... SET LOGGED that partition.")
    elif partition.kind == "r" and not _is_identified_alike(root, partition):
        # The server sends what the partition's identity keeps, and calls it that of the root.
        detail = f"Its partition {partition.label} has another replica identity than it has."
        hint = "ALTER TABLE ... REPLICA IDENTITY of the partition as that of its root."
        yield error("replica identity", root.label, detail, hint)
    for column in partition.generated_otherwise:
        detail = f"Column {column} of its partition {partition.label} is generated otherwise."
        hint = "Give it the expression of the partitioned table."
        yield error("partition", root.label, detail, hint)


def _is_identified_alike(root: Table, partition: Partition) -> bool:
    if root.replica_identity == "f" or partition.replica_identity == "f":
        # A whole old row holds the key of any root.
        return partition.replica_identity == "f"
    return set(partition.key) == set(root.key)


def _find_in_parents(
    table: Table, source: Catalog, tenant: Tenant, kind: TableKind
) -> Iterator[Finding]:
    for names in table.parents:
        label = ".".join(names)
        if tenant.kind_of(*names) is not kind:
            detail = f"It inherits from {label}, which is not moved in the same way."
            yield error("inheritance", table.label, detail, "Declare both tables alike.")
            continue
        parent = source.find_table(*names)
        if parent is None:
            if kind is TableKind.TENANT:
                detail = f"It inherits from {label}, which cannot be moved."
                hint = "See what is said about that table."
                yield error("inheritance", table.label, detail, hint)
        elif kind is TableKind.TENANT:
            yield from _find_what_a_parent_wants(table, parent)


def _find_what_a_parent_wants(child: Table, parent: Table) -> Iterator[Finding]:
    """Find what newer servers want of a child and older ones let it drop."""
    never_null = {column.name for column in child.columns if column.not_null}
    for column in parent.columns:
        if column.not_null and column.name not in never_null:
            detail = f"Column {column.name} may be null, and not so in its parent {parent.label}."
            hint = "ALTER TABLE ... ALTER COLUMN ... SET NOT NULL."
            yield error("inheritance", child.label, detail, hint)
    own = {check.name for check in child.checks}
    for check in parent.checks:
        if check.name not in own and not _is_local(check):
            detail = f'It lacks the check "{check.name}" of its parent {parent.label}.'
            yield error("inheritance", child.label, detail, "Add it to the child.")


def _is_local(check: Check) -> bool:
    return check.definition.endswith("NO INHERIT")
