"""Changes on their way: complete transactions of the source, netted, ready to be applied as one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from tenantferry.stream.netchange import Changes
from tenantferry.stream.relations import StreamedTable

# What a change costs in memory beyond its bytes: objects for a row and about ten fields.
CHANGE_OVERHEAD_BYTES = 500


@dataclass(slots=True)
class Segment:
    """
    Net changes of several tables, after which some tables are emptied.

    :ivar tables: by ``schema.table``.
    """

    tables: dict[str, tuple[StreamedTable, Changes]] = field(default_factory=dict)
    truncated: tuple[StreamedTable, ...] = ()


@dataclass(slots=True)
class Batch:
    """
    One step of the target.

    :ivar position: P after it; of an unfinished one 0.
    :ivar commit_time: of its last transaction, microseconds since 2000-01-01 UTC.
    :ivar is_complete: whether it ends at a commit of the source, so that it may be committed.
    :ivar size_bytes: about what it takes in memory.
    :ivar markers: contents of the tenant's own markers in it.
    """

    segments: list[Segment] = field(default_factory=lambda: [Segment()])
    position: int = 0
    commit_time: int = 0
    is_complete: bool = False
    size_bytes: int = 0
    changes: int = 0
    transactions: int = 0
    markers: list[bytes] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Whether applying it would do nothing at all."""
        return not (self.changes or self.transactions)

    def changes_of(self, table: StreamedTable) -> Changes:
        """Return where the changes of a table are netted from now on."""
        tables = self.segments[-1].tables
        known = tables.get(table.label)
        if known is not None and known[0] != table:
            # The table has another shape from here on.
            self.segments.append(Segment())
            tables, known = self.segments[-1].tables, None
        if known is None:
            known = tables[table.label] = (table, table.new_changes())
        return known[1]

    def truncate(self, tables: list[StreamedTable]) -> None:
        """Empty tables: what was collected for them is void, what comes is applied after it."""
        segment = self.segments[-1]
        for table in tables:
            segment.tables.pop(table.label, None)
        segment.truncated = tuple(tables)
        self.segments.append(Segment())

    def steps(self) -> Iterator[tuple[StreamedTable, Changes | None]]:
        """Yield tables with their net changes in order of application; ``None`` is TRUNCATE."""
        for segment in self.segments:
            yield from segment.tables.values()
            for table in segment.truncated:
                yield table, None
