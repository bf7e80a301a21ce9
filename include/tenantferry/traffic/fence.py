"""
The fence: a database that refuses everyone but us.

A default like ``default_transaction_read_only`` can be overridden by any session, and the pooler is
not the only way in. So the privilege to connect is taken from everybody, and every other session is
ended. What will be taken is told before, to be stored and given back exactly.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from importlib import resources
from typing import Any

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import connection

from tenantferry.errors import PermanentError, TransientError

_FOLDER = resources.files("tenantferry.traffic")
_SESSIONS = _FOLDER.joinpath("foreign_sessions.sql").read_text("utf-8")
_LOGINS = _FOLDER.joinpath("logins.sql").read_text("utf-8")
_PRIVILEGES = _FOLDER.joinpath("connect_privileges.sql").read_text("utf-8")
_READ_ONLY = """
SELECT split_part(entry, '=', 2)
FROM pg_catalog.pg_db_role_setting AS s, LATERAL unnest(s.setconfig) AS entry
WHERE s.setrole = 0 AND entry LIKE 'default\\_transaction\\_read\\_only=%'
    AND s.setdatabase = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
"""
_PREPARED = "SELECT gid FROM pg_catalog.pg_prepared_xacts WHERE database = current_database()"
_OWNED = """
SELECT current_database()::text, pg_catalog.pg_get_userbyid(datdba)::text,
    pg_catalog.pg_has_role(datdba, 'USAGE'), current_user::text
