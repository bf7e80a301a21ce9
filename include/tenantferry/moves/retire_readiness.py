"""All that could keep a source from being archived, looked at before its tenant's way back ends."""

from __future__ import annotations

from psycopg2.extensions import connection

from tenantferry.archive.programs import find_programs
from tenantferry.archive.restoring import check_restore_server
from tenantferry.archive.storage import StoragePath, check_writable
from tenantferry.connections import ConnectionParams
from tenantferry.moves.left_source import check_left_source
from tenantferry.moves.move import Move
from tenantferry.moves.sessions import open_source


def check_can_archive(
    move: Move, target: connection, folder: StoragePath, server: ConnectionParams
) -> None:
    """
    Check source, programs, the server for the restore, and the storage. Leaves nothing behind.

    :param target: the step's session, outside a transaction; only read.
    :param folder: below which dumps are kept.
    :param server: where our role may create a database.
    :raises PermanentError: if something has to be mended first.
    :raises TransientError: if the source, the server or the storage failed.
    """
    purpose = f"retire {move.tenant.key}"
    with open_source(move.source, purpose=purpose) as source:
        check_left_source(move, source, target)
        programs = find_programs(source.server_version // 10000)
    check_restore_server(server, programs, purpose=purpose)
    check_writable(folder / move.tenant.key / "begin.check")
