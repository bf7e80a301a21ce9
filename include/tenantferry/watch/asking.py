"""Ask many databases the same, a few servers at a time; none waits for one that is gone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from psycopg2.extensions import connection

from tenantferry.connections import ConnectionParams
from tenantferry.errors import TenantferryError
from tenantferry.fleet import Tenant
from tenantferry.watch.watched import UnreachableError, Watched, open_look

SERVERS_AT_ONCE = 8

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Place:
    """
    A database of the fleet.

    :ivar conn_id: Airflow connection.
    :ivar tenant: whose source it is; ``None``: the target.
    """

    params: ConnectionParams
    conn_id: str
    tenant: Tenant | None = None

    @property
    def server(self) -> str:
        """Address of its server, e.g. ``db1:5432``."""
        return f"{self.params.host}:{self.params.port}"

    def __str__(self) -> str:
        whose = "target" if self.tenant is None else f'source of tenant "{self.tenant.key}"'
        return f"{whose} ({self.server}/{self.params.database})"


@dataclass(frozen=True, slots=True)
class Answered(Generic[Answer]):
    """What one database said, or why it said nothing."""

    place: Place
    answer: Answer | TenantferryError


def find_places(watched: Watched, tenants: Sequence[Tenant]) -> tuple[list[Place], dict[str, str]]:
    """
    Return the sources of *tenants*.

    :return: and the tenants whose source nothing says how to reach, with the sentence why.
    """
    places: list[Place] = []
    unknown: dict[str, str] = {}
    for tenant in tenants:
        try:
            places.append(Place(watched.source_of(tenant), tenant.source.conn_id, tenant))
        except TenantferryError as error:
            unknown[tenant.key] = str(error)
    return places, unknown


def group_by_server(places: Sequence[Place]) -> dict[str, list[Place]]:
    """Return the databases of each server, by its address."""
    servers: dict[str, list[Place]] = {}
    for place in places:
        servers.setdefault(place.server, []).append(place)
    return servers


def ask_each(
    places: Sequence[Place], ask: Callable[[connection, Place], Answer], *, what: str
) -> list[Answered[Answer]]:
    """
    Ask every database.

    :param ask: gets a session in a transaction; runs in a thread of its own for each server.
    :param what: for ``pg_stat_activity``.
    """

    def ask_server(group: list[Place]) -> list[Answered[Answer]]:
        answers: list[Answered[Answer]] = []
        gone: UnreachableError | None = None
        for place in group:
            answer = _ask(place, ask, what) if gone is None else gone
            if isinstance(answer, UnreachableError):
                # Its other databases would cost the same wait, one after the other.
                gone = answer
            answers.append(Answered(place, answer))
        return answers

    return [answer for answers in _map(ask_server, places) for answer in answers]


def ask_servers(
    places: Sequence[Place], ask: Callable[[connection, Place], Answer], *, what: str
) -> list[Answered[Answer]]:
    """Ask the first database of every server that answers; what is asked concerns them all."""

    def ask_server(group: list[Place]) -> Answered[Answer]:
        for place in group:
            answer = _ask(place, ask, what)
            if isinstance(answer, UnreachableError) or not isinstance(answer, TenantferryError):
                break
        return Answered(place, answer)

    return _map(ask_server, places)


def _ask(
    place: Place, ask: Callable[[connection, Place], Answer], what: str
) -> Answer | TenantferryError:
    try:
        with open_look(place.params, what=what) as session:
            return ask(session, place)
    except TenantferryError as error:
        return error


_Result = TypeVar("_Result")


def _map(ask_server: Callable[[list[Place]], _Result], places: Sequence[Place]) -> list[_Result]:
    groups = list(group_by_server(places).values())
    with ThreadPoolExecutor(SERVERS_AT_ONCE, thread_name_prefix="watch") as threads:
        return list(threads.map(ask_server, groups))
