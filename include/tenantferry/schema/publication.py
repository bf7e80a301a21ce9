"""The publication on the source: exactly the tables that move."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from psycopg2 import sql
from psycopg2.extensions import connection

from tenantferry.errors import PermanentError
from tenantferry.fleet import Tenant
from tenantferry.schema.model import Table

# PostgreSQL 15 brought tables that are published in part only: these are none of ours. xmin changes
# where somebody changed what is published of all tables.
_PUBLISHED = """
SELECT namespace.nspname::text, class.relname::text,
       format('%%s %%s', published.oid, publication.xmin), class.oid::bigint, class.relispartition
FROM pg_catalog.pg_publication AS publication
JOIN pg_catalog.pg_publication_rel AS published ON published.prpubid = publication.oid
JOIN pg_catalog.pg_class AS class ON class.oid = published.prrelid
JOIN pg_catalog.pg_namespace AS namespace ON namespace.oid = class.relnamespace
WHERE publication.pubname = %s
  AND pg_catalog.to_jsonb(published) ->> 'prqual' IS NULL
  AND pg_catalog.to_jsonb(published) ->> 'prattrs' IS NULL
"""

# Also what is published by its schema, or in part.
_VISIBLE = """
SELECT visible.schemaname::text, visible.tablename::text
FROM pg_catalog.pg_publication_tables AS visible WHERE visible.pubname = %s
"""

# Truncate too: the stream turns it into a delete of this tenant's rows.
# A partitioned table is published as such: its changes come under its own name and columns,
# whichever partitions there are.
_OPTIONS = "publish = 'insert, update, delete, truncate', publish_via_partition_root = true"
# The target computes generated columns itself.
_OPTIONS_18 = f"{_OPTIONS}, publish_generated_columns = none"
_CREATE = "CREATE PUBLICATION {name} FOR TABLE {tables} WITH ({options})"
_SET_TABLES = "ALTER PUBLICATION {name} SET TABLE {tables}"
_SET_OPTIONS = "ALTER PUBLICATION {name} SET ({options})"


@dataclass(frozen=True, slots=True)
class PublishedTable:
    """
    A table of the source that is published, under the name that it has now.

    :ivar entry: names its entry in the publication. As long as that is the same, it is the same
        table, and all its changes were sent: it has another one where it was away in between, or
        the publication was changed.
    :ivar oid: of the table, as the stream names it.
    :ivar is_partition: its changes are sent as those of its root.

    Source: PostgreSQL documentation, ``pg_publication_rel``.
    """

    schema: str
    name: str
    entry: str
    oid: int
    is_partition: bool

    @property
    def qualified(self) -> tuple[str, str]:
        """Schema and name."""
        return self.schema, self.name


def ensure_publication(source: connection, tenant: Tenant, tables: Sequence[Table]) -> bool:
    """
    Publish every change of *tables*, and of no other table.

    A table without a usable replica identity must not be among them: publishing it would make
    the application's own UPDATE and DELETE fail.

    :param source: open transaction or autocommit; the caller commits.
    :return: whether anything had to change.
    :raises PermanentError: if no table moves with the tenant, or a person has published all.
    """
    if not tables:
        raise PermanentError(
            f'no table moves with tenant "{tenant.key}"',
            hint="Check the database of the source, and the tables declared shared or skip.",
        )
    wanted = {table.qualified for table in tables}
    has_options = _read_options(source, tenant)
    if has_options is None:
        statements = [_CREATE]
    else:
        is_exact = wanted == read_entries(source, tenant).keys() == _read_visible(source, tenant)
        # Each only where it is needed: options give all tables other entries.
        needed = {_SET_TABLES: not is_exact, _SET_OPTIONS: not has_options}
        statements = [statement for statement, is_needed in needed.items() if is_needed]
    # A table that inherits from it is published for its own sake, or not at all.
    names = [sql.SQL("ONLY {}").format(sql.Identifier(*qualified)) for qualified in sorted(wanted)]
    with source.cursor() as cursor:
        for statement in statements:
            cursor.execute(
                sql.SQL(statement).format(
                    name=sql.Identifier(tenant.publication),
                    tables=sql.SQL(", ").join(names),
                    options=sql.SQL(_OPTIONS_18 if source.server_version >= 180000 else _OPTIONS),
                )
            )
    return bool(statements)


def check_published(source: connection, tenant: Tenant, tables: Sequence[Table]) -> None:
    """
    Check that no table has changes which the stream is not sent, e.g. one that was made anew.

    :param source: open transaction or autocommit; only read.
    :raises PermanentError: if one has.
    """
    published = {table.qualified for table in read_published(source, tenant)}
    missing = sorted(table.label for table in tables if table.qualified not in published)
    if missing:
        raise PermanentError(
            f'publication "{tenant.publication}" lacks tables of the source',
            detail=f"They came, or were dropped and made again: {', '.join(missing)}.",
            hint='Clear the task "preflight" and those after it.',
        )


def read_published(source: connection, tenant: Tenant) -> list[PublishedTable]:
    """
    Return the tables that are published as a whole.

    :param source: open transaction or autocommit; only read.
    """
    with source.cursor() as cursor:
        cursor.execute(_PUBLISHED, (tenant.publication,))
        return [PublishedTable(*row) for row in cursor]


def read_entries(source: connection, tenant: Tenant) -> dict[tuple[str, str], str]:
    """
    Return the entry of each published table that is no partition, by schema and name.

    :param source: open transaction or autocommit; only read.
    """
    return {t.qualified: t.entry for t in read_published(source, tenant) if not t.is_partition}


def drop_publication(source: connection, tenant: Tenant) -> None:
    """
    Drop the tenant's publication, if it is there.

    :param source: open transaction or autocommit; the caller commits.
    """
    with source.cursor() as cursor:
        cursor.execute(
            sql.SQL("DROP PUBLICATION IF EXISTS {}").format(sql.Identifier(tenant.publication))
        )


def _read_options(source: connection, tenant: Tenant) -> bool | None:
    """
    Return whether the publication has our options; ``None``: there is none.

    :raises PermanentError: if it is one of all tables, which cannot be changed.
    """
    with source.cursor() as cursor:
        cursor.execute(
            "SELECT pubinsert AND pubupdate AND pubdelete AND pubtruncate AND pubviaroot"
            " AND coalesce(to_jsonb(p) ->> 'pubgencols' = 'n', true), puballtables"
            " FROM pg_catalog.pg_publication AS p WHERE pubname = %s",
            (tenant.publication,),
        )
        row = cursor.fetchone()
    if row is None:
        return None
    has_options, is_of_all = row
    if is_of_all:
        raise PermanentError(
            f'publication "{tenant.publication}" of the source is one of all tables',
            hint="Drop it, and clear this task.",
        )
    return bool(has_options)


def _read_visible(source: connection, tenant: Tenant) -> set[tuple[str, str]]:
    with source.cursor() as cursor:
        cursor.execute(_VISIBLE, (tenant.publication,))
        return {(schema, name) for schema, name in cursor}
