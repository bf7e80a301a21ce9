"""What a dump holds, so that a restore of it can be compared."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any

from psycopg2 import sql
from psycopg2.extensions import connection

from tenantferry.connections import ConnectionParams, open_connection

_TABLES = resources.files("tenantferry.archive").joinpath("tables.sql").read_text("utf-8")
_LOCALE = """
SELECT pg_catalog.pg_encoding_to_char(encoding), datcollate::text, datctype::text
FROM pg_catalog.pg_database WHERE datname = current_database()
"""
# A table counts its own rows only; those that inherit from it are counted themselves.
_COUNT = sql.SQL("SELECT count(*) FROM ONLY {}")
_NAMED = 5
# Nobody else should be in there. Who is all the same must not keep us waiting for ever.
_LOCK_TIMEOUT = "60s"


@dataclass(frozen=True, slots=True)
class Contents:
    """
    What is in a database.

    :ivar rows: of each table, by ``schema.table``.
    :ivar collate: its ``LC_COLLATE``.
    :ivar ctype: its ``LC_CTYPE``.
    """

    rows: Mapping[str, int]
    encoding: str
    collate: str
    ctype: str

    def to_json(self) -> dict[str, Any]:
        """Return what can be stored, and read by `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Contents:
        """Read what `to_json` returned."""
        return cls(**stored)

    @property
    def total(self) -> int:
        """Rows of all tables."""
        return sum(self.rows.values())


def read_contents(database: connection) -> Contents:
    """
    Count every row of a database.

    :param database: one transaction, for one instant; only read.
    """
    rows = {}
    with database.cursor() as cursor:
        cursor.execute(_LOCALE)
        encoding, collate, ctype = cursor.fetchone() or ("", "", "")
        cursor.execute(_TABLES)
        for schema, table in cursor.fetchall():
            cursor.execute(_COUNT.format(sql.Identifier(schema, table)))
            (rows[f"{schema}.{table}"],) = cursor.fetchone() or (0,)
    return Contents(rows, encoding, collate, ctype)


def count_database(params: ConnectionParams, *, purpose: str) -> Contents:
    """Count every row of a database, at one instant."""
    settings = {"lock_timeout": _LOCK_TIMEOUT}
    with closing(open_connection(params, purpose=purpose, settings=settings)) as session:
        session.set_session(isolation_level="REPEATABLE READ", readonly=True)
        found = read_contents(session)
        session.rollback()
    return found


def describe_differences(found: Contents, dumped: Contents) -> str:
    """
    Return, in a whole sentence, which tables do not have as many rows as were dumped.

    >>> one, two = (Contents({"public.t": n}, "UTF8", "C", "C") for n in (1, 2))
    >>> describe_differences(two, one)
    'public.t has 2 rows instead of 1 rows.'
    >>> describe_differences(one, one)
    ''
    """
    differing = [
        f"{name} has {_tell(found.rows.get(name))} instead of {_tell(dumped.rows.get(name))}"
        for name in sorted({*found.rows, *dumped.rows})
        if found.rows.get(name) != dumped.rows.get(name)
    ]
    more = len(differing) - _NAMED
    told = [*differing[:_NAMED], *([f"and {more} more"] if more > 0 else [])]
    return "; ".join(told) + "." if told else ""


def _tell(rows: int | None) -> str:
    return "no such table" if rows is None else f"{rows} rows"
