"""The publication on the source: exactly the tables that move."""

from __future__ import annotations

from collections.abc import Sequence

from psycopg2 import sql
from psycopg2.extensions import connection

from tenantferry.errors import PermanentError
from tenantferry.fleet import Tenant
from tenantferry.schema.model import Table

_PUBLISHED = """
SELECT pt.schemaname::text, pt.tablename::text
FROM pg_catalog.pg_publication_tables AS pt
WHERE pt.pubname = %s
"""

# Truncate too: the stream turns it into a delete of this tenant's rows.
# A partitioned table is published as such: its changes come under its own name and columns,
# whichever partitions there are.
_OPTIONS = "publish = 'insert, update, delete, truncate', publish_via_partition_root = true"
_CREATE = "CREATE PUBLICATION {name} FOR TABLE {tables} WITH ({options})"
_SET_TABLES = "ALTER PUBLICATION {name} SET TABLE {tables}"
_SET_OPTIONS = "ALTER PUBLICATION {name} SET ({options})"


def ensure_publication(source: connection, tenant: Tenant, tables: Sequence[Table]) -> bool:
    """
    Publish every change of *tables*, and of no other table.

    A table without a usable replica identity must not be among them: publishing it would make
    the application's own UPDATE and DELETE fail.

    :param source: open transaction or autocommit; the caller commits.
    :return: whether anything had to change.
    :raises PermanentError: if no table moves with the tenant.
    """
    if not tables:
        raise PermanentError(
            f'no table moves with tenant "{tenant.key}"',
            hint="Check the database of the source, and the tables declared shared or skip.",
        )
    wanted = {table.qualified for table in tables}
    published = _read_published(source, tenant.publication)
    if published == (True, wanted):
        return False
    statements = [_CREATE] if published is None else [_SET_TABLES, _SET_OPTIONS]
    # A table that inherits from it is published for its own sake, or not at all.
    names = [sql.SQL("ONLY {}").format(sql.Identifier(*qualified)) for qualified in sorted(wanted)]
    with source.cursor() as cursor:
        for statement in statements:
            cursor.execute(
                sql.SQL(statement).format(
                    name=sql.Identifier(tenant.publication),
                    tables=sql.SQL(", ").join(names),
                    options=sql.SQL(_OPTIONS),
                )
            )
    return True


def check_published(source: connection, tenant: Tenant, tables: Sequence[Table]) -> None:
    """
    Check that no table has changes which the stream is not sent, e.g. one that was made anew.

    :param source: open transaction or autocommit; only read.
    :raises PermanentError: if one has.
    """
    _, published = _read_published(source, tenant.publication) or (False, set())
    missing = sorted(table.label for table in tables if table.qualified not in published)
    if missing:
        raise PermanentError(
            f'publication "{tenant.publication}" lacks tables of the source',
            detail=f"They came, or were dropped and made again: {', '.join(missing)}.",
            hint='Clear the task "preflight" and those after it.',
        )


def drop_publication(source: connection, tenant: Tenant) -> None:
    """
    Drop the tenant's publication, if it is there.

    :param source: open transaction or autocommit; the caller commits.
    """
    with source.cursor() as cursor:
        cursor.execute(
            sql.SQL("DROP PUBLICATION IF EXISTS {}").format(sql.Identifier(tenant.publication))
        )


def _read_published(source: connection, name: str) -> tuple[bool, set[tuple[str, str]]] | None:
    """Return whether it has our options, and the tables; ``None`` without it."""
    with source.cursor() as cursor:
        cursor.execute(
            "SELECT pubinsert AND pubupdate AND pubdelete AND pubtruncate AND pubviaroot"
            " FROM pg_catalog.pg_publication WHERE pubname = %s",
            (name,),
        )
        row = cursor.fetchone()
        if row is None:
            return None
        cursor.execute(_PUBLISHED, (name,))
        return row[0], {(schema, table) for schema, table in cursor.fetchall()}
