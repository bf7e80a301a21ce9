"""Ask the control schema and the servers for what a wave is decided from. Changes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from importlib import resources

import psycopg2
from psycopg2 import errors
from psycopg2.extensions import connection

from tenantferry.connections import ConnectionParams, open_connection
from tenantferry.control.direction import Direction
from tenantferry.control.phases import Phase
from tenantferry.control.streams import StreamState
from tenantferry.control.waves import Standing, has_waves
from tenantferry.errors import PermanentError, TransientError
from tenantferry.fleet import Fleet, Tenant
from tenantferry.fleet.pools import STREAM_SLOTS
from tenantferry.waves.facts import Attempt, History, StageFacts
from tenantferry.waves.starting import TARGET, Supply

# The durable slot of a tenant, and a temporary one of a validation; a sender each.
_SLOTS_PER_TENANT = 2
_STREAMING = [StreamState.STARTING, StreamState.RUNNING, StreamState.HOLDING]
# Sizes of many databases take a while; a server that hangs is one that does not answer.
_STATEMENT_TIMEOUT = "60s"
_NO_ANSWER = (
    TransientError,
    psycopg2.OperationalError,
    psycopg2.InterfaceError,
    errors.InsufficientPrivilege,
)


@dataclass(frozen=True, slots=True)
class Databases:
    """
    Where a fleet lies.

    :ivar sources: by tenant: how to reach its source, or why nobody can.
    """

    fleet: Fleet
    target: ConnectionParams
    sources: Mapping[str, ConnectionParams | str]

    def servers(self) -> dict[str, str]:
        """Return the source server of each tenant, as ``host:port``; empty where it is unknown."""
        return {
            tenant: "" if isinstance(params, str) else f"{params.host}:{params.port}"
            for tenant, params in self.sources.items()
        }


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """
    What a source server has left for moves.

    :ivar slots: of moves, and whether somebody reads from each.
    :ivar sizes: database to bytes, of those that were asked for and exist.
    """

    free_slots: int
    free_senders: int
    slots: Mapping[str, bool]
    sizes: Mapping[str, int] = field(default_factory=dict)

    def supplies(self, tenants: Sequence[Tenant]) -> tuple[Supply, ...]:
        """Return what moves take of it."""
        slots = frozenset(tenant.key for tenant in tenants if tenant.slot in self.slots)
        senders = frozenset(tenant.key for tenant in tenants if self.slots.get(tenant.slot))
        return (
            Supply("max_replication_slots", self.free_slots, _SLOTS_PER_TENANT, slots),
            Supply("max_wal_senders", self.free_senders, _SLOTS_PER_TENANT, senders),
        )


def read_histories(target: connection) -> dict[str, History]:
    """Return what is known of every tenant that somebody has begun to move."""
    with target.cursor() as cursor:
        cursor.execute("SELECT to_regclass('tenantferry.tenants') IS NOT NULL")
        if cursor.fetchone() == (False,):
            return {}
        cursor.execute(_read_sql("histories.sql"))
        found = {row[0]: History(Phase(row[1]), *row[2:]) for row in cursor.fetchall()}
        if has_waves(target):
            cursor.execute(_read_sql("attempts.sql"))
            for tenant, wave, standing, since, detail, is_alone in cursor.fetchall():
                attempt = Attempt(wave, Standing(standing), since, detail, is_alone)
                found[tenant] = replace(found.get(tenant, History()), attempt=attempt)
    return found


def read_stage(target: connection) -> StageFacts | None:
    """Return the latest stage; ``None`` before the first wave."""
    if not has_waves(target):
        return None
    with target.cursor() as cursor:
        cursor.execute(_read_sql("stage.sql"))
        row = cursor.fetchone()
    return None if row is None else StageFacts(row[0], row[1], row[2], row[3], row[4])


def read_server(sources: Sequence[ConnectionParams], *, databases: Sequence[str]) -> ServerFacts:
    """
    Ask one source server, in one session.

    :param sources: databases of it; the first one that lets us in is used.
    :param databases: whose size is asked for.
    :raises TransientError: if the server does not answer.
    :raises PermanentError: if no database lets us in.
    """
    refusal: PermanentError | None = None
    for params in sources:
        try:
            return _ask_server(params, databases)
        except PermanentError as error:  # e.g. a database that is gone; the server is there
            refusal = refusal or error
        except _NO_ANSWER as error:
            raise TransientError(
                f'source server "{params.host}:{params.port}" does not answer',
                detail=" ".join(str(error).split()),
            ) from None
    raise refusal or PermanentError("no source database is known of this server")


def read_servers(
    databases: Databases, tenants: Sequence[Tenant], *, with_sizes: bool
) -> dict[str, ServerFacts | str]:
    """
    Ask the source servers of *tenants*, each in one session.

    :return: by server: its facts, or why there are none.
    """
    servers = databases.servers()
    found: dict[str, ServerFacts | str] = {}
    for server in sorted({servers[tenant.key] for tenant in tenants if servers[tenant.key]}):
        params = [
            source
            for tenant in tenants
            if servers[tenant.key] == server
            and isinstance(source := databases.sources[tenant.key], ConnectionParams)
        ]
        names = sorted({source.database for source in params}) if with_sizes else []
        try:
            found[server] = read_server(params, databases=names)
        except (TransientError, PermanentError) as error:
            found[server] = f"{error.message}. {error.detail}".strip()
    return found


def read_target_supplies(target: connection, fleet: Fleet) -> tuple[Supply, ...]:
    """Return what moves take of the target: a replication origin each."""
    with target.cursor() as cursor:
        cursor.execute(_read_sql("origins.sql"))
        row = cursor.fetchone()
    free, names = row or (0, [])
    holders = frozenset(key for key, tenant in fleet.tenants.items() if tenant.origin in names)
    return (Supply("replication origins", free, 1, holders),)


def read_streaming(target: connection) -> frozenset[str]:
    """Return the tenants whose forward stream runs."""
    with target.cursor() as cursor:
        cursor.execute(
            "SELECT tenant FROM tenantferry.streams WHERE direction = %s AND state = ANY (%s)",
            (Direction.FORWARD, _STREAMING),
        )
        return frozenset(tenant for (tenant,) in cursor)


def plan_pool_supplies(fleet: Fleet, taken: Sequence[str]) -> dict[str, tuple[Supply, ...]]:
    """
    Return what moves take of the stream pools: a slot each.

    :param taken: the pool of each stream whose tenant is not in flight.
    """
    return {
        pool: (Supply(f"pool {pool}", STREAM_SLOTS - taken.count(pool), 1),)
        for pool in {tenant.stream_pool for tenant in fleet.tenants.values()}
    }


def plan_supplies(
    databases: Databases,
    servers: Mapping[str, ServerFacts | str],
    target: Sequence[Supply],
    taken: Sequence[str],
) -> dict[str, tuple[Supply, ...]]:
    """Return what there is of every place; a server that did not answer is not one of them."""
    tenants = list(databases.fleet.tenants.values())
    return {
        **plan_pool_supplies(databases.fleet, taken),
        TARGET: tuple(target),
        **{
            server: facts.supplies(tenants)
            for server, facts in servers.items()
            if isinstance(facts, ServerFacts)
        },
    }


def _ask_server(params: ConnectionParams, databases: Sequence[str]) -> ServerFacts:
    settings = {"statement_timeout": _STATEMENT_TIMEOUT}
    opened = open_connection(params, purpose="wave", autocommit=True, settings=settings)
    with closing(opened), opened.cursor() as cursor:
        cursor.execute(_read_sql("server.sql"), {"databases": list(databases)})
        row = cursor.fetchone()
    return ServerFacts(**row[0]) if row else ServerFacts(0, 0, {})


def _read_sql(name: str) -> str:
    return resources.files("tenantferry.waves").joinpath(name).read_text("utf-8")
