"""Net changes as rows of a staging table, in the format of binary COPY."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from struct import Struct

from psycopg2 import sql
from psycopg2.extensions import cursor as cursor_type

from tenantferry.errors import PermanentError
from tenantferry.stream.netchange import Changes, Key, KeyedChanges
from tenantferry.stream.pgoutput import NULL, UNCHANGED, Field
from tenantferry.stream.relations import StreamedTable

# Signature, flags and length of the header extension; the trailer is a row of -1 columns.
_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER = b"\xff\xff"
_ROW = Struct("!H").pack
_SHAPE = Struct("!ii").pack
_INT = Struct("!i").pack
_OID = Struct("!I").pack
# MaxHeapAttributeNumber: a table of almost as many columns leaves no room for ours beside them.
_MOST_COLUMNS = 1600
_COPY_READ_BYTES = 1 << 20

# Shapes of a staged row. An update has FIRST_UPDATE plus the number of its set of kept columns;
# of a table without a key, a negative shape is minus the number of rows of that image to delete.
DELETE, INSERT, FIRST_UPDATE = 0, 1, 2


@dataclass(slots=True)
class Staged:
    """
    What one set of net changes looks like in the staging table.

    :ivar kept: for each shape of an update the positions of the columns whose value only the
        target knows.
    :ivar counts: rows by shape.
    """

    data: BytesIO
    deletes: int = 0
    inserts: int = 0
    kept: dict[tuple[int, ...], int] = field(default_factory=dict)
    counts: dict[int, int] = field(default_factory=dict)

    @property
    def updates(self) -> int:
        """Number of updated rows."""
        return sum(self.counts.values())

    @property
    def is_empty(self) -> bool:
        """Whether the changes came to nothing."""
        return not (self.deletes or self.inserts or self.counts)


def find_text_columns(table: StreamedTable, changes: Changes) -> set[int]:
    """
    Return the positions of the columns that have to be staged as text.

    Those whose values came as text; and those without a binary input, which can only hold nulls
    then: not even these can be read into them.

    :raises PermanentError: if a value came in binary for a type that has no binary input here.
    """
    blind = {i for i, column in enumerate(table.columns) if not column.reads_binary}
    blind -= changes.text_columns
    if blind and any(row[i] not in (NULL, UNCHANGED) for row in changes.images() for i in blind):
        raise PermanentError(
            f'could not stage the changes of table "{table.label}"',
            detail="A value came in binary, and its type has no binary input on this side.",
            hint="Install the same version of the type's extension on both sides.",
        )
    return changes.text_columns | blind


def stage_changes(stage: Stage, changes: Changes) -> Staged:
    """Write net changes in the format of binary COPY, for a staging table that was created."""
    if isinstance(changes, KeyedChanges):
        return _stage_keyed(stage, changes)
    table = stage.table
    staged = Staged(BytesIO())
    rows = [_HEADER]
    start = _ROW(1 + len(table.columns))
    for image, count in changes.counts.items():
        if count < 0:
            rows += (start, _shape(count), *image)  # type: ignore[arg-type]  # bytes: no UNCHANGED
            staged.deletes -= count
        else:
            rows += (start, _shape(INSERT), *image) * count  # type: ignore[arg-type]  # the same
            staged.inserts += count
    return _finish(staged, rows)


def _stage_keyed(stage: Stage, changes: KeyedChanges) -> Staged:
    staged = Staged(BytesIO())
    key = stage.table.key
    start = _ROW(1 + len(key) + stage.width)
    no_key, no_image = NULL * len(key), NULL * stage.width
    as_delete, as_insert = start + _shape(DELETE), start + _shape(INSERT) + no_key
    rows = [_HEADER]
    for gone in changes.deletes():
        staged.deletes += 1
        rows += (as_delete, _join_key(gone), no_image)
    for row in changes.updates():
        fields = row.fields
        kept: tuple[int, ...] = ()
        if UNCHANGED in fields:
            kept = tuple(i for i, value in enumerate(fields) if value is UNCHANGED)
            fields = [NULL if value is UNCHANGED else value for value in fields]
        shape = staged.kept.setdefault(kept, FIRST_UPDATE + len(staged.kept))
        staged.counts[shape] = staged.counts.get(shape, 0) + 1
        rows += (start, _shape(shape), _join_key(row.original))
        rows += stage.pack(fields)  # type: ignore[arg-type]  # bytes: no UNCHANGED
    for fields in changes.inserts():
        staged.inserts += 1
        rows.append(as_insert)
        rows += stage.pack(fields)  # type: ignore[arg-type]  # bytes: no UNCHANGED
    return _finish(staged, rows)


def _finish(staged: Staged, rows: list[bytes]) -> Staged:
    rows.append(_TRAILER)
    # Not written to one: that would be another copy of every value.
    staged.data = BytesIO(b"".join(rows))
    return staged


def _shape(shape: int) -> bytes:
    return _SHAPE(4, shape)


def _join_key(key: Key) -> bytes:
    if isinstance(key, tuple):
        return b"".join(key)  # type: ignore[arg-type]  # a key is never UNCHANGED
    return key or NULL


class Stage:
    """
    The staging table of one streamed table; it belongs to the session and is empty at COMMIT.

    The last columns of a very wide table share one of a composite type.

    :ivar name: to be used in SQL.
    :ivar width: number of columns that hold an image.
    :ivar text_columns: positions of columns that are staged as text, for their type has no binary
        output.
    :ivar is_filled: whether this transaction has used it; its user keeps this up to date.
    """

    def __init__(self, table: StreamedTable, *, number: int, text_columns: set[int]) -> None:
        self.table = table
        self.number = number
        self.is_filled = False
        self.name = sql.Identifier("pg_temp", f"stage_{number}")
        self.text_columns = frozenset(text_columns)
        self.width = min(len(table.columns), _MOST_COLUMNS - 1 - len(table.key))
        # So many columns of the table have one of their own.
        self._plain = self.width - (self.width < len(table.columns))
        self._rest_name = sql.Identifier("pg_temp", f"rest_{number}")
        self._rest_types: list[int] = []

    def create(self, cursor: cursor_type) -> None:
        """Create the table, or create it anew with other columns."""
        columns: list[sql.Composable] = [sql.SQL("shape integer")]
        columns += [self.describe(key_column(n), i) for n, i in enumerate(self.table.key)]
        columns += [self.describe(image_column(i), i) for i in range(self._plain)]
        cursor.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(self.name))
        cursor.execute(sql.SQL("DROP TYPE IF EXISTS {}").format(self._rest_name))
        if self._plain < self.width:
            self._create_rest(cursor)
            columns.append(sql.SQL("rest {}").format(self._rest_name))
        cursor.execute(
            sql.SQL("CREATE TEMPORARY TABLE {} ({}) ON COMMIT DELETE ROWS").format(
                self.name, sql.SQL(", ").join(columns)
            )
        )

    def _create_rest(self, cursor: cursor_type) -> None:
        rest = range(self._plain, len(self.table.columns))
        cursor.execute(
            sql.SQL("CREATE TYPE {} AS ({})").format(
                self._rest_name,
                sql.SQL(", ").join(self.describe(image_column(i), i) for i in rest),
            )
        )
        # The binary format of a composite value names the types.
        cursor.execute(
            "SELECT a.atttypid FROM pg_catalog.pg_attribute AS a"
            " WHERE a.attrelid = %s::pg_catalog.regclass ORDER BY a.attnum",
            (f"pg_temp.rest_{self.number}",),
        )
        self._rest_types = [oid for (oid,) in cursor.fetchall()]

    def pack(self, fields: Sequence[Field]) -> Sequence[Field]:
        """Return the fields of an image, none of them UNCHANGED, as the table has columns."""
        if self._plain == len(fields):
            return fields
        rest = [_INT(len(self._rest_types))]
        for oid, value in zip(self._rest_types, fields[self._plain :], strict=True):
            rest += (_OID(oid), value or NULL)
        packed = b"".join(rest)
        return [*fields[: self._plain], _INT(len(packed)), packed]

    def load(self, cursor: cursor_type, staged: Staged) -> None:
        """
        Fill the table.

        :raises PermanentError: if a value does not fit the column's type in the target.
        """
        statement = sql.SQL("COPY {} FROM STDIN (FORMAT binary)").format(self.name)
        cursor.copy_expert(statement, staged.data, size=_COPY_READ_BYTES)
        wanted = staged.inserts + staged.updates
        if cursor.rowcount < wanted:
            raise PermanentError(f'could not stage the changes of table "{self.table.label}"')

    def clear(self, cursor: cursor_type) -> None:
        """Empty the table before the transaction ends."""
        cursor.execute(sql.SQL("TRUNCATE {}").format(self.name))

    def old_key(self, number: int) -> sql.Composed:
        """Return the old value of the *number*-th key column of a staged row."""
        value = sql.SQL("staged.{}").format(key_column(number))
        return self._typed(self.table.key[number], value)

    def image(self, position: int) -> sql.Composed:
        """Return the value at *position* of a staged row, in the type of its column."""
        return self._typed(position, self.raw_image(position))

    def raw_image(self, position: int) -> sql.Composed:
        """Return the value at *position* of a staged row, which may be its text."""
        place = "staged.{}" if position < self._plain else "(staged.rest).{}"
        return sql.SQL(place).format(image_column(position))

    def set_image(self, position: int, value: sql.Composable) -> sql.Composed:
        """Return what stands behind SET to give a staged row another value at *position*."""
        place = "{} = {}" if position < self._plain else "rest.{} = {}"
        return sql.SQL(place).format(image_column(position), value)

    def _typed(self, position: int, staged: sql.Composed) -> sql.Composed:
        """Give back its type to a value that may be staged as text."""
        if position not in self.text_columns:
            return staged
        type_name = self.table.columns[position].type_name
        return sql.SQL("{}::{}").format(staged, sql.SQL(type_name))

    def describe(self, name: sql.Identifier, position: int) -> sql.Composed:
        """Return the definition of a staging column for values at *position*."""
        # A type name as format_type spells it is SQL already.
        is_text = position in self.text_columns
        type_name = "text" if is_text else self.table.columns[position].base_type
        return sql.SQL("{} {}").format(name, sql.SQL(type_name))


class KeyStage:
    """
    The staging table of keys of one streamed table; it belongs to the session and is empty at
    COMMIT.

    :param stage: of the same table; keys are staged in its format.
    :ivar name: to be used in SQL.
    :ivar is_filled: as that of a `Stage`.
    """

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._is_created = False
        self.name = sql.Identifier("pg_temp", f"keys_{stage.number}")
        self.is_filled = False

    def fill(self, cursor: cursor_type, keys: Iterable[Key]) -> None:
        """Fill the table with nothing but *keys*; create it before, where that was not done."""
        key = self._stage.table.key
        if not self._is_created:
            columns = [self._stage.describe(key_column(n), i) for n, i in enumerate(key)]
            cursor.execute(
                sql.SQL(
                    "DROP TABLE IF EXISTS {name};"
                    " CREATE TEMPORARY TABLE {name} ({columns}) ON COMMIT DELETE ROWS"
                ).format(name=self.name, columns=sql.SQL(", ").join(columns))
            )
            self._is_created = True
        elif self.is_filled:
            cursor.execute(sql.SQL("TRUNCATE {}").format(self.name))
        start = _ROW(len(key))
        rows = [part for found in keys for part in (start, _join_key(found))]
        data = BytesIO(b"".join([_HEADER, *rows, _TRAILER]))
        statement = sql.SQL("COPY {} FROM STDIN (FORMAT binary)").format(self.name)
        cursor.copy_expert(statement, data, size=_COPY_READ_BYTES)
        self.is_filled = True


def key_column(number: int) -> sql.Identifier:
    """Return the staging column of the *number*-th key column's old value."""
    return sql.Identifier(f"k{number}")


def image_column(position: int) -> sql.Identifier:
    """Return the staging column of the value at *position*."""
    return sql.Identifier(f"c{position}")
