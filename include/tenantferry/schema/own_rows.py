"""Name a table in a query so that only its own rows are meant."""

from __future__ import annotations

from typing import Protocol

from psycopg2 import sql
from psycopg2.extensions import connection

_IS_PLAIN = """
SELECT c.relkind = 'r' FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relname = %s
"""


class Named(Protocol):
    """
    A table.

    :ivar only: its rows are those of ``ONLY`` it.
    """

    @property
    def schema(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def only(self) -> bool: ...


def own_rows(table: Named) -> sql.Composable:
    """
    Return what stands behind ``FROM``, ``UPDATE`` or ``DELETE FROM`` for a table.

    Without ``ONLY`` the rows of the tables that inherit from it would be meant, too. A partitioned
    table has no rows but those of its partitions.
    """
    identifier = sql.Identifier(table.schema, table.name)
    return sql.SQL("ONLY {}").format(identifier) if table.only else identifier


def is_plain(conn: connection, schema: str, name: str) -> bool:
    """
    Tell whether a table is not partitioned, and so has rows of its own.

    Whether it inherits, or is inherited from, may change under a long run; this does not.

    :param conn: open transaction or autocommit; only read.
    """
    with conn.cursor() as cursor:
        cursor.execute(_IS_PLAIN, (schema, name))
        return cursor.fetchone() == (True,)