FROM pg_catalog.pg_database WHERE datname = current_database()
"""

# An ended session rolls back and goes; one look follows the other until it is gone.
_RECHECK_SECONDS = 0.005


@dataclass(frozen=True, slots=True)
class Grant:
    """The privilege to connect, of one role; of everybody where *grantee* is ``None``."""

    grantee: str | None
    grantable: bool


@dataclass(frozen=True, slots=True)
class Fence:
    """
    What a fence takes away from a database.

    :ivar us: the role that keeps the privilege.
    :ivar grants: who may connect without the fence.
    :ivar read_only: ``default_transaction_read_only`` of the database, or ``None`` where not set.
    """

    database: str
    owner: str
    us: str
    grants: tuple[Grant, ...]
    read_only: str | None

    def to_json(self) -> dict[str, Any]:
        """Return what can be stored, and read by `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Fence:
        """Read what `to_json` returned; more may stand beside it."""
        values = {field.name: stored[field.name] for field in fields(cls)}
        return cls(**{**values, "grants": tuple(Grant(**grant) for grant in stored["grants"])})

    @property
    def is_raised(self) -> bool:
        """Whether this is what a database looks like while a fence is up."""
        return self.read_only == "on" and self.grants == (Grant(self.us, False),)


class ForeignSessionError(TransientError):
    """Somebody else is in the database and does not go."""


def plan_fence(source: connection) -> Fence:
    """
    Read what a fence would take away. Changes nothing.

    :param source: open transaction or autocommit; only read.
    :return: check `Fence.is_raised` before it is stored: what stands behind a fence is not what it
        took away.
    :raises PermanentError: if the fence could not be raised and lowered again.
    """
    with source.cursor() as cursor:
        cursor.execute(_OWNED)
        database, owner, is_ours, us = cursor.fetchone() or ("", "", False, "")
        cursor.execute(_PRIVILEGES)
        rows = cursor.fetchall()
        cursor.execute(_READ_ONLY)
        setting = cursor.fetchone()
    if not is_ours:
        raise PermanentError(
            f'cannot fence database "{database}"',
            detail=f'Role "{us}" is not a member of its owner "{owner}".',
            hint=f'GRANT "{owner}" TO "{us}".',
        )
    foreign = sorted({grantee or "PUBLIC" for grantee, _, by_owner in rows if not by_owner})
    if foreign:
        raise PermanentError(
            f'cannot fence database "{database}"',
            detail=f"CONNECT was granted to {', '.join(foreign)} by a role that is not the owner.",
            hint="Revoke it, and grant it again as the owner.",
        )
    grants = tuple(Grant(grantee, grantable) for grantee, grantable, _ in rows)
    return Fence(database, owner, us, grants, setting[0] if setting else None)


def check_fenceable(source: connection) -> None:
    """
    Look for what would make a fence fail. Changes nothing.

    :raises TransientError: if there is a session that we cannot end or a prepared transaction.
    :raises PermanentError: if the privileges are not such that they can be given back.
    """
    plan_fence(source)
    with source.cursor() as cursor:
        cursor.execute(_SESSIONS)
        _check_can_be_ended(cursor.fetchall())
    _check_prepared(source)


def raise_fence(source: connection, fence: Fence, *, timeout_seconds: float) -> None:
    """
    Refuse everyone but us, and end the sessions that are there. Commits.

    :param source: session in autocommit.
    :param fence: of `plan_fence`; the caller has stored it.
    :raises ForeignSessionError: if a session does not end in time or may not be ended by us.
    """
    with source, source.cursor() as cursor:
        cursor.execute(_act_as(fence.owner))
        # First, so that there is no moment at which our own stream could not reconnect.
        cursor.execute(_grant(fence.database, Grant(fence.us, False)))
        for grant in fence.grants:
            if grant.grantee != fence.us:
                cursor.execute(_revoke(fence.database, grant.grantee))
        cursor.execute(_set_read_only(fence.database, "on"))
    deadline = time.monotonic() + timeout_seconds
    # Who began to log in before the fence was up may get in; who begins now is refused.
    early = set(read_logins(source))
    while True:
        # In this order: whoever is through with its login shows in the second look.
        early &= set(read_logins(source))
        sessions = _read_sessions(source)
        if not sessions and not early:
            return
        if time.monotonic() > deadline:
            left = [*sessions.values(), *(f"pid {pid}, logging in" for pid in early)]
            raise ForeignSessionError(
                "could not end every other session of the source",
                detail=f"After {timeout_seconds:g} s there is still: {'; '.join(left)}.",
            )
        _end_sessions(source, sessions)
        time.sleep(_RECHECK_SECONDS)  # the server does not tell of a session's end


def check_alone(source: connection) -> None:
    """
    Check that nobody but us is in the database, and nothing is prepared to be committed later.

    :raises TransientError: if not.
    """
    if sessions := _read_sessions(source):
        raise ForeignSessionError(
            "another session came through the fence of the source",
            detail=f"{'; '.join(sessions.values())}.",
            hint="End it. A superuser passes every privilege: keep it away until this is done.",
        )
    _check_prepared(source)


def check_fenced(source: connection, fence: Fence) -> None:
    """
    Check that the fence that took *fence* away is still up, and that nobody came through it.

    :raises PermanentError: if it is not up any more: somebody may have written since.
    :raises TransientError: if somebody came through it.
    """
    current = plan_fence(source)
    if not current.is_raised or (current.database, current.us) != (fence.database, fence.us):
        raise PermanentError(
            f'database "{current.database}" is not fenced any more as the cutover left it',
            detail="Others than our role may connect, or it is not read-only by default: somebody"
            " may have written to it since.",
            hint="Find out who lowered the fence and what was written. If nothing was, put it back:"
            f' REVOKE CONNECT ON DATABASE "{current.database}" from all but "{fence.us}", ALTER'
            f' DATABASE "{current.database}" SET default_transaction_read_only = on, and end every'
            " session that is in there: none has to heed either of them.",
        )
    check_alone(source)


def lower_fence(source: connection, fence: Fence) -> None:
    """
    Give back exactly what the fence took; a fence that is not up stays so. Commits.

    :param source: session in autocommit.
    """
    current = plan_fence(source)
    missing = [grant for grant in fence.grants if grant not in current.grants]
    ours = Grant(fence.us, False)
    with source, source.cursor() as cursor:
        cursor.execute(_act_as(current.owner))
        for grant in missing:
            cursor.execute(_grant(fence.database, grant))
        if ours in current.grants and not any(g.grantee == fence.us for g in fence.grants):
            cursor.execute(_revoke(fence.database, fence.us))
        if current.read_only != fence.read_only:
            cursor.execute(_set_read_only(fence.database, fence.read_only))


def describe_transactions(source: connection) -> list[str]:
    """Describe the other sessions that are in a transaction, the oldest first; at most five."""
    with source.cursor() as cursor:
        cursor.execute(_SESSIONS)
        found = [text for *_, is_in_transaction, text in cursor if is_in_transaction]
    return found[:5]


def read_logins(session: connection) -> list[int]:
    """
    Return the processes that are just logging in to the session's database.

    Not those that have not proved yet who they are: a client may take its time with that.

    :param session: open transaction or autocommit; only read.
    """
    with session.cursor() as cursor:
        cursor.execute(_LOGINS)
        return [pid for (pid,) in cursor]


def _read_sessions(source: connection) -> dict[int, str]:
    """
    Describe the sessions that are not ours, by process id.

    :raises ForeignSessionError: if one of them cannot be ended.
    """
    with source.cursor() as cursor:
        cursor.execute(_SESSIONS)
        sessions = cursor.fetchall()
    _check_can_be_ended(sessions)
    return {pid: description for pid, *_, description in sessions}


def _check_can_be_ended(sessions: Iterable[tuple[int, bool, bool, bool, str]]) -> None:
    for _, is_superuser, can_be_ended, _, description in sessions:
        if is_superuser or not can_be_ended:
            raise ForeignSessionError(
                "a session of the source cannot be ended by us",
                detail=f"{description}.",
                hint="It may write meanwhile. End it, and keep it away until this is done.",
            )


def _end_sessions(source: connection, pids: Iterable[int]) -> None:
    with source.cursor() as cursor:
        for pid in pids:
            try:
                cursor.execute("SELECT pg_terminate_backend(%s)", (pid,))
            except psycopg2.errors.InsufficientPrivilege as error:
                raise ForeignSessionError(
                    f"could not end the session with pid {pid} of the source",
                    detail=(error.diag.message_primary or "").strip(),
                    hint='GRANT pg_signal_backend TO our role, as "source_privileges.sql" does.',
                ) from None


def _check_prepared(source: connection) -> None:
    with source.cursor() as cursor:
        cursor.execute(_PREPARED)
        prepared = [gid for (gid,) in cursor]
    if prepared:
        raise TransientError(
            "the source holds prepared transactions",
            detail=f"Identifiers: {', '.join(prepared)}. One may be committed after the cutover.",
            hint="COMMIT PREPARED or ROLLBACK PREPARED them first.",
        )


def _act_as(owner: str) -> sql.Composed:
    # A privilege counts as given by the owner only then: with the grant option of some other role
    # that we are a member of, Postgres may choose that one.
    return sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(owner))


def _grant(database: str, grant: Grant) -> sql.Composed:
    return sql.SQL("GRANT CONNECT ON DATABASE {} TO {}{}").format(
        sql.Identifier(database),
        _role(grant.grantee),
        sql.SQL(" WITH GRANT OPTION" if grant.grantable else ""),
    )


def _revoke(database: str, grantee: str | None) -> sql.Composed:
    return sql.SQL("REVOKE CONNECT ON DATABASE {} FROM {}").format(
        sql.Identifier(database), _role(grantee)
    )


def _role(name: str | None) -> sql.Composable:
    return sql.SQL("PUBLIC") if name is None else sql.Identifier(name)


def _set_read_only(database: str, value: str | None) -> sql.Composed:
    name = sql.Identifier(database)
    if value is None:
        return sql.SQL("ALTER DATABASE {} RESET default_transaction_read_only").format(name)
    return sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = {}").format(
        name, sql.Literal(value)
    )
