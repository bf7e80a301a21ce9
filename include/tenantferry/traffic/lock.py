"""
The lock of a retired source: a database that lets nobody in, us included, but superusers.

Everybody's privilege to connect is revoked, ours last, and the database takes no connection: a
script that grants the privilege again, as deployments do, does not open it. Its owner's membership
is enough for both, and both are undone by one who may be a superuser, with `Lock.undo`.

We are refused only once nobody else is in there: both happen in the last transaction. So whoever
finds itself refused, after a lock that was interrupted, knows that it was brought to its end.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from psycopg2 import sql
from psycopg2.extensions import connection

from tenantferry.connections import ConnectionParams, open_connection
from tenantferry.errors import PermanentError, TransientError
from tenantferry.traffic.fence import Fence, check_alone, plan_fence

_LIMIT = "SELECT datconnlimit FROM pg_catalog.pg_database WHERE datname = current_database()"
_END_OTHERS = """
SELECT pg_terminate_backend(a.pid)
FROM pg_catalog.pg_stat_activity AS a
JOIN pg_catalog.pg_roles AS r ON r.oid = a.usesysid
WHERE a.datname = current_database() AND a.pid <> pg_backend_pid() AND NOT r.rolsuper
    AND a.backend_type IN ('client backend', 'walsender')
"""
# Not "too many connections for database": it may be a limit of somebody else's that is reached.
_REFUSED = "permission denied for database"
_END_TIMEOUT_SECONDS = 30.0
_RECHECK_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Lock:
    """
    What a lock changes.

    :ivar undo: statements with which a superuser lets everybody in who could get in before the
        fence; to be run in another database of the server, for this one is read-only by default.
    """

    database: str
    owner: str
    grantees: tuple[str | None, ...]
    undo: str


def plan_lock(source: connection, former: Fence) -> Lock:
    """
    Read what a lock would change. Changes nothing.

    :param source: open transaction or autocommit; only read.
    :param former: what the fence of the source has taken away.
    :raises PermanentError: if we cannot lock it, or could not lock it for everybody.
    """
    current = plan_fence(source)
    with source.cursor() as cursor:
        cursor.execute(_LIMIT)
        (limit,) = cursor.fetchone() or (-1,)
    others = {grant.grantee for grant in current.grants} - {current.us}
    return Lock(
        database=current.database,
        owner=current.owner,
        # Ours last: we must be in there to do it.
        grantees=(*sorted(others, key=str), current.us),
        undo=_describe_undo(source, former, limit),
    )


def lock_database(source: connection, lock: Lock) -> None:
    """
    End every session but this one, and let nobody in any more. Commits.

    :param source: session in autocommit; of a database that is fenced.
    :raises TransientError: if a session does not end in time, or is not ours to end: nothing is
        locked then.
    """
    _end_others(source, lock.database)
    check_alone(source)
    name = sql.Identifier(lock.database)
    with source, source.cursor() as cursor:
        cursor.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(lock.owner)))
        cursor.execute(sql.SQL("ALTER DATABASE {} CONNECTION LIMIT 0").format(name))
        for grantee in lock.grantees:
            cursor.execute(
                sql.SQL("REVOKE CONNECT ON DATABASE {} FROM {}").format(name, _role(grantee))
            )


def _end_others(source: connection, database: str) -> None:
    deadline = time.monotonic() + _END_TIMEOUT_SECONDS
    while True:
        with source.cursor() as cursor:
            cursor.execute(_END_OTHERS)
            if not cursor.rowcount:
                return
        if time.monotonic() > deadline:
            raise TransientError(
                f'could not end every session of database "{database}"',
                detail="It is fenced, and not locked yet.",
                hint="See pg_stat_activity of the source's server; the retry ends them again.",
            )
        time.sleep(_RECHECK_SECONDS)  # a session's end can only be asked for


def is_locked(params: ConnectionParams, *, purpose: str) -> bool:
    """
    Tell whether the database refuses us.

    :raises TransientError: if it cannot be told.
    :raises PermanentError: if it refuses us for another reason.
    """
    try:
        open_connection(params, purpose=purpose).close()
    except (PermanentError, TransientError) as failure:
        if _REFUSED in failure.detail:
            return True
        raise
    return False


def _describe_undo(source: connection, former: Fence, limit: int) -> str:
    name = sql.Identifier(former.database)
    statements = [
        # Not a literal: psycopg2 puts a blank before a negative one.
        sql.SQL("ALTER DATABASE {} CONNECTION LIMIT {}").format(name, sql.SQL(str(limit))),
        *(
            sql.SQL("GRANT CONNECT ON DATABASE {} TO {}{}").format(
                name,
                _role(grant.grantee),
                sql.SQL(" WITH GRANT OPTION" if grant.grantable else ""),
            )
            for grant in former.grants
        ),
    ]
    value = former.read_only
    if value is None:
        statements.append(
            sql.SQL("ALTER DATABASE {} RESET default_transaction_read_only").format(name)
        )
    else:
        statements.append(
            sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = {}").format(
                name, sql.Literal(value)
            )
        )
    return "; ".join(statement.as_string(source) for statement in statements) + ";"


def _role(name: str | None) -> sql.Composable:
    return sql.SQL("PUBLIC") if name is None else sql.Identifier(name)
