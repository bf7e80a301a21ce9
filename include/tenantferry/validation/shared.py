"""Reference data that all tenants share is not copied: it has to be the same already."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

from tenantferry.backfill.chunk import TEXT_SETTINGS, Chunk
from tenantferry.connections import ConnectionParams, open_connection
from tenantferry.fleet import TableKind, Tenant
from tenantferry.schema.database import Catalog
from tenantferry.schema.findings import Finding, error, ok
from tenantferry.schema.model import Table
from tenantferry.validation.digest import read_digest, rows_of_chunk


def compare_shared_tables(
    source_params: ConnectionParams,
    target_params: ConnectionParams,
    tenant: Tenant,
    *,
    schemas: tuple[Catalog, Catalog],
) -> Iterator[Finding]:
    """
    Compare every row of the tenant's shared tables; only reads.

    :param schemas: of source and target. A table that differs in its columns, or is missing, is
        drift, and not compared here.
    """
    theirs, ours = schemas
    in_target = {table.qualified: table for table in ours.tables}
    comparable = [
        table
        for table in theirs.tables
        if tenant.kind_of(*table.qualified) is TableKind.SHARED
        and _has_columns(in_target.get(table.qualified), table)
    ]
    if not comparable:
        return
    purpose = f"shared tables {tenant.key}"
    with (
        closing(open_connection(source_params, purpose=purpose, settings=TEXT_SETTINGS)) as source,
        closing(open_connection(target_params, purpose=purpose, settings=TEXT_SETTINGS)) as target,
    ):
        for table in comparable:
            whole = Chunk(table.schema, table.name, 1, (), None, None, table.estimated_rows)
            rows = rows_of_chunk(whole, table, tenant_id=None)
            expected, actual = read_digest(source, rows), read_digest(target, rows)
            if actual == expected:
                yield ok("shared table", table.label, f"All {expected.rows} rows are the same.")
            else:
                yield error(
                    "shared table",
                    table.label,
                    f"Its rows differ: {expected.rows} on the source, {actual.rows} in the target.",
                    "Make them the same, or declare the table as a tenant table.",
                )


def _has_columns(candidate: Table | None, table: Table) -> bool:
    return candidate is not None and (
        {(column.name, column.type_name) for column in table.columns}
        <= {(column.name, column.type_name) for column in candidate.columns}
    )
