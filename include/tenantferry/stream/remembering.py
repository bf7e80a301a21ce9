"""
Remember which rows a forward stream writes, so that a cutover compares these again and no others.

It begins when the stream first holds, for that is where a comparison begins; before, it costs
nothing. What is remembered commits together with the rows. A table of which too many rows are
written is remembered as a whole.
"""

from __future__ import annotations

from psycopg2 import sql
from psycopg2.extensions import cursor as cursor_type

from tenantferry.lsn import format_lsn
from tenantferry.stream.relations import StreamedTable
from tenantferry.stream.staging import DELETE, INSERT, Stage, Staged

# Of one table, between two holds. To look up so many rows by their keys takes about a second.
MAX_KEYS = 20_000

_KEYS = sql.SQL(
    "INSERT INTO tenantferry.touched"
    " (tenant, table_schema, table_name, key_columns, keys, written_after)"
    " SELECT {tenant}, {schema}, {table}, {columns}::pg_catalog.text[], array_agg(value ORDER BY"
    " row_key, number), {position}::pg_catalog.pg_lsn"
    " FROM (SELECT {old} AS row_key FROM {stage} AS staged WHERE shape <> {insert}"
    " UNION SELECT {new} FROM {stage} AS staged WHERE shape <> {delete}) AS keys,"
    " unnest(row_key) WITH ORDINALITY AS fields (value, number)"
    " HAVING count(*) > 0"
)
_WHOLE = (
    "INSERT INTO tenantferry.touched"
    " (tenant, table_schema, table_name, key_columns, written_after)"
    " VALUES (%s, %s, %s, '{}', %s)"
)


class Memory:
    """
    Remembers what one stream writes.

    :param is_on: whether an earlier start of the stream has begun to.
    """

    def __init__(self, tenant: str, *, is_on: bool) -> None:
        self._tenant = tenant
        self._is_on = is_on
        # Keys remembered of each table since the last hold; None: the whole table.
        self._known: dict[str, int | None] = {}

    def begin(self) -> None:
        """Remember from here on what is written, also what was remembered before."""
        self._is_on = True
        self._known.clear()

    def note(self, cursor: cursor_type, stage: Stage, staged: Staged, *, position: int) -> None:
        """
        Remember the rows of staged changes.

        :param cursor: in the transaction that applies them.
        :param position: P before it.
        """
        table = stage.table
        if not self._is_on or self._known.get(table.label, 0) is None:
            return
        known = (self._known.get(table.label) or 0) + _count_keys(staged)
        if not table.key or known > MAX_KEYS:
            self.note_all(cursor, table, position=position)
            return
        self._known[table.label] = known
        columns = [table.columns[i].name for i in table.key]
        cursor.execute(
            _KEYS.format(
                tenant=sql.Literal(self._tenant),
                schema=sql.Literal(table.schema),
                table=sql.Literal(table.name),
                columns=sql.Literal(columns),
                position=sql.Literal(format_lsn(position)),
                stage=stage.name,
                old=_text_array([stage.old_key(n) for n in range(len(columns))]),
                new=_text_array([stage.image(i) for i in table.key]),
                insert=sql.Literal(INSERT),
                delete=sql.Literal(DELETE),
            )
        )

    def note_all(self, cursor: cursor_type, table: StreamedTable, *, position: int) -> None:
        """Remember that any row of a table may have been written."""
        if not self._is_on or self._known.get(table.label, 0) is None:
            return
        cursor.execute(_WHOLE, (self._tenant, table.schema, table.name, format_lsn(position)))
        self._known[table.label] = None


def _count_keys(staged: Staged) -> int:
    # An update may leave one key and take another.
    return staged.deletes + 2 * staged.updates + staged.inserts


def _text_array(values: list[sql.Composed]) -> sql.Composed:
    texts = [sql.SQL("{}::pg_catalog.text").format(value) for value in values]
    return sql.SQL("ARRAY[{}]").format(sql.SQL(", ").join(texts))
