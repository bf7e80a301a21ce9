"""Take tables into a backfill that came after the others were planned."""

from __future__ import annotations

import logging
from contextlib import closing

from psycopg2.extensions import connection

from tenantferry.backfill.chunk import TEXT_SETTINGS, to_record
from tenantferry.backfill.clearing import delete_rows, session_purpose
from tenantferry.backfill.finished import find_gone, find_new_tables
from tenantferry.backfill.planning import plan_chunks
from tenantferry.backfill.rounds import Backfill
from tenantferry.connections import open_connection
from tenantferry.control.chunks import forget_tables, store_chunks
from tenantferry.control.streams import lock_stream
from tenantferry.schema.publication import read_entries

logger = logging.getLogger(__name__)


def admit_tables(backfill: Backfill, source: connection, target: connection) -> None:
    """
    Plan tables that were published after the others were planned; the next rounds copy them.

    What the target has of such a table goes first. What was planned of one that is gone is
    forgotten; rows that it left behind are a person's to delete. Killed anywhere, this leaves
    tables without chunks, of which the next try takes care.

    :param source: session in autocommit.
    :param target: session outside a transaction; commits.
    """
    tenant = backfill.tenant
    with target:
        found = find_new_tables(source, target, tenant, backfill.tables)
        gone = find_gone(target, tenant, backfill.tables)
    # Before the rounds' snapshots, as in the first round.
    entries = read_entries(source, tenant)
    found = [table for table in found if table.qualified in entries]
    if not found and not gone:
        return
    logger.info(
        "tables came or went tenant=%s came=%s went=%s",
        tenant.key,
        ", ".join(table.label for table in found) or "none",
        ", ".join(f"{schema}.{name}" for schema, name in sorted(gone)) or "none",
    )
    with target, target.cursor() as cursor:
        # Ends a stream that would still write to them; one that begins now leaves them alone.
        lock_stream(cursor, tenant.key, for_session=False)
        forget_tables(target, tenant.key, {*gone, *(table.qualified for table in found)})
    # Only now: nobody can add rows to them any more.
    delete_rows(target, tenant, found)
    purpose = session_purpose(tenant)
    with closing(
        open_connection(backfill.source, purpose=purpose, settings=TEXT_SETTINGS)
    ) as planning:
        # The bounds need not be those of any snapshot: chunks hold all keys that there may be.
        chunks = [
            to_record(chunk, published_as=entries[table.qualified])
            for table in found
            for chunk in plan_chunks(planning, table, chunk_rows=tenant.chunk_rows)
        ]
    with target:
        store_chunks(target, tenant.key, chunks)
