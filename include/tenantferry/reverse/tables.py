"""The tables of one source, as a reverse stream writes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet

from psycopg2.extensions import connection

from tenantferry.fleet.declaration import TableKind, Tenant
from tenantferry.reverse.change import Shape
from tenantferry.schema.own_rows import is_plain
from tenantferry.stream.drift import DriftError, check_same_columns
from tenantferry.stream.relations import StreamedTable, read_written_columns

_HINT = (
    "Make both sides the same; the stream goes on by itself. Change a table of a tenant in grace"
    " in the target first, and in the source when this error names it."
)


class SourceTables:
    """
    What the shapes of the target are in one source.

    :param source: open transaction or autocommit; asked for its columns.
    :param shapes: of the dispatcher; grows while this is used.
    :param read_copied: returns schema and name of the tables that the tenant went live with.
    """

    def __init__(
        self,
        source: connection,
        tenant: Tenant,
        shapes: Sequence[Shape],
        read_copied: Callable[[], AbstractSet[tuple[str, str]]],
    ) -> None:
        self._source = source
        self._tenant = tenant
        self._shapes = shapes
        self._read_copied = read_copied
        self._known: dict[int, tuple[StreamedTable | None, tuple[int, ...]]] = {}

    def knows(self, number: int) -> bool:
        """Tell whether a shape was looked up before."""
        return number in self._known

    def exists(self, number: int) -> bool:
        """Tell whether the source has a table of that name."""
        shape = self._shapes[number]
        return bool(read_written_columns(self._source, shape.schema, shape.name))

    def find(self, number: int) -> tuple[StreamedTable | None, tuple[int, ...]]:
        """
        Return the table of a shape, and the positions of what is sent but computed by the source.

        ``None`` in place of a table that does not move with this tenant.

        :raises DriftError: if the source has no such table, or another one, or if it moved with
            the tenant before it was declared otherwise.
        """
        known = self._known.get(number)
        if known is None:
            known = self._known[number] = self._look_up(self._shapes[number])
        return known

    def _look_up(self, shape: Shape) -> tuple[StreamedTable | None, tuple[int, ...]]:
        label = f"{shape.schema}.{shape.name}"
        if self._tenant.kind_of(shape.schema, shape.name) is not TableKind.TENANT:
            if (shape.schema, shape.name) in self._read_copied():
                raise DriftError(
                    f'table "{label}" went live with tenant "{self._tenant.key}", and is declared'
                    " not to move any more",
                    detail="The tenant's clients have changed rows of it in the target.",
                    hint="Take it out of the tenant's tables in the fleet file until the grace is"
                    " over; the stream goes on by itself.",
                )
            return None, ()
        columns = read_written_columns(self._source, shape.schema, shape.name)
        if not columns:
            raise DriftError(
                f'table "{label}" does not exist in the source',
                detail="The tenant's clients have changed rows of it in the target.",
                hint="Create it in the source; the stream goes on by itself.",
            )
        computed = self._read_computed(shape)
        sent = [column for column in shape.columns if column[0] not in computed]
        check_same_columns(
            label,
            "source",
            sent,
            [(column.name, column.type_name) for column in columns],
            sender="target",
            hint=_HINT,
        )
        positions = [i for i, (name, _) in enumerate(shape.columns) if name not in computed]
        table = StreamedTable(
            shape.schema,
            shape.name,
            tuple(columns),
            tuple(positions.index(position) for position in shape.key),
            only=is_plain(self._source, shape.schema, shape.name),
        )
        dropped = (i for i, (name, _) in enumerate(shape.columns) if name in computed)
        return table, tuple(dropped)

    def _read_computed(self, shape: Shape) -> set[str]:
        """Return the generated columns of the source's table."""
        with self._source.cursor() as cursor:
            cursor.execute(
                "SELECT a.attname FROM pg_catalog.pg_attribute AS a"
                " JOIN pg_catalog.pg_class AS c ON c.oid = a.attrelid"
                " JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace"
                " WHERE n.nspname = %s AND c.relname = %s AND a.attgenerated <> ''"
                " AND NOT a.attisdropped",
                (shape.schema, shape.name),
            )
            return {name for (name,) in cursor.fetchall()}
