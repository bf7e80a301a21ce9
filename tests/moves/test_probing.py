from __future__ import annotations

import pytest

from tenantferry.errors import TransientError
from tenantferry.local.pgbouncer import PgBouncer
from tenantferry.local.postgres import PostgresServer
from tenantferry.moves.move import Move
from tenantferry.moves.probe import look, look_at_source


def test_a_probe_may_be_tried_again_when_the_server_was_lost(
    move: Move, pooler: PgBouncer, source_server: PostgresServer
) -> None:
    """The pooler runs, and lets the application in without its server."""
    pooler.stop()
    pooler.settings["query_wait_timeout"] = "1"
    pooler.start()
    database = move.source.database
    look_at_source(move.probe, move.tenant, database=database)

    source_server.kill()
    try:
        with pytest.raises(TransientError, match="could not work with its source"):
            look_at_source(move.probe, move.tenant, database=database)
        with pytest.raises(TransientError, match="could not work with the target"):
            look(move.probe, move.tenant, database=database)
    finally:
        source_server.start()
