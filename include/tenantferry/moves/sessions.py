"""The sessions of one step: opened together, closed together, one step of a tenant at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager

from psycopg2 import errors
from psycopg2.extensions import connection

from tenantferry.connections import ConnectionParams, open_connection
from tenantferry.errors import TransientError

# How long a step waits for another step of the same tenant, e.g. one that on-call has just
# cleared and that is still cleaning up behind itself.
STEP_LOCK_TIMEOUT_SECONDS = 60

# On a source: longer than any lock of ours is held there, and than its clients should queue behind.
_SOURCE_LOCK_TIMEOUT = "30s"

_LOCK = "SELECT pg_advisory_lock(hashtextextended('tenantferry step ' || %s, 0))"


class StepBusyError(TransientError):
    """Another step of the tenant is still running."""


@contextmanager
def open_source(params: ConnectionParams, *, purpose: str) -> Iterator[connection]:
    """
    Open a session on the source in autocommit, and close it at the end.

    :raises TransientError: if one of its statements waits too long for a lock.
    """
    settings = {"lock_timeout": _SOURCE_LOCK_TIMEOUT}
    with closing(
        open_connection(params, purpose=purpose, autocommit=True, settings=settings)
    ) as source:
        try:
            yield source
        except errors.LockNotAvailable as error:
            if error.cursor is None or error.cursor.connection is not source:
                raise
            raise TransientError(
                f"could not get a lock on the source within {_SOURCE_LOCK_TIMEOUT}",
                detail=f"It was waited for {' '.join((error.diag.context or '').split())}.",
                hint="See pg_stat_activity of the source for a transaction that does not end, ours"
                " included; end it. The retry waits again.",
            ) from None


@contextmanager
def exclusive_step(
    params: ConnectionParams,
    *,
    tenant: str,
    step: str,
    timeout_seconds: float = STEP_LOCK_TIMEOUT_SECONDS,
) -> Iterator[connection]:
    """
    Open a session in the target that no other step of this tenant runs beside.

    The lock ends with the session, so a killed worker never keeps it.

    :param timeout_seconds: how long to wait for another step; more than zero.
    :return: the session; a transaction is the caller's.
    :raises StepBusyError: if another step of the tenant does not end in time.
    """
    with closing(open_connection(params, purpose=f"{step} {tenant}")) as target:
        with target.cursor() as cursor:
            cursor.execute("SELECT set_config('lock_timeout', %s, false)",
                           (f"{timeout_seconds * 1000:.0f}ms",))  # fmt: skip
            try:
                cursor.execute(_LOCK, (tenant,))
            except errors.LockNotAvailable:
                raise StepBusyError(
                    f'another step of tenant "{tenant}" is still running',
                    hint="It shows in pg_stat_activity of the target as"
                    f' "tenantferry ... {tenant}"; the retry waits again.',
                ) from None
            cursor.execute("SET lock_timeout = 0")
        target.commit()
        yield target
