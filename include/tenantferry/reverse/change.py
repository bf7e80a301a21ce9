"""Changes of one tenant on their way to its source, as they were read."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from tenantferry.stream.pgoutput import Field

# Kinds of a change. An update says whether it comes with the whole old row.
INSERT, UPDATE, UPDATE_WHOLE, DELETE, TRUNCATE = range(5)

# Number of the table's shape, kind, old row or key, new row; both without tenant_id. A plain tuple:
# there is one for every change, and many are written to a file and read back.
Change: TypeAlias = tuple[int, int, list[Field] | None, list[Field] | None]

# What a change costs in memory beyond its bytes: objects for a row and about ten fields.
CHANGE_OVERHEAD_BYTES = 500


class Piece(NamedTuple):
    """
    A transaction of the target as far as it is about one tenant, or a part of a large one.

    :ivar commit_lsn: of the transaction; they come in this order.
    :ivar commit_time: microseconds since 2000-01-01 UTC.
    :ivar end_lsn: where its commit record ends; 0 where another part follows.
    :ivar size_bytes: about what it takes in memory.
    """

    commit_lsn: int
    commit_time: int
    end_lsn: int
    size_bytes: int
    changes: list[Change]


class Shape(NamedTuple):
    """
    A table as the target sends it, without ``tenant_id``.

    :ivar columns: name and type of each, in order.
    :ivar key: positions of the columns that tell a tenant's rows apart; empty where whole rows do.
    """

    schema: str
    name: str
    columns: tuple[tuple[str, str], ...]
    key: tuple[int, ...]
