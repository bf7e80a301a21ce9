"""Copy chunks again in which the target differs, and nothing else."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import closing

from psycopg2.extensions import connection

from tenantferry.backfill.chunk import Chunk
from tenantferry.backfill.copying import LOAD_SETTINGS
from tenantferry.backfill.reopening import give_up_chunks
from tenantferry.connections import open_connection
from tenantferry.control.phases import Phase
from tenantferry.control.registry import change_phase
from tenantferry.control.streams import lock_stream, mark_copy_again
from tenantferry.moves.backfill import copy_in_step
from tenantferry.moves.move import Move
from tenantferry.schema.model import Table

logger = logging.getLogger(__name__)


def repair_in_step(
    target: connection, move: Move, tables: Sequence[Table], chunks: Sequence[Chunk]
) -> None:
    """
    Make some copied chunks pending, and copy them as in any later round of a backfill.

    The stream ends meanwhile; its host starts it again. Killed anywhere, this leaves the phase
    "backfilling": what is pending then is copied by the next try, or by the task "backfill".

    :param target: the step's session, outside a transaction; this commits.
    :param tables: of the source.
    """
    with target:
        change_phase(
            target,
            move.tenant.key,
            Phase.BACKFILLING,
            run_id=move.run_id,
            reason=f"{len(chunks)} chunk(s) are copied again, for their rows differ",
        )
    _reopen(move, tables, chunks)
    copy_in_step(target, move, tables)


def _reopen(move: Move, tables: Sequence[Table], chunks: Sequence[Chunk]) -> None:
    tenant = move.tenant
    by_name = {table.qualified: table for table in tables}
    purpose = f"repair {tenant.key}"
    with closing(open_connection(move.target, purpose=purpose, settings=LOAD_SETTINGS)) as loader:
        for chunk in chunks:
            with loader, loader.cursor() as cursor:
                # Whoever moves P must not count on rows that are about to go.
                lock_stream(cursor, tenant.key, for_session=False)
                table = by_name[chunk.schema, chunk.table]
                rows = give_up_chunks(cursor, tenant, table, [chunk])
            logger.info(
                "chunk is pending again, for its rows differ: table=%s chunk=%s rows=%s",
                chunk.label,
                chunk.number,
                rows,
            )
        with loader:
            # Only now. Until here all of what is copied counts as wrong.
            mark_copy_again(loader, tenant.key, needed=False)
