"""What is watched, and sessions that never wait for long."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace

import psycopg2
from psycopg2.extensions import connection

from tenantferry.connections import ConnectionParams, open_connection
from tenantferry.errors import TransientError
from tenantferry.fleet import Fleet, Tenant
from tenantferry.fleet.operation import Watch
from tenantferry.moves.move import Move
from tenantferry.stream.failures import explain

# A server that is gone costs a look so long, not the two minutes of a kernel's patience.
_REACH = {"connect_timeout": "5", "tcp_user_timeout": "15000"}
_SETTINGS = {"statement_timeout": "60s", "lock_timeout": "5s"}


class UnreachableError(TransientError):
    """A server does not answer at all, whatever its database."""


@dataclass(frozen=True, slots=True)
class Watched:
    """
    A fleet and how to reach it.

    :ivar source_of: parameters of a tenant's source.
    :ivar move_of: all that a tenant's move needs. Both raise `TenantferryError` where the fleet or
        Airflow's connections do not say it.
    :ivar unusable: what of the declaration cannot be used, and the sentence that says why.
    """

    fleet: Fleet
    target: ConnectionParams
    source_of: Callable[[Tenant], ConnectionParams]
    move_of: Callable[[Tenant], Move]
    unusable: Mapping[str, str]

    @property
    def settings(self) -> Watch:
        """The thresholds."""
        return self.fleet.watch


def bound(params: ConnectionParams) -> ConnectionParams:
    """Return parameters that give up soon."""
    return replace(params, options={**params.options, **_REACH})


@contextmanager
def open_look(params: ConnectionParams, *, what: str) -> Iterator[connection]:
    """
    Open a session that only looks, within one transaction.

    :param what: for ``pg_stat_activity``.
    :raises UnreachableError: if the server could not be reached.
    :raises TransientError: if it takes too long.
    :raises PermanentError: if it refuses us or the question.
    """
    try:
        opened = open_connection(bound(params), purpose=f"watch {what}", settings=_SETTINGS)
    except TransientError as error:
        raise UnreachableError(error.message, detail=error.detail, hint=error.hint) from None
    with closing(opened) as session:
        try:
            yield session
            session.commit()
        except psycopg2.Error as error:
            raise explain(error, f'look at "{params.describe()}"') from None
