"""What the model looks at: rows by chunk, of the source, of the tenant, of everybody else."""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO
from uuid import UUID

from psycopg2 import sql
from psycopg2.extensions import connection

from model_client import execute, open_client
from round_stage import fetch, read_chunk_rows
from tenantferry.backfill.chunk import Chunk, to_chunk
from tenantferry.backfill.clearing import forget_attempt
from tenantferry.backfill.planning import read_key_columns
from tenantferry.connections import ConnectionParams
from tenantferry.control.chunks import ChunkRecord, read_chunks
from tenantferry.fleet import Tenant
from tenantferry.schema.model import Table
from tenantferry.schema.publication import read_entries

# By the name of a chunk, or of a table.
Rows = dict[str, list[str]]


def read_source_rows(
    source: connection, tables: Sequence[Table], records: Sequence[ChunkRecord]
) -> Rows:
    """Return the rows of every chunk, as a session of the source sees them."""
    return {
        _label(chunk): read_chunk_rows(source, table, chunk, None)
        for table in tables
        for chunk in _chunks(source, table, records)
    }


def check_copied(
    expected: Rows, source: connection, target: connection, tables: Sequence[Table], tenant: Tenant
) -> None:
    """
    Check that the copied chunks hold what they should, and the others nothing.

    :param source: tells the types of the keys.
    :raises AssertionError: if not; it names the chunk.
    """
    records = read_chunks(target, tenant.key)
    done = {(r.table, r.number) for r in records if r.done_at is not None}
    for table in tables:
        for chunk in _chunks(source, table, records):
            wanted = expected[_label(chunk)] if (chunk.table, chunk.number) in done else []
            assert read_chunk_rows(target, table, chunk, tenant.id) == wanted, _label(chunk)


def has_gap(source: connection, target: connection, tenant: Tenant) -> bool:
    """Tell whether changes of copied rows were not sent, or may not have been."""
    entries = set(read_entries(source, tenant).values())
    return any(
        record.published_as not in entries
        for record in read_chunks(target, tenant.key)
        if record.done_at is not None
    )


def read_rows_of_others(target: connection, tables: Sequence[Table], tenant: Tenant) -> Rows:
    """Return where the rows of other tenants lie, who wrote them, and what they are."""
    query = sql.SQL(
        "SELECT ROW(rows.ctid, rows.xmin, rows.*)::text FROM {} AS rows WHERE tenant_id <> {}::uuid"
    )
    return {
        table.label: sorted(
            row
            for (row,) in fetch(
                target,
                query.format(sql.Identifier(*table.qualified), sql.Literal(str(tenant.id))),
            )
        )
        for table in tables
    }


def copy_for_other_tenant(
    source: connection, target: connection, tables: Sequence[Table], tenant_id: UUID
) -> None:
    """Give another tenant the same rows, under the same keys."""
    for table in tables:
        columns = sql.Composed(
            sql.SQL("{}, ").format(sql.Identifier(column.name)) for column in table.copied_columns
        )
        names = {"columns": columns, "table": sql.Identifier(*table.qualified)}
        rows = StringIO()
        with source.cursor() as cursor:
            query = sql.SQL("COPY (SELECT {columns}{tenant_id} FROM {table}) TO STDOUT")
            cursor.copy_expert(query.format(tenant_id=sql.Literal(str(tenant_id)), **names), rows)
        rows.seek(0)
        with target.cursor() as cursor:
            statement = sql.SQL("COPY {table} ({columns}tenant_id) FROM STDIN")
            cursor.copy_expert(statement.format(**names), rows)


def drop_in_target(target: connection, table: Table) -> None:
    """Drop a table, if it is there, so that it can be made anew with other columns."""
    name = sql.Identifier(*table.qualified)
    execute(target, sql.SQL("DROP TABLE IF EXISTS {}").format(name))


def empty_target(target: connection, tenant: Tenant) -> None:
    """Forget every row, and everything about the tenant's earlier case."""
    forget_attempt(target, tenant)
    query = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
    for (name,) in execute(target, query):
        execute(target, sql.SQL("TRUNCATE {}").format(sql.Identifier("public", name)))


def empty_source(source: connection, params: ConnectionParams) -> None:
    """Drop what the application has made, also what an earlier case has left unfinished."""
    query = "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()"
    owner = open_client(params)
    for (name,) in execute(source, query):
        execute(owner, "ROLLBACK PREPARED %s", name)
    execute(owner, "SET lock_timeout = 0")
    execute(owner, "DROP OWNED BY app_owner CASCADE")
    owner.close()


def _chunks(source: connection, table: Table, records: Sequence[ChunkRecord]) -> list[Chunk]:
    key_columns = read_key_columns(source, table)
    return [
        to_chunk(record, key_columns)
        for record in records
        if (record.schema, record.table) == table.qualified
    ]


def _label(chunk: Chunk) -> str:
    return f"chunk {chunk.number} of {chunk.schema}.{chunk.table}"
