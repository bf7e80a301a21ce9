"""Which tables of a tenant are copied, so that a stream may write to them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from psycopg2.extensions import connection

from tenantferry.control.chunks import read_chunks
from tenantferry.errors import TransientError
from tenantferry.fleet.declaration import TableKind, Tenant
from tenantferry.schema.model import Table
from tenantferry.schema.publication import read_published
from tenantferry.stream.drift import DriftError
from tenantferry.stream.marker import emit_marker


@dataclass(frozen=True, slots=True)
class PlannedTables:
    """
    The tables that a backfill has cut into chunks, by schema and name.

    :ivar oids: of the table of the source that each is; ``None``: it went.
    :ivar copied: those of which something is copied, and all changes were sent.
    :ivar unsent: those of which something is copied, and not all changes were sent.
    """

    oids: Mapping[tuple[str, str], int | None]
    copied: Collection[tuple[str, str]]
    unsent: Collection[tuple[str, str]] = ()


def read_planned_tables(
    source: connection, target: connection, tenant: Tenant, tables: Iterable[Table]
) -> PlannedTables:
    """
    Find out which tables a stream may write to, and of which it is not sent all changes.

    A chunk that a round may be copying right now counts as copied.

    :param source: in autocommit; only read.
    :param target: in autocommit; only read.
    :param tables: those that the stream knows.
    :raises TransientError: if it does not know a copied table, and would leave out its changes.
    """
    known = {table.qualified for table in tables}
    published = {table.entry: table for table in read_published(source, tenant)}
    oids: dict[tuple[str, str], int | None] = {}
    copied, unsent, unknown = set(), set(), set()
    for chunk in read_chunks(target, tenant.key):
        name = chunk.schema, chunk.table
        table = published.get(chunk.published_as)
        oids[name] = None if table is None else table.oid
        if chunk.done_at is None and chunk.round is None:
            continue
        if table is None and name in known:
            unsent.add(name)
            continue
        copied.add(name)
        if table is not None and name not in known and table.qualified == name:
            unknown.add(name)
    # One of another kind is none of the move any more; its changes are not applied.
    came = {name for name in unknown if tenant.kind_of(*name) is TableKind.TENANT}
    came -= {table.qualified for table in published.values() if table.is_partition}
    if came:
        raise TransientError(
            f'tables of tenant "{tenant.key}" came while its stream was started',
            detail=f"Tables: {_list(came)}.",
            hint="The next start knows them.",
        )
    return PlannedTables(oids, copied, unsent)


def tell_unsent(source: connection, tenant: Tenant, names: Iterable[tuple[str, str]]) -> DriftError:
    """
    Return the error of a stream that was not sent all changes of some tables.

    :param source: in autocommit.
    """
    drift = DriftError(
        f'not all changes of tables of tenant "{tenant.key}" were sent',
        detail="These were dropped and made again, or not published for a while, since they were"
        f" copied: {_list(names)}. What is sent of them now is not applied.",
        hint='Clear the task "preflight" and those after it, which copies these tables only.',
    )
    # Rows of the others may soon not fit any more, if somebody alters these tables, too.
    drift.commit_lsn = emit_marker(source, tenant)
    return drift


def _list(names: Iterable[tuple[str, str]]) -> str:
    return ", ".join(f"{schema}.{name}" for schema, name in sorted(names))
