"""A key range of one table, and the condition that selects its rows on either side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from psycopg2 import sql

from tenantferry.control.chunks import ChunkRecord

# Bounds travel as text: every session that writes or reads one spells values the same way,
# whatever the defaults of its role or database are. The same settings make the text of a row
# comparable between two servers. Any extra_float_digits above 0 is the shortest exact text.
TEXT_SETTINGS: Mapping[str, str] = {
    "extra_float_digits": "3",
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "bytea_output": "hex",
    "lc_monetary": "C",
    "xmlbinary": "base64",
    "xmloption": "content",
}

OPEN = sql.SQL("true")


@dataclass(frozen=True, slots=True)
class KeyColumn:
    """
    One column of the key that orders a table's chunks.

    :ivar type_name: as ``format_type`` spells it with ``search_path = pg_catalog``.
    :ivar collatable: compared as text in ``COLLATE "C"``. The order of such a type depends on
        the locale of a server, so the same range would hold other rows on the other side.
    """

    name: str
    type_name: str
    collatable: bool


@dataclass(frozen=True, slots=True)
class Chunk:
    """
    The rows of one table with ``lower < key <= upper``.

    :ivar number: from 1, in key order.
    :ivar key_columns: empty for a table without a usable key, which is one chunk.
    :ivar lower: exclusive bound, one text per key column; ``None`` is open.
    :ivar upper: inclusive bound; ``None`` is open.
    """

    schema: str
    table: str
    number: int
    key_columns: tuple[KeyColumn, ...]
    lower: tuple[str, ...] | None
    upper: tuple[str, ...] | None
    estimated_rows: int

    @property
    def label(self) -> str:
        """Return ``schema.table`` as people write it; not SQL."""
        return f"{self.schema}.{self.table}"


def to_record(chunk: Chunk, *, published_as: str) -> ChunkRecord:
    """
    Return what the control schema keeps of a chunk that is not copied.

    :param published_as: see `ChunkRecord`.
    """
    return ChunkRecord(
        schema=chunk.schema,
        table=chunk.table,
        number=chunk.number,
        key_columns=tuple(column.name for column in chunk.key_columns),
        lower=chunk.lower,
        upper=chunk.upper,
        estimated_rows=chunk.estimated_rows,
        published_as=published_as,
    )


def to_chunk(record: ChunkRecord, key_columns: tuple[KeyColumn, ...]) -> Chunk:
    """Return the chunk that the control schema speaks of."""
    return Chunk(
        schema=record.schema,
        table=record.table,
        number=record.number,
        key_columns=key_columns,
        lower=record.lower,
        upper=record.upper,
        estimated_rows=record.estimated_rows,
    )


def chunk_predicate(chunk: Chunk, *, alias: str | None = None) -> sql.Composed:
    """
    Build the condition that a row belongs to a chunk, in parentheses of its own.

    It holds literals, because COPY of a query cannot bind parameters.

    :param alias: name of the table in the query.
    """
    values = [_column(column, alias) for column in chunk.key_columns]
    return range_predicate(chunk.key_columns, values, lower=chunk.lower, upper=chunk.upper)


def range_predicate(
    key_columns: Sequence[KeyColumn],
    values: Sequence[sql.Composable],
    *,
    lower: tuple[str, ...] | None,
    upper: tuple[str, ...] | None,
) -> sql.Composed:
    """
    Build the condition ``lower < values <= upper``, in parentheses of its own.

    :param values: an expression of the type of each key column, or of the one below its domain.
    """
    parts: list[sql.Composable] = []
    if lower is not None:
        parts.append(_compare(key_columns, values, ">", lower))
    if upper is not None:
        parts.append(_compare(key_columns, values, "<=", upper))
    return sql.SQL("({})").format(sql.SQL(" AND ").join(parts or [OPEN]))


def key_expressions(key_columns: Iterable[KeyColumn]) -> list[sql.Composable]:
    """Return what orders the chunks: each key column, text-like ones in ``COLLATE "C"``."""
    return [_ordered(column, _column(column, None)) for column in key_columns]


def _compare(
    key_columns: Sequence[KeyColumn],
    values: Sequence[sql.Composable],
    operator: str,
    bound: tuple[str, ...],
) -> sql.Composed:
    literals = [
        sql.SQL("{}::{}").format(
            sql.Literal(value),
            # format_type's spelling is SQL already.
            sql.SQL("pg_catalog.text" if column.collatable else column.type_name),
        )
        for column, value in zip(key_columns, bound, strict=True)
    ]
    ordered = [_ordered(*pair) for pair in zip(key_columns, values, strict=True)]
    # Parentheses make it a row comparison: (a, b) > (x, y) is not a > x AND b > y.
    return sql.SQL("({}) {} ({})").format(
        sql.SQL(", ").join(ordered), sql.SQL(operator), sql.SQL(", ").join(literals)
    )


def _ordered(column: KeyColumn, value: sql.Composable) -> sql.Composable:
    return sql.SQL('{}::pg_catalog.text COLLATE "C"').format(value) if column.collatable else value


def _column(column: KeyColumn, alias: str | None) -> sql.Identifier:
    return sql.Identifier(alias, column.name) if alias else sql.Identifier(column.name)
