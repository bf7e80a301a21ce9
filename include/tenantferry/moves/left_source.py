"""The source that a live tenant has left: nobody may have written to it since."""

from __future__ import annotations

from psycopg2.extensions import connection

from tenantferry.control.pauses import read_flipped_pause
from tenantferry.control.registry import require_registration
from tenantferry.errors import PermanentError
from tenantferry.moves.identity import check_same_source
from tenantferry.moves.move import Move
from tenantferry.traffic.fence import Fence, check_fenced


def check_left_source(move: Move, source: connection, target: connection) -> Fence:
    """
    Check that this is the database that the tenant left, fenced since then, and nobody is in it.

    :param source: session in autocommit; only read.
    :param target: the step's session, outside a transaction; only read.
    :return: what the fence has taken away.
    :raises PermanentError: if it is another database, or its fence is not up any more.
    :raises TransientError: if somebody came through the fence.
    """
    tenant = move.tenant.key
    with target:
        registration = require_registration(target, tenant)
        cutover = read_flipped_pause(target, tenant)
    if cutover is None:
        raise PermanentError(f'tenant "{tenant}" was never cut over')
    check_same_source(source, registration)
    fence = Fence.from_json(cutover.fence)
    check_fenced(source, fence)
    return fence
