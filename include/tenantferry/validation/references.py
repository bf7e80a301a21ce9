"""Check that no row of the tenant in the target references a row that is not there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from psycopg2 import sql
from psycopg2.extensions import connection

from tenantferry.backfill.planning import chunk_key
from tenantferry.control.validations import Difference, MismatchKind
from tenantferry.fleet import TableKind, Tenant
from tenantferry.schema.model import ForeignKey, Table
from tenantferry.schema.own_rows import own_rows

MAX_NAMED = 20

_ORPHANS = sql.SQL(
    "SELECT count(*) OVER (), {key} FROM {table} AS c"
    " WHERE c.tenant_id = {tenant_id}::pg_catalog.uuid AND ({partial}({present} AND NOT EXISTS"
    " (SELECT FROM {referenced} AS p WHERE {same}))) LIMIT {limit}"
)

# The equality of an extension's type, e.g. citext, lives beside the type; without it the
# comparison would silently be that of text.
_TYPE_SCHEMAS = """
SELECT DISTINCT pg_catalog.quote_ident(namespace.nspname)
  FROM pg_catalog.pg_attribute AS attribute
  JOIN pg_catalog.pg_type AS type ON type.oid = attribute.atttypid
  JOIN pg_catalog.pg_type AS named ON named.oid IN (type.oid, type.typbasetype, type.typelem)
  JOIN pg_catalog.pg_namespace AS namespace ON namespace.oid = named.typnamespace
 WHERE attribute.attnum > 0 AND namespace.nspname <> 'pg_catalog'
   AND attribute.attrelid = ANY (%s::pg_catalog.regclass[])
"""

# A foreign key compares as the column that it refers to sorts.
_COLLATIONS = """
SELECT attribute.attname, namespace.nspname, collation_.collname
  FROM pg_catalog.pg_attribute AS attribute
  JOIN pg_catalog.pg_collation AS collation_ ON collation_.oid = attribute.attcollation
  JOIN pg_catalog.pg_namespace AS namespace ON namespace.oid = collation_.collnamespace
 WHERE attribute.attrelid = %s::pg_catalog.regclass
"""


def find_orphans(
    target: connection, tenant: Tenant, tables: Sequence[Table]
) -> Iterator[tuple[int, tuple[Difference, ...]]]:
    """
    Yield for each violated foreign key how many rows violate it, and the first of them.

    A foreign key that the source never validated promises nothing, and one to a table that is
    left behind cannot hold.

    :param target: open transaction; its ``search_path`` is changed until its end.
    """
    names = [sql.Identifier(*table.qualified).as_string(target) for table in tables]
    by_name = {table.qualified: table for table in tables}
    with target.cursor() as cursor:
        cursor.execute(_TYPE_SCHEMAS, (names,))
        path = ", ".join(["pg_catalog", *(name for (name,) in cursor)])
        cursor.execute("SELECT set_config('search_path', %s, true)", (path,))
        for table in tables:
            for foreign_key in table.foreign_keys:
                if not _is_checked(tenant, foreign_key):
                    continue
                name = _referenced_name(foreign_key)
                cursor.execute(_COLLATIONS, (sql.Identifier(*name).as_string(target),))
                collations = {column: sql.Identifier(*where) for column, *where in cursor}
                cursor.execute(
                    orphans_query(
                        tenant, table, foreign_key,
                        referenced=by_name.get(name), collations=collations,
                    )
                )  # fmt: skip
                rows = cursor.fetchall()
                if rows:
                    yield rows[0][0], tuple(_name(table, foreign_key, row[1:]) for row in rows)
        cursor.execute("SET LOCAL search_path = pg_catalog")


def orphans_query(
    tenant: Tenant,
    table: Table,
    foreign_key: ForeignKey,
    *,
    referenced: Table | None,
    collations: Mapping[str, sql.Identifier],
) -> sql.Composed:
    """
    Build the query for the rows that violate a foreign key within the tenant.

    :param referenced: the table that it refers to; ``None`` for a shared one.
    :param collations: of the columns of that table that have one.
    """
    pairs = zip(foreign_key.columns, foreign_key.referenced_columns, strict=True)
    same: list[sql.Composable] = [
        sql.SQL("p.{}{} = c.{}").format(
            sql.Identifier(theirs),
            sql.SQL(" COLLATE {}").format(collations[theirs])
            if theirs in collations
            else sql.SQL(""),
            sql.Identifier(ours),
        )
        for ours, theirs in pairs
    ]
    if _referenced_kind(tenant, foreign_key) is TableKind.TENANT:
        same.insert(0, sql.SQL("p.tenant_id = c.tenant_id"))
    columns = [sql.Identifier("c", column) for column in foreign_key.columns]
    # MATCH FULL forbids a key that is null in part.
    partial = sql.SQL("num_nulls({}) NOT IN (0, {}) OR ").format(
        sql.SQL(", ").join(columns), sql.Literal(len(columns))
    )
    key = [sql.Identifier("c", column) for column in chunk_key(table)] or columns
    return _ORPHANS.format(
        key=sql.SQL(", ").join(sql.SQL("{}::pg_catalog.text").format(name) for name in key),
        table=own_rows(table),
        tenant_id=sql.Literal(str(tenant.id)),
        partial=partial if foreign_key.match_full else sql.SQL(""),
        present=sql.SQL(" AND ").join(
            sql.SQL("{} IS NOT NULL").format(column) for column in columns
        ),
        referenced=own_rows(referenced)
        if referenced
        else sql.Identifier(*_referenced_name(foreign_key)),
        same=sql.SQL(" AND ").join(same),
        limit=sql.Literal(MAX_NAMED),
    )


def _is_checked(tenant: Tenant, foreign_key: ForeignKey) -> bool:
    return foreign_key.validated and _referenced_kind(tenant, foreign_key) is not TableKind.SKIP


def _referenced_name(foreign_key: ForeignKey) -> tuple[str, str]:
    return foreign_key.referenced_schema, foreign_key.referenced_table


def _referenced_kind(tenant: Tenant, foreign_key: ForeignKey) -> TableKind:
    return tenant.kind_of(*_referenced_name(foreign_key))


def _name(table: Table, foreign_key: ForeignKey, key: tuple[str, ...]) -> Difference:
    names = chunk_key(table) or foreign_key.columns
    return Difference(
        table.schema,
        table.name,
        MismatchKind.ORPHAN,
        ", ".join(f"{name}={text}" for name, text in zip(names, key, strict=True)),
        f'foreign key "{foreign_key.name}" finds no row of the tenant in table'
        f' "{foreign_key.referenced_schema}.{foreign_key.referenced_table}".',
    )
