"""
Apply changes to a tenant that is copied in part: to its copied chunks, and to nothing else.

Which chunk a key falls into is Postgres' to say: it alone compares keys by their types and
collations. So the changes are staged as always, and the staged ones are thinned out there:

* a DELETE stays if the old key lies in a copied range, an INSERT if the new one does;
* an UPDATE of a row that stays in copied ranges stays; of one that stays out of them it goes;
* of a row that leaves the copied ranges it becomes a DELETE;
* of a row that enters them it becomes an INSERT. That takes the whole row. Where a value is not
  sent, for it was not changed and lies in TOAST, the chunk that the row enters is made pending
  again and its rows are deleted: a later snapshot brings them all.

What is left is applied and counted as always: each copied row is at P exactly, so exactly the
wanted rows must be there.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Sequence
from io import BytesIO
from itertools import groupby

from psycopg2 import sql
from psycopg2.extensions import connection
from psycopg2.extensions import cursor as cursor_type

from tenantferry.backfill.chunk import TEXT_SETTINGS, KeyColumn, range_predicate, to_chunk
from tenantferry.backfill.planning import read_key_columns
from tenantferry.backfill.reopening import give_up_chunks
from tenantferry.control.chunks import (
    ChunkRecord,
    has_pending_chunks,
    read_chunks,
)
from tenantferry.errors import TransientError
from tenantferry.fleet.declaration import Tenant
from tenantferry.schema.model import Table
from tenantferry.stream.relations import StreamedTable
from tenantferry.stream.staging import (
    DELETE,
    FIRST_UPDATE,
    INSERT,
    Stage,
    Staged,
)

logger = logging.getLogger(__name__)

# A side that a change does not have is null, and so is what is said of it.
_THIN_OUT = sql.SQL(
    "DELETE FROM {stage} AS staged WHERE NOT CASE WHEN shape = {delete} THEN {old_is_in}"
    " WHEN shape = {insert} THEN {new_is_in} ELSE {old_is_in} OR {new_is_in} END"
)
_TURN = sql.SQL(
    "UPDATE {stage} AS staged SET shape = CASE WHEN {old_is_in} THEN {delete} ELSE {insert} END"
    " WHERE shape >= {first_update} AND {old_is_in} <> {new_is_in}"
)
_ENTERED = sql.SQL(
    "SELECT DISTINCT {chunk} FROM {stage} AS staged"
    " WHERE shape = ANY ({shapes}) AND {new_is_in} AND NOT {old_is_in}"
)
_THIN_OUT_IMAGES = sql.SQL("DELETE FROM {stage} AS staged WHERE NOT {new_is_in}")
_COUNT = sql.SQL("SELECT shape, count(*) FROM {stage} GROUP BY shape")


def settle_part(
    source: connection,
    target: connection,
    tenant: Tenant,
    tables: Iterable[Table],
    *,
    while_copying: bool,
) -> CopiedPart | None:
    """
    Find out which part of a tenant a stream may write to.

    :param source: in autocommit; only read.
    :param target: the session that applies, in autocommit, with the stream's lock.
    :param while_copying: catch up with the rows copied so far, for a backfill that goes on.
    :return: ``None``: everything.
    :raises TransientError: if the tenant is copied in part, and this is not a catch-up.
    """
    if not while_copying:
        if has_pending_chunks(target, tenant.key):
            raise TransientError(
                f'tenant "{tenant.key}" is copied only in part',
                hint="The stream begins when its backfill is done.",
            )
        return None
    with target.cursor() as cursor:
        # A key that orders chunks as text is spelled as it was when they were cut.
        for name, value in TEXT_SETTINGS.items():
            cursor.execute("SELECT set_config(%s, %s, false)", (name, value))
    by_table = {
        name: list(chunks)
        for name, chunks in groupby(read_chunks(target, tenant.key), lambda c: (c.schema, c.table))
    }
    parts = {
        table.qualified: _Part(read_key_columns(source, table), by_table[table.qualified])
        for table in tables
        if table.qualified in by_table
    }
    return CopiedPart(tenant, parts)


class CopiedPart:
    """
    The part of a tenant that is copied so far.

    Only one session changes it: the one that moves P.

    :param parts: by schema and name.
    """

    def __init__(self, tenant: Tenant, parts: dict[tuple[str, str], _Part]) -> None:
        self._tenant = tenant
        self._parts = parts

    def has_some_of(self, table: StreamedTable) -> bool:
        """Tell whether changes of a table concern us at all."""
        return bool(self._parts[table.schema, table.name].copied)

    def thin_out(self, cursor: cursor_type, stage: Stage, staged: Staged) -> Staged:
        """
        Leave only changes of copied chunks in the staging table.

        :param cursor: in an open transaction; the caller commits it, with the changes.
        :param staged: what `Stage.load` loaded.
        :return: what is left.
        """
        part = self._parts[stage.table.schema, stage.table.name]
        if part.is_whole:
            return staged
        if not stage.table.key:
            cursor.execute(_THIN_OUT_IMAGES.format(**_conditions(part, stage)))
            return _count_images(cursor, stage)
        self._reopen_entered(cursor, stage, staged, part)
        conditions = _conditions(part, stage)
        cursor.execute(_THIN_OUT.format(**conditions))
        cursor.execute(_TURN.format(**conditions))
        return _count(cursor, stage, staged)

    def _reopen_entered(
        self, cursor: cursor_type, stage: Stage, staged: Staged, part: _Part
    ) -> None:
        """Give up the chunks that rows enter of which not every value is known."""
        incomplete = [shape for kept, shape in staged.kept.items() if kept]
        while incomplete and part.copied:
            # No parameters: a bound or a name may hold a percent sign.
            query = _ENTERED.format(
                chunk=part.number_of(_new_key(part.key_columns, stage)),
                shapes=sql.Literal(incomplete),
                **_conditions(part, stage),
            )
            cursor.execute(query)
            numbers = {number for (number,) in cursor}
            if not numbers:
                return
            # Then rows of these chunks may be the next to enter another one.
            self._reopen(cursor, stage.table, part, numbers)

    def _reopen(
        self, cursor: cursor_type, table: StreamedTable, part: _Part, numbers: Collection[int]
    ) -> None:
        chunks = [to_chunk(record, part.key_columns) for record in part.chunks_of(numbers)]
        give_up_chunks(cursor, self._tenant, table, chunks)
        part.copied.difference_update(numbers)
        logger.info(
            "copied chunks are pending again: a row came in without all its values"
            " tenant=%s table=%s chunks=%s",
            self._tenant.key,
            table.label,
            sorted(numbers),
        )


class _Part:
    """
    The chunks of one table, in key order.

    :ivar copied: numbers of those that are copied.
    """

    def __init__(self, key_columns: tuple[KeyColumn, ...], chunks: Sequence[ChunkRecord]) -> None:
        self.key_columns = key_columns
        self._chunks = chunks
        self.copied = {chunk.number for chunk in chunks if chunk.done_at is not None}

    @property
    def is_whole(self) -> bool:
        return len(self.copied) == len(self._chunks)

    def chunks_of(self, numbers: Collection[int]) -> list[ChunkRecord]:
        return [chunk for chunk in self._chunks if chunk.number in numbers]

    def is_in(self, key: Sequence[sql.Composable]) -> sql.Composed:
        """Build the condition that a key lies in a copied chunk."""
        return self.holds(key, self.chunks_of(self.copied))

    def holds(self, key: Sequence[sql.Composable], chunks: Iterable[ChunkRecord]) -> sql.Composed:
        """Build the condition that a key lies in one of some chunks."""
        ranges: list[tuple[tuple[str, ...] | None, tuple[str, ...] | None]] = []
        last = None
        for chunk in chunks:
            if last is not None and chunk.number == last + 1:
                ranges[-1] = ranges[-1][0], chunk.upper
            else:
                ranges.append((chunk.lower, chunk.upper))
            last = chunk.number
        conditions: list[sql.Composable] = [
            range_predicate(self.key_columns, key, lower=lower, upper=upper)
            for lower, upper in ranges
        ]
        return sql.SQL("({})").format(sql.SQL(" OR ").join(conditions or [sql.SQL("false")]))

    def number_of(self, key: Sequence[sql.Composable]) -> sql.Composed:
        """Build the expression that tells the chunk of a key."""
        branches: list[sql.Composable] = [
            sql.SQL("WHEN {} THEN {}").format(
                range_predicate(self.key_columns, key, lower=None, upper=chunk.upper),
                sql.Literal(chunk.number),
            )
            for chunk in self._chunks
        ]
        return sql.SQL("CASE {} END").format(sql.SQL(" ").join(branches))


def _conditions(part: _Part, stage: Stage) -> dict[str, sql.Composable]:
    names: dict[str, sql.Composable] = {
        "stage": stage.name,
        "delete": sql.Literal(DELETE),
        "insert": sql.Literal(INSERT),
        "first_update": sql.Literal(FIRST_UPDATE),
        "new_is_in": part.is_in(_new_key(part.key_columns, stage)),
    }
    if stage.table.key:
        names["old_is_in"] = part.is_in(_old_key(part.key_columns, stage))
    return names


def _old_key(columns: Iterable[KeyColumn], stage: Stage) -> list[sql.Composable]:
    key = [stage.table.columns[position].name for position in stage.table.key]
    return [stage.old_key(number) for number in (key.index(column.name) for column in columns)]


def _new_key(columns: Iterable[KeyColumn], stage: Stage) -> list[sql.Composable]:
    names = [column.name for column in stage.table.columns]
    return [stage.image(position) for position in (names.index(column.name) for column in columns)]


def _count(cursor: cursor_type, stage: Stage, staged: Staged) -> Staged:
    counts = _read_counts(cursor, stage)
    deletes, inserts = counts.pop(DELETE, 0), counts.pop(INSERT, 0)
    kept = {columns: shape for columns, shape in staged.kept.items() if shape in counts}
    return Staged(BytesIO(), deletes=deletes, inserts=inserts, kept=kept, counts=counts)


def _count_images(cursor: cursor_type, stage: Stage) -> Staged:
    counts = _read_counts(cursor, stage)
    inserts = counts.pop(INSERT, 0)
    deletes = sum(-shape * images for shape, images in counts.items())
    return Staged(BytesIO(), deletes=deletes, inserts=inserts)


def _read_counts(cursor: cursor_type, stage: Stage) -> dict[int, int]:
    cursor.execute(_COUNT.format(stage=stage.name))
    return dict(cursor.fetchall())
