"""The registry of tenants and the audit trail of their phases."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from uuid import UUID

from psycopg2 import errors
from psycopg2.extensions import connection
from psycopg2.extensions import cursor as cursor_type

from tenantferry.control.phases import IllegalPhaseError, Phase, check_move
from tenantferry.errors import PermanentError, TransientError
from tenantferry.lsn import format_lsn

# Any two sessions that apply the DDL would otherwise race on CREATE ... IF NOT EXISTS.
_DDL_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('tenantferry control schema', 0))"
# Streams, and cutovers of others in their write pauses, queue behind a session that waits to alter
# a table of the control schema.
_DDL_LOCK_TIMEOUT = "1s"
_SET_LOCK_TIMEOUT = "SELECT set_config('lock_timeout', %s, true)"
_READ_COMMENT = (
    "SELECT obj_description(to_regnamespace('tenantferry')::pg_catalog.oid, 'pg_namespace')"
)
_COMMENT = "Runtime state of Tenantferry: written by its tasks, safe to read. Made of control.sql "


class SupersededError(PermanentError):
    """Another run has taken the tenant over."""


@dataclass(frozen=True, slots=True)
class Registration:
    """
    The registry row of one tenant.

    :ivar source_identity: system identifier of the source's cluster and the database's name.
    :ivar run_id: the Airflow run that owns, or owned, the move; ``None`` where a script does.
    """

    tenant: str
    tenant_id: UUID
    phase: Phase
    run_id: str | None
    source_identity: str

    def is_of(self, run_id: str | None) -> bool:
        """Tell whether a run has the tenant. A script, ``None``, may do anything."""
        return run_id is None or self.run_id in (None, run_id)


def ensure_control_schema(target: connection) -> None:
    """
    Create what is missing of the control schema; one that was made of this very file is complete.

    :param target: open transaction; the caller commits.
    :raises TransientError: if another session does not let it in time.
    """
    ddl = resources.files("tenantferry.control").joinpath("control.sql").read_text("utf-8")
    comment = _COMMENT + hashlib.sha256(ddl.encode()).hexdigest()[:16]
    with target.cursor() as cursor:
        # CREATE INDEX IF NOT EXISTS locks its table also where there is nothing to do. The cutovers
        # of other tenants write to these tables, within their write pauses.
        if _has_comment(cursor, comment):
            return
        cursor.execute(_DDL_LOCK)
        # Somebody else may have made it while this one waited.
        if not _has_comment(cursor, comment):
            with _lock_timeout(cursor, _DDL_LOCK_TIMEOUT):
                cursor.execute(ddl)
            cursor.execute("COMMENT ON SCHEMA tenantferry IS %s", (comment,))


@contextmanager
def _lock_timeout(cursor: cursor_type, timeout: str) -> Iterator[None]:
    """Wait no longer for a lock within the block, which is of one transaction."""
    cursor.execute("SELECT current_setting('lock_timeout')")
    (before,) = cursor.fetchone() or ("0",)
    cursor.execute(_SET_LOCK_TIMEOUT, (timeout,))
    try:
        yield
    except errors.LockNotAvailable:
        raise TransientError(
            "could not bring the control schema up to date",
            detail=f"Another session has held a lock of it for more than {timeout}.",
            hint="See pg_stat_activity of the target for a transaction that does not end, as of a"
            " dump. The retry tries again.",
        ) from None
    cursor.execute(_SET_LOCK_TIMEOUT, (before,))


def _has_comment(cursor: cursor_type, comment: str) -> bool:
    cursor.execute(_READ_COMMENT)
    return cursor.fetchone() == (comment,)


def read_registration(target: connection, tenant: str) -> Registration | None:
    """
    Return the registry row of a tenant, or ``None`` where there is none, or no registry yet.

    :param target: open transaction or autocommit; only read.
    """
    with target.cursor() as cursor:
        cursor.execute("SELECT to_regclass('tenantferry.tenants') IS NOT NULL")
        if cursor.fetchone() == (False,):
            return None
        cursor.execute(
            "SELECT tenant, tenant_id::text, phase, run_id, source_identity"
            " FROM tenantferry.tenants WHERE tenant = %s",
            (tenant,),
        )
        row = cursor.fetchone()
    if row is None:
        return None
    return Registration(row[0], UUID(row[1]), Phase(row[2]), row[3], row[4])


def require_registration(target: connection, tenant: str) -> Registration:
    """
    Return the registry row of a tenant that was prepared.

    :raises IllegalPhaseError: if it was not.
    """
    registration = read_registration(target, tenant)
    if registration is None:
        raise IllegalPhaseError(
            f'tenant "{tenant}" is not registered',
            hint='Clear the task "prepare" and those after it.',
        )
    return registration


def check_owner(registration: Registration, run_id: str | None) -> None:
    """
    Check that a run still has the tenant, so that no step of an old one interferes.

    :raises SupersededError: if another run took it over: a later move, or a rollback.
    """
    if not registration.is_of(run_id):
        raise SupersededError(
            f'run "{registration.run_id}" has tenant "{registration.tenant}"',
            detail=f'It took the tenant over from run "{run_id}". Nothing was changed.',
            hint="Clear the task of that run instead. To move the tenant anew, clear"
            f' "preflight" and those after it in a run of migrate_{registration.tenant}.',
        )


def take_over(target: connection, tenant: str, *, run_id: str | None) -> None:
    """Make a run the one that has the tenant. The caller commits."""
    with target.cursor() as cursor:
        cursor.execute(
            "UPDATE tenantferry.tenants SET run_id = %s WHERE tenant = %s", (run_id, tenant)
        )


def ensure_registered(
    target: connection, *, tenant: str, tenant_id: UUID, source_identity: str, run_id: str | None
) -> None:
    """
    Register a tenant, or take its registration over for this run.

    :param target: open transaction; the caller commits.
    :raises PermanentError: if the id or the source belongs to another tenant.
    """
    with target.cursor() as cursor:
        try:
            cursor.execute(
                "INSERT INTO tenantferry.tenants"
                " (tenant, tenant_id, phase, run_id, source_identity)"
                " VALUES (%s, %s, %s, %s, %s) ON CONFLICT (tenant) DO NOTHING",
                (tenant, str(tenant_id), Phase.REGISTERED, run_id, source_identity),
            )
        except errors.UniqueViolation as error:
            raise PermanentError(
                f'tenant "{tenant}" clashes with a registered tenant',
                detail=(error.diag.message_detail or "").strip(),
                hint="Give it an id and a source database of its own.",
            ) from None
        if cursor.rowcount == 1:
            _record(
                cursor,
                tenant,
                (None, Phase.REGISTERED),
                run_id=run_id,
                lsn=None,
                reason="first run",
            )
            return
        cursor.execute(
            "UPDATE tenantferry.tenants SET run_id = %s"
            " WHERE tenant = %s AND tenant_id = %s AND source_identity = %s",
            (run_id, tenant, str(tenant_id), source_identity),
        )
        if cursor.rowcount == 0:
            raise PermanentError(
                f'tenant "{tenant}" is registered with another id or another source',
                hint="A registered tenant keeps its id and its source; use another key.",
            )


def change_phase(
    target: connection,
    tenant: str,
    wanted: Phase,
    *,
    run_id: str | None,
    reason: str,
    lsn: int | None = None,
) -> None:
    """
    Move a tenant to another phase and record it. Being there already is not a change.

    :param target: open transaction; the caller commits the change with what it stands for.
    :raises IllegalPhaseError: if the tenant may not go there.
    """
    with target.cursor() as cursor:
        cursor.execute(
            "SELECT phase FROM tenantferry.tenants WHERE tenant = %s FOR UPDATE", (tenant,)
        )
        row = cursor.fetchone()
        if row is None:
            raise IllegalPhaseError(f'tenant "{tenant}" is not registered')
        current = Phase(row[0])
        if current is wanted:
            return
        check_move(tenant, current, wanted)
        cursor.execute(
            "UPDATE tenantferry.tenants SET phase = %s, changed_at = clock_timestamp()"
            " WHERE tenant = %s",
            (wanted, tenant),
        )
        _record(cursor, tenant, (current, wanted), run_id=run_id, lsn=lsn, reason=reason)


def _record(
    cursor: cursor_type,
    tenant: str,
    move: tuple[Phase | None, Phase],
    *,
    run_id: str | None,
    lsn: int | None,
    reason: str,
) -> None:
    cursor.execute(
        "INSERT INTO tenantferry.phase_changes"
        " (tenant, from_phase, to_phase, run_id, lsn, reason) VALUES (%s, %s, %s, %s, %s, %s)",
        (tenant, *move, run_id, None if lsn is None else format_lsn(lsn), reason),
    )
