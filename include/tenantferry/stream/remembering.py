"""
Remember which rows a forward stream writes, so that a cutover compares these again and no others.

It begins when the stream first holds, for that is where a comparison begins; before, it costs
nothing. What is remembered commits together with the rows. A table of which too many rows are
written is remembered as a whole.

A key is recorded once, however often its row is written. Invariant: what this process takes for
recorded stands in `tenantferry.touched`, with a *written_after* that is not below the last position
V at which both sides were compared, or may yet be. It holds because whoever brings P to V has the
stream's lock, and forgets there all that it knew: when P is moved to V, and when it holds at V. A
process that starts later knows nothing yet, and starts at V or behind it. So what is known is a
matter of one process; one that is lost costs only that keys are recorded twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from psycopg2 import sql
from psycopg2.extensions import cursor as cursor_type

from tenantferry.lsn import format_lsn
from tenantferry.stream.netchange import Changes, Key, KeyedChanges
from tenantferry.stream.staging import KeyStage, Stage

# Of one table, between two holds. To look up so many rows by their keys takes about a second.
MAX_KEYS = 20_000
# Of all tables; a key takes so much beyond its bytes: an object and its place in a set.
MAX_BYTES = 32 * 1024 * 1024
_KEY_OVERHEAD_BYTES = 100

_KEYS = sql.SQL(
    "INSERT INTO tenantferry.touched"
    " (tenant, table_schema, table_name, key_columns, keys, written_after)"
    " SELECT {tenant}, {schema}, {table}, {columns}::pg_catalog.text[], array_agg(value ORDER BY"
    " row_key, number), {position}::pg_catalog.pg_lsn"
    " FROM (SELECT DISTINCT {key} AS row_key FROM {keys} AS staged) AS keys,"
    " unnest(row_key) WITH ORDINALITY AS fields (value, number)"
)
_WHOLE = (
    "INSERT INTO tenantferry.touched"
    " (tenant, table_schema, table_name, key_columns, written_after)"
    " VALUES (%s, %s, %s, '{}', %s)"
)


@dataclass(slots=True)
class _Recorded:
    """
    What is recorded of one table.

    :ivar stage: two keys that look alike are the same only in the format of one stage.
    :ivar is_whole: any row is; *keys* is empty then.
    :ivar is_committed: whether all of it is.
    """

    stage: Stage
    key_stage: KeyStage
    keys: set[Key] = field(default_factory=set)
    size_bytes: int = 0
    is_whole: bool = False
    is_committed: bool = True

    def forget(self) -> None:
        self.keys.clear()
        self.size_bytes = 0
        self.is_whole = False


class Memory:
    """
    Remembers what one stream writes.

    :param is_on: whether an earlier start of the stream has begun to.
    """

    def __init__(self, tenant: str, *, is_on: bool) -> None:
        self._tenant = tenant
        self._is_on = is_on
        self._tables: dict[str, _Recorded] = {}

    def begin(self) -> None:
        """Remember from here on what is written, also what was remembered before."""
        self._is_on = True
        self.restart()

    def restart(self) -> None:
        """Take nothing for recorded any more; only between two transactions."""
        for recorded in self._tables.values():
            recorded.forget()

    def forget_uncommitted(self) -> None:
        """Say that a transaction begins: one before it that did not commit recorded nothing."""
        self._tables = {
            label: recorded for label, recorded in self._tables.items() if recorded.is_committed
        }

    def mark_committed(self) -> None:
        """Say that the transaction is committed."""
        for recorded in self._tables.values():
            recorded.is_committed = True
            recorded.key_stage.is_filled = False

    def note(self, cursor: cursor_type, stage: Stage, changes: Changes, *, position: int) -> None:
        """
        Remember the rows of net changes.

        :param cursor: in the transaction that applies them.
        :param position: P before it.
        """
        if not self._is_on:
            return
        recorded = self._recorded(stage)
        if recorded.is_whole:
            return
        if not isinstance(changes, KeyedChanges):
            self.note_all(cursor, stage, position=position)
            return
        keys = changes.keys() - recorded.keys
        if not keys:
            return
        size_bytes = sum(map(_size, keys))
        if (
            len(recorded.keys) + len(keys) > MAX_KEYS
            or sum(r.size_bytes for r in self._tables.values()) + size_bytes > MAX_BYTES
        ):
            self.note_all(cursor, stage, position=position)
            return
        recorded.is_committed = False
        recorded.key_stage.fill(cursor, keys)
        cursor.execute(self._keys_query(recorded, position))
        recorded.keys |= keys
        recorded.size_bytes += size_bytes

    def note_all(self, cursor: cursor_type, stage: Stage, *, position: int) -> None:
        """Remember that any row of a table may have been written."""
        if not self._is_on:
            return
        recorded = self._recorded(stage)
        if recorded.is_whole:
            return
        recorded.is_committed = False
        table = stage.table
        cursor.execute(_WHOLE, (self._tenant, table.schema, table.name, format_lsn(position)))
        recorded.forget()
        recorded.is_whole = True

    def _recorded(self, stage: Stage) -> _Recorded:
        label = stage.table.label
        recorded = self._tables.get(label)
        if recorded is None or recorded.stage is not stage:
            recorded = self._tables[label] = _Recorded(stage, KeyStage(stage))
        return recorded

    def _keys_query(self, recorded: _Recorded, position: int) -> sql.Composed:
        stage = recorded.stage
        table = stage.table
        columns = [table.columns[i].name for i in table.key]
        key = [
            # The columns' own collations may not mix, or take different bytes for equal.
            sql.SQL('{}::pg_catalog.text COLLATE "C"').format(stage.old_key(number))
            for number in range(len(columns))
        ]
        return _KEYS.format(
            tenant=sql.Literal(self._tenant),
            schema=sql.Literal(table.schema),
            table=sql.Literal(table.name),
            columns=sql.Literal(columns),
            position=sql.Literal(format_lsn(position)),
            key=sql.SQL("ARRAY[{}]").format(sql.SQL(", ").join(key)),
            keys=recorded.key_stage.name,
        )


def _size(key: Key) -> int:
    fields = key if isinstance(key, tuple) else (key,)
    return _KEY_OVERHEAD_BYTES + sum(len(found or b"") for found in fields)
