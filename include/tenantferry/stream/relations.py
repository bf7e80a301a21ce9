"""Which tables a stream carries, and whether both sides still agree about their columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

from psycopg2.extensions import connection

from tenantferry.schema.model import Table
from tenantferry.schema.own_rows import is_plain
from tenantferry.stream.advice import advise
from tenantferry.stream.drift import DriftError, OutdatedShapeError, check_same_columns
from tenantferry.stream.netchange import Changes, KeyedChanges, KeylessChanges
from tenantferry.stream.pgoutput import Relation
from tenantferry.stream.planned import PlannedTables

_COLUMNS = resources.files("tenantferry.stream").joinpath("written_columns.sql").read_text("utf-8")
_TYPE_NAMES = (
    "SELECT format_type(type, typmod) FROM unnest(%s::oid[], %s::integer[])"
    " WITH ORDINALITY AS columns (type, typmod, number) ORDER BY number"
)
_TEXT_ONLY = resources.files("tenantferry.stream").joinpath("text_only.sql").read_text("utf-8")
_ROOT = (
    "SELECT schemas.nspname, classes.relname FROM pg_catalog.pg_class AS classes"
    " JOIN pg_catalog.pg_namespace AS schemas ON schemas.oid = classes.relnamespace"
    " WHERE classes.oid = pg_partition_root(%s)"
)
_NAME = (
    "SELECT schemas.nspname, classes.relname FROM pg_catalog.pg_class AS classes"
    " JOIN pg_catalog.pg_namespace AS schemas ON schemas.oid = classes.relnamespace"
    " WHERE classes.oid = %s"
)
_OIDS = (
    "SELECT to_regclass(format('%%I.%%I', tables.schema, tables.name))::oid"
    " FROM unnest(%s::text[], %s::text[]) WITH ORDINALITY AS tables (schema, name, number)"
    " ORDER BY number"
)
TENANT_COLUMN = "tenant_id"


_OUTDATED = (
    "These rows were written before both sides had the shape that they have now, and nobody can"
    ' tell what they would be in it: the tenant must be copied again. Clear the task "backfill" and'
    " those after it."
)


@dataclass(frozen=True, slots=True)
class WrittenColumn:
    """
    A column of the receiver whose value the stream carries.

    :ivar base_type: the type below all domains, by which a row is staged, and its collation.
    :ivar equality: schema and name of the operator that its index uses.
    :ivar identity_always: it refuses an UPDATE.
    :ivar reads_binary: its type has a binary input. Else values come as text.
    """

    name: str
    type_name: str
    base_type: str
    equality: tuple[str, str] = ("pg_catalog", "=")
    identity_always: bool = False
    reads_binary: bool = True


@dataclass(frozen=True, slots=True)
class StreamedTable:
    """
    A table as the stream applies it.

    :ivar columns: in the order in which the sender sends them.
    :ivar key: positions of the key columns; empty where rows have no usable key.
    :ivar only: it is not partitioned where it is applied.
    """

    schema: str
    name: str
    columns: tuple[WrittenColumn, ...]
    key: tuple[int, ...]
    only: bool = False

    @property
    def label(self) -> str:
        """Return ``schema.table`` as people write it; not SQL."""
        return f"{self.schema}.{self.name}"

    def new_changes(self) -> Changes:
        """Return an empty set of net changes for it."""
        return KeyedChanges(self.key) if self.key else KeylessChanges()


class Relations:
    """
    The tables of the move by the oid under which the source speaks of them.

    Changes of a table that is not planned to be copied are left out: once it is, a later snapshot
    shows them.

    :param source: in autocommit; asked for the names of types.
    :param target: in autocommit; asked for its columns.
    """

    def __init__(
        self,
        source: connection,
        target: connection,
        tables: Iterable[Table],
        planned: PlannedTables,
    ) -> None:
        self._source = source
        self._target = target
        self._planned = planned
        self._tables: Mapping[tuple[str, str], Table] = {t.qualified: t for t in tables}
        # Of these the source says that it sends whole old rows, whatever a partition keeps of them.
        self._whole_roots = {
            t.qualified
            for t in self._tables.values()
            if t.is_partitioned and t.replica_identity == "f" and t.qualified in planned.copied
        }
        self._names = _read_names(source, list(self._tables))
        # Copied rows are known by the name that their table had then.
        self._names |= {
            oid: name for name, oid in planned.oids.items() if oid and name in planned.copied
        }
        self._known: dict[int, tuple[Relation, StreamedTable | None]] = {}
        # It may have been a partition. Then the change that it was sent for is one of its root.
        self._suspect: Relation | None = None

    def __getitem__(self, oid: int) -> StreamedTable | None:
        """
        Return the table of an oid that a change is of; ``None`` if it is not part of the move.

        :raises DriftError: if that change was written to a partition whose old rows are not whole.
        """
        table = self._known[oid][1]
        suspect, self._suspect = self._suspect, None
        is_whole = table is not None and (table.schema, table.name) in self._whole_roots
        if suspect is not None and is_whole:
            raise _tell_partition(suspect)
        return table

    def truncated(self, oids: Iterable[int]) -> list[StreamedTable]:
        """Return those that are part of the move. No partition of a published root is sent so."""
        self._suspect = None
        return [table for oid in oids if (table := self._known[oid][1]) is not None]

    def learn(self, relation: Relation) -> None:
        """
        Check a table that the source is about to send changes of.

        One that is not copied, or a partition of one inside the move, is remembered as such and
        otherwise ignored.

        :raises DriftError: if source and target do not agree about its columns, or if it is not
            the table any more that was copied under its name.
        """
        known, table = self._known.get(relation.oid, (None, None))
        # What depends on names is looked at again: they may have changed since.
        is_settled = table is not None and (table.schema, table.name) == (
            relation.schema,
            relation.name,
        )
        if known != relation or not is_settled:
            self._known[relation.oid] = relation, self._find(relation)

    def _find(self, relation: Relation) -> StreamedTable | None:
        planned, sent_as = self._planned, (relation.schema, relation.name)
        name = self._names.get(relation.oid, sent_as)
        if name in planned.copied and name != sent_as and self._read_name(relation.oid) != name:
            raise _renamed(
                name, "was renamed", f'Its changes come as those of "{".".join(sent_as)}". '
            )
        table = self._tables.get(name)
        if table is None and name in planned.copied and self._read_name(relation.oid):
            raise _renamed(name, "was renamed, or does not move any more")
        if name not in planned.oids and table is None and relation.identity != "f":
            self._check_partition(relation)
        if table is None or name not in planned.copied:
            return None  # a later snapshot shows its rows, if it is copied at all
        oid = planned.oids[name]
        if oid is None or oid != relation.oid:
            if oid is not None and self._read_name(oid) == name:
                return None  # another one that had the name for a while
            raise DriftError(
                f'table "{table.label}" of the source was dropped and made again',
                detail="The target has rows of the dropped one. None of the new one was applied.",
                hint='Clear the task "preflight" and those after it, which copies this table only.',
            )
        return self._check(relation, table)

    def _read_name(self, oid: int) -> tuple[str, str] | None:
        """Return the name that a table has now, if it is there."""
        with self._source.cursor() as cursor:
            cursor.execute(_NAME, (oid,))
            return cursor.fetchone()

    def _check_partition(self, relation: Relation) -> None:
        """Check that the old rows of a partition may pass for those of its root."""
        if not self._whole_roots:
            return
        with self._source.cursor() as cursor:
            cursor.execute(_ROOT, (relation.oid,))
            root = cursor.fetchone()
        if root is None:
            self._suspect = relation
        elif root in self._whole_roots:
            raise _tell_partition(relation)

    def _check(self, relation: Relation, table: Table) -> StreamedTable:
        target = read_written_columns(self._target, table.schema, table.name)
        names = [column.name for column in relation.columns]
        sent = list(zip(names, read_type_names(self._source, relation), strict=True))
        expected = [(column.name, column.type_name) for column in target]
        if sent != expected:
            now = read_written_columns(self._source, table.schema, table.name)
            is_outdated = [(column.name, column.type_name) for column in now] == expected
            check_same_columns(
                table.label,
                "target",
                sent,
                expected,
                sender="source",
                hint=_OUTDATED
                if is_outdated
                else advise(self._source, table.qualified, sent, expected),
                error=OutdatedShapeError if is_outdated else DriftError,
            )
        if relation.identity in "di" or not set(table.key) <= set(names):
            _check_key(table, [c.name for c in relation.columns if c.in_key])
        key = () if _is_deferrable(table) else table.key
        return StreamedTable(
            table.schema,
            table.name,
            tuple(target),
            tuple(names.index(name) for name in key),
            only=is_plain(self._target, table.schema, table.name),
        )


def _tell_partition(relation: Relation) -> OutdatedShapeError:
    name = f"{relation.schema}.{relation.name}"
    return OutdatedShapeError(
        f'table "{name}" has another replica identity than what it is a partition of',
        detail="Its changes come without whole old rows. None of them was applied.",
        hint=f"ALTER TABLE {name} REPLICA IDENTITY FULL, then clear the task"
        ' "backfill" and those after it: the tenant is copied again.',
    )


def _renamed(name: tuple[str, str], what: str, detail: str = "") -> DriftError:
    return DriftError(
        f'table "{".".join(name)}" of the source {what}',
        detail=f"{detail}None of its changes was applied.",
        hint='Give it its name back and clear the task "stream_cdc"; or clear "preflight" and those'
        " after it, which copies again what is copied under another name.",
    )


def _read_names(source: connection, names: Sequence[tuple[str, str]]) -> dict[int, tuple[str, str]]:
    """Return the tables by their oid; without those that are gone."""
    with source.cursor() as cursor:
        cursor.execute(_OIDS, ([schema for schema, _ in names], [name for _, name in names]))
        found = zip(cursor.fetchall(), names, strict=True)
    return {oid: name for (oid,), name in found if oid is not None}


def read_type_names(sender: connection, relation: Relation) -> list[str]:
    """
    Return the types of a relation's columns as people write them.

    :param sender: open transaction or autocommit; only read.
    """
    with sender.cursor() as cursor:
        cursor.execute(
            _TYPE_NAMES,
            ([c.type_oid for c in relation.columns], [c.typmod for c in relation.columns]),
        )
        return [row[0] for row in cursor.fetchall()]


def read_written_columns(receiver: connection, schema: str, name: str) -> list[WrittenColumn]:
    """
    Return the columns whose values the stream carries: without generated ones and ``tenant_id``.

    :param receiver: open transaction or autocommit; only read.
    :return: empty where there is no such table.
    """
    with receiver.cursor() as cursor:
        cursor.execute(_COLUMNS, (schema, name, schema, name))
        rows = cursor.fetchall()
    return [
        WrittenColumn(
            column,
            type_name,
            base_type,
            ("pg_catalog", "=") if equality[1] is None else (equality[0], equality[1]),
            always,
            reads_binary,
        )
        for column, type_name, base_type, generated, always, reads_binary, *equality in rows
        if column != TENANT_COLUMN and not generated
    ]


def can_send_binary(sender: connection, tables: Iterable[tuple[str, str]]) -> bool:
    """
    Tell whether a server can send all values of these tables in binary.

    :param sender: open transaction or autocommit; only read.
    :param tables: schema and name of each.
    """
    names = list(tables)
    with sender.cursor() as cursor:
        cursor.execute(_TEXT_ONLY, ([schema for schema, _ in names], [name for _, name in names]))
        return cursor.fetchone() == (False,)


def _check_key(table: Table, sent: Sequence[str]) -> None:
    if set(sent) != set(table.key):
        raise DriftError(
            f'table "{table.label}" has changed: its replica identity differs',
            detail=f"The source sends the key ({', '.join(sent)}),"
            f" the move knows ({', '.join(table.key)}).",
            hint='Clear the task "prepare" and those after it.',
        )


def _is_deferrable(table: Table) -> bool:
    # Two rows may then share a key for the length of a transaction: it does not tell them apart.
    return any(key.deferrable and set(key.columns) == set(table.key) for key in table.keys)
