"""
The fence of one tenant in the target: its role may not log in, and no session of it is left.

The target serves others, so the database as a whole cannot be fenced. A tenant's rows can be
written by its own role, and by whoever may speak as it: of those, nobody must be able to log in.

Whether a role may log in is asked when a client has proved who it is, a moment before its session
can be seen. Who passed in that moment does no harm: ``app.current_tenant()`` asks again in every
query, and a session whose role may not log in any more has no tenant. A query that was asked
before is one of a session that could be seen already.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any

import psycopg2
from psycopg2.extensions import connection

from tenantferry.errors import PermanentError, TransientError
from tenantferry.schema.roles import set_role_login
from tenantferry.traffic.fence import ForeignSessionError, read_logins

_FOLDER = resources.files("tenantferry.traffic")
_SESSIONS = _FOLDER.joinpath("role_sessions.sql").read_text("utf-8")
_SPEAKERS = _FOLDER.joinpath("role_speakers.sql").read_text("utf-8")
_LOGIN = "SELECT rolcanlogin FROM pg_catalog.pg_roles WHERE rolname = %s"
_PREPARED = (
    "SELECT gid FROM pg_catalog.pg_prepared_xacts"
    " WHERE database = current_database() AND owner = %s"
)

# An ended session rolls back and goes; one look follows the other until it is gone.
_RECHECK_SECONDS = 0.005


@dataclass(frozen=True, slots=True)
class RoleFence:
    """
    What the fence of a tenant's role takes away.

    :ivar login: whether the role may log in without it.
    """

    role: str
    login: bool

    def to_json(self) -> dict[str, Any]:
        """Return what can be stored, and read by `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> RoleFence:
        """Read what `to_json` returned."""
        return cls(**stored)


def plan_role_fence(target: connection, role: str) -> RoleFence:
    """
    Read what the fence would take away, and look for what would make it fail. Changes nothing.

    :param target: session outside a transaction.
    :raises PermanentError: if others could write the tenant's rows.
    :raises TransientError: if the role holds a prepared transaction.
    """
    with target, target.cursor() as cursor:
        cursor.execute(_LOGIN, (role,))
        row = cursor.fetchone()
        cursor.execute(_SPEAKERS, {"role": role})
        speakers = [name for (name,) in cursor]
    if row is None:
        raise PermanentError(f'role "{role}" does not exist in the target')
    if speakers:
        raise PermanentError(
            f'cannot keep everybody from writing as "{role}" in the target',
            detail=f"These roles may log in and write its rows: {', '.join(speakers)}.",
            hint="ALTER ROLE ... NOLOGIN and end their sessions until the tenant is back, or REVOKE"
            " what makes them members of the role.",
        )
    _check_prepared(target, role)
    return RoleFence(role, row[0])


def raise_role_fence(target: connection, fence: RoleFence, *, timeout_seconds: float) -> None:
    """
    Refuse the role, and end the sessions that it has. Commits.

    :param target: session outside a transaction.
    :param fence: of `plan_role_fence`; the caller has stored it.
    :raises ForeignSessionError: if a session does not end in time or may not be ended by us.
    """
    with target:
        set_role_login(target, fence.role, allowed=False)
    deadline = time.monotonic() + timeout_seconds
    # Who was let in before that may still be on its way, and would look like somebody who came
    # through the fence; who begins now is refused.
    early = _read_logins(target)
    while True:
        # In this order: whoever is through with its login shows in the second look.
        early &= _read_logins(target)
        sessions = _read_sessions(target, fence.role)
        if not sessions and not early:
            break
        if time.monotonic() > deadline:
            left = [*sessions.values(), *(f"pid {pid}, logging in" for pid in sorted(early))]
            raise ForeignSessionError(
                f'could not end every session of role "{fence.role}" in the target',
                detail=f"After {timeout_seconds:g} s there is still: {'; '.join(left)}.",
            )
        _end_sessions(target, sessions)
        time.sleep(_RECHECK_SECONDS)  # the server does not tell of a session's end
    _check_prepared(target, fence.role)


def check_role_alone(target: connection, fence: RoleFence) -> None:
    """
    Check that the role has no session, cannot get one, and has nothing prepared to be committed.

    :param target: session outside a transaction.
    :raises TransientError: if not.
    """
    with target, target.cursor() as cursor:
        cursor.execute(_LOGIN, (fence.role,))
        may_log_in = cursor.fetchone() == (True,)
    sessions = _read_sessions(target, fence.role)
    if sessions or may_log_in:
        raise ForeignSessionError(
            f'role "{fence.role}" came through its fence in the target',
            detail=f"{'; '.join(sessions.values()) or 'It may log in'}.",
            hint="Somebody gave it back the right to log in. Keep them away during the rollback.",
        )
    _check_prepared(target, fence.role)


def lower_role_fence(target: connection, fence: RoleFence) -> None:
    """Give back exactly what the fence took. The caller commits."""
    set_role_login(target, fence.role, allowed=fence.login)


def describe_role_transactions(target: connection, role: str) -> list[str]:
    """Describe the sessions of a role that are in a transaction, the oldest first; at most five."""
    with target, target.cursor() as cursor:
        cursor.execute(_SESSIONS, {"role": role})
        found = [text for _, is_in_transaction, text in cursor if is_in_transaction]
    return found[:5]


def _read_logins(target: connection) -> set[int]:
    with target:
        return set(read_logins(target))


def _read_sessions(target: connection, role: str) -> dict[int, str]:
    # In a transaction of its own: within one, pg_stat_activity does not change.
    with target, target.cursor() as cursor:
        cursor.execute(_SESSIONS, {"role": role})
        return {pid: description for pid, _, description in cursor}


def _end_sessions(target: connection, pids: Iterable[int]) -> None:
    for pid in pids:
        try:
            with target, target.cursor() as cursor:
                cursor.execute("SELECT pg_terminate_backend(%s)", (pid,))
        except psycopg2.errors.InsufficientPrivilege as error:
            raise ForeignSessionError(
                f"could not end the session with pid {pid} of the target",
                detail=(error.diag.message_primary or "").strip(),
                hint='GRANT pg_signal_backend TO our role, as "target_privileges.sql" does.',
            ) from None


def _check_prepared(target: connection, role: str) -> None:
    with target, target.cursor() as cursor:
        cursor.execute(_PREPARED, (role,))
        prepared = [gid for (gid,) in cursor]
    if prepared:
        raise TransientError(
            f'role "{role}" holds prepared transactions in the target',
            detail=f"Identifiers: {', '.join(prepared)}. One may be committed after the rollback.",
            hint="COMMIT PREPARED or ROLLBACK PREPARED them first.",
        )
