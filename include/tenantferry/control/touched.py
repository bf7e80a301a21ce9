"""What a forward stream has written since both sides were compared."""

from __future__ import annotations

import math
from dataclasses import dataclass

from psycopg2.extensions import connection

from tenantferry.lsn import format_lsn, parse_lsn

_READ_SINCE = (
    "SELECT touched_since::text FROM tenantferry.streams"
    " WHERE tenant = %s AND direction = 'forward' AND touched_since IS NOT NULL"
)
# A null array of keys stands for the whole table; so does a table that is met under two keys.
_READ = """
SELECT table_schema, table_name, key_columns, key
FROM tenantferry.touched
LEFT JOIN LATERAL (
    SELECT array_agg(value ORDER BY number) AS key
    FROM unnest(keys) WITH ORDINALITY AS fields (value, number)
    GROUP BY (number - 1) / cardinality(key_columns)
) AS split ON true
WHERE tenant = %s AND written_after >= %s
GROUP BY table_schema, table_name, key_columns, key
ORDER BY table_schema, table_name
"""


@dataclass(frozen=True, slots=True)
class Touched:
    """
    What was written to one table.

    :ivar key_columns: names; empty where any row may have been written.
    :ivar keys: each with one text per key column, spelled with `TEXT_SETTINGS`.
    """

    schema: str
    table: str
    key_columns: tuple[str, ...]
    keys: tuple[tuple[str, ...], ...]

    def __str__(self) -> str:
        rows = "any row" if self.is_whole else f"{len(self.keys)} row(s)"
        return f'{rows} of table "{self.schema}.{self.table}"'

    @property
    def size(self) -> float:
        """How many rows may have been written."""
        return math.inf if self.is_whole else len(self.keys)

    @property
    def is_whole(self) -> bool:
        """Whether any row of the table may have been written."""
        return not self.key_columns


def read_touched(target: connection, tenant: str, *, since: int) -> tuple[Touched, ...] | None:
    """
    Return what was written by transactions that were applied behind a position.

    :param target: open transaction or autocommit; only read.
    :param since: P at which both sides were compared.
    :return: ``None`` if nobody has remembered it from there on.
    """
    with target.cursor() as cursor:
        cursor.execute(_READ_SINCE, (tenant,))
        row = cursor.fetchone()
        if row is None or parse_lsn(row[0]) > since:
            return None
        cursor.execute(_READ, (tenant, format_lsn(since)))
        found: dict[tuple[str, str], dict[tuple[str, ...], list[tuple[str, ...]]]] = {}
        for schema, table, key_columns, key in cursor:
            keys = found.setdefault((schema, table), {}).setdefault(tuple(key_columns), [])
            if key is not None:
                keys.append(tuple(key))
    return tuple(_merge(*name, by_columns) for name, by_columns in found.items())


def _merge(
    schema: str, table: str, by_columns: dict[tuple[str, ...], list[tuple[str, ...]]]
) -> Touched:
    if len(by_columns) > 1 or () in by_columns:
        return Touched(schema, table, (), ())
    ((columns, keys),) = by_columns.items()
    return Touched(schema, table, columns, tuple(keys))


def forget_touched(target: connection, tenant: str, *, before: int) -> None:
    """
    Forget what was written before both sides were compared, and found equal.

    :param target: open transaction; the caller commits.
    """
    with target.cursor() as cursor:
        cursor.execute(
            "DELETE FROM tenantferry.touched WHERE tenant = %s AND written_after < %s",
            (tenant, format_lsn(before)),
        )
