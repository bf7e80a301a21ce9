"""Undo what an earlier attempt left behind, so that a backfill can start over."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable

from psycopg2 import sql
from psycopg2.extensions import connection

from tenantferry.backfill.snapshot import END_SESSION_TIMEOUT_MS
from tenantferry.control.chunks import forget_chunks
from tenantferry.control.streams import retire_stream
from tenantferry.control.witnesses import sign_writer
from tenantferry.errors import PermanentError
from tenantferry.fleet import Tenant
from tenantferry.schema.model import Table

logger = logging.getLogger(__name__)

# Of one transaction: it holds its locks, and the log back, for a moment only.
BATCH_ROWS = 5_000

# A partitioned table has its rows in its leaves, and a ctid is only good in one of them.
_LEAVES = """
SELECT namespace.nspname, class.relname
  FROM pg_catalog.pg_class AS class
  JOIN pg_catalog.pg_namespace AS namespace ON namespace.oid = class.relnamespace
 WHERE class.relkind = 'r' AND (
       class.oid = %(table)s::pg_catalog.regclass
       OR class.oid IN (
          SELECT relid FROM pg_catalog.pg_partition_tree(%(table)s::pg_catalog.regclass)))
"""

# ONLY: a table that inherits from it is deleted from for itself, by its own ctids.
_FIND = sql.SQL("SELECT ctid::text FROM ONLY {table} WHERE tenant_id = {tenant_id}")
# tenant_id again: between two batches another tenant's row may get the place of a deleted one.
_SCOPE = sql.SQL("ctid = ANY ({places}::pg_catalog.tid[]) AND tenant_id = {tenant_id}")
_DELETE = sql.SQL(
    "WITH deleted AS ("
    "DELETE FROM ONLY {table} WHERE {scope} RETURNING tenant_id = {tenant_id} AS is_own)"
    " SELECT count(*), count(*) FILTER (WHERE is_own IS NOT TRUE) FROM deleted"
)


def session_purpose(tenant: Tenant) -> str:
    """
    Return what the sessions of a tenant's backfill are opened for.

    The name must fit into ``application_name`` uncut, or two tenants would share it.
    """
    key = tenant.key
    if len(key) > 36:
        key = f"{key[:27]}#{hashlib.sha256(key.encode()).hexdigest()[:8]}"
    return f"backfill copy {key}"


def end_leftover_sessions(side: connection, tenant: Tenant) -> int:
    """
    End the sessions of an earlier attempt whose process is gone, and wait until they are.

    :param side: session in autocommit, on the source or the target.
    :return: how many there were.
    """
    with side.cursor() as cursor:
        cursor.execute(
            "SELECT pg_terminate_backend(pid, %s) FROM pg_catalog.pg_stat_activity"
            " WHERE application_name = %s AND datname = current_database()"
            " AND usename = session_user AND pid <> pg_backend_pid()",
            (END_SESSION_TIMEOUT_MS, f"tenantferry {session_purpose(tenant)}"),
        )
        return int(cursor.rowcount)


def forget_attempt(target: connection, tenant: Tenant) -> None:
    """
    Delete what the control schema knows of earlier attempts: chunks, rounds and the stream.

    :param target: open transaction; the caller commits **before** it deletes rows. From then on
        no earlier attempt can commit rows: a chunk needs its mark, a stream needs its row.
    """
    forget_chunks(target, tenant.key)
    retire_stream(target, tenant.key)
    with target.cursor() as cursor:
        cursor.execute(
            "DELETE FROM tenantferry.streams WHERE tenant = %s AND direction = 'forward'",
            (tenant.key,),
        )


def delete_rows(target: connection, tenant: Tenant, tables: Iterable[Table]) -> int:
    """
    Delete the tenant's rows, and no others. Commits after each batch.

    :param target: session with ``session_replication_role = replica``, outside a transaction.
    :return: deleted rows.
    """
    deleted = 0
    for table in tables:
        for leaf in _read_leaves(target, table):
            deleted += delete_from(target, tenant, leaf)
    if deleted:
        logger.info("deleted rows of an earlier attempt tenant=%s rows=%s", tenant.key, deleted)
    return deleted


def _read_leaves(target: connection, table: Table) -> list[tuple[str, str]]:
    name = sql.Identifier(*table.qualified).as_string(target)
    with target, target.cursor() as cursor:
        cursor.execute(_LEAVES, {"table": name})
        return [(schema, leaf) for schema, leaf in cursor]


def delete_from(target: connection, tenant: Tenant, leaf: tuple[str, str]) -> int:
    """
    Delete the tenant's rows of one table, and no others. Commits after each batch.

    :param target: session with ``session_replication_role = replica``, outside a transaction.
    :param leaf: schema and name of a table that has no partitions.
    :return: deleted rows.
    :raises PermanentError: if a row of another tenant would go with them; that batch stays.
    """
    names = {
        "table": sql.Identifier(*leaf),
        "tenant_id": sql.SQL("{}::pg_catalog.uuid").format(sql.Literal(str(tenant.id))),
    }
    deleted = 0
    # One scan finds the rows; the cursor survives the commits of the batches on the server.
    with target.cursor("tenantferry_rows", withhold=True) as found:
        found.execute(_FIND.format(**names))
        target.commit()
        while places := found.fetchmany(BATCH_ROWS):
            with target, target.cursor() as cursor:
                # Not as a parameter: a table's name may hold a percent sign.
                found_here = sql.Literal([place for (place,) in places])
                scope = _SCOPE.format(**names, places=found_here)
                cursor.execute(_DELETE.format(**names, scope=scope))
                rows, others = cursor.fetchone() or (0, 0)
                if others:
                    raise _out_of_scope(tenant, leaf, others)
                sign_writer(cursor, tenant.key)
                deleted += rows
    target.commit()
    return deleted


def _out_of_scope(tenant: Tenant, leaf: tuple[str, str], rows: int) -> PermanentError:
    return PermanentError(
        f'deleting rows of tenant "{tenant.key}" would delete those of others',
        detail=f'{rows} of a batch in table "{".".join(leaf)}" are not the tenant\'s. That batch'
        " was rolled back.",
        hint="Do not try again. Report it: this must never happen.",
    )
