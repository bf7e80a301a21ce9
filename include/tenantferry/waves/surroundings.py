"""The room around a wave: who else is in flight, and what the servers have left."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from psycopg2.extensions import connection

from tenantferry.control.waves import Standing, Wave
from tenantferry.fleet.pools import STREAM_POOL
from tenantferry.waves.facts import History, must_be_alone
from tenantferry.waves.reading import (
    Databases,
    ServerFacts,
    plan_supplies,
    read_servers,
    read_streaming,
    read_target_supplies,
)
from tenantferry.waves.runs import Runs
from tenantferry.waves.standings import RunLook
from tenantferry.waves.starting import WaveView

logger = logging.getLogger(__name__)

_WORKING = frozenset({Standing.RUNNING, Standing.ASKING})


@dataclass(frozen=True, slots=True)
class Surroundings:
    """
    What a wave shares servers and pools with.

    :ivar bystanders: tenants in flight that are not of the wave, and whether each must be alone.
    :ivar taken: the pool of each stream that goes on while its tenant is not in flight: it failed,
        waits for a person, or went back to its source.
    :ivar servers: of pending members: what is left of each, or why nobody knows.
    """

    bystanders: Mapping[str, bool]
    taken: tuple[str, ...]
    servers: Mapping[str, ServerFacts | str]


def look_around(
    target: connection,
    databases: Databases,
    runs: Runs,
    wave: Wave,
    *,
    histories: Mapping[str, History],
    looks: Mapping[str, RunLook],
) -> Surroundings:
    """
    Look at what is under way beside a wave, and ask the servers that it needs.

    :param looks: at the runs of its members that were started.
    """
    outside = _look_outside(databases, runs, wave, histories)
    bystanders = {
        key: _was_alone(histories[key])
        or must_be_alone(databases.fleet.tenants[key], None, databases.fleet.waves)
        for key, look in outside.items()
        if look.standing is Standing.RUNNING or look.is_cutting_over
    }
    taken = _find_taken(databases, looks, outside, bystanders, read_streaming(target))
    return Surroundings(bystanders, taken, _ask_servers(databases, wave))


def build_view(
    target: connection,
    databases: Databases,
    wave: Wave,
    *,
    looks: Mapping[str, RunLook],
    around: Surroundings,
) -> WaveView:
    """Return a wave as the next step is decided from."""
    on_target = read_target_supplies(target, databases.fleet)
    return WaveView(
        wave=wave,
        tenants=databases.fleet.tenants,
        servers=databases.servers(),
        bystanders=around.bystanders,
        supplies=plan_supplies(databases, around.servers, on_target, around.taken),
        cutting_over=frozenset(key for key, look in looks.items() if look.is_cutting_over),
    )


def _look_outside(
    databases: Databases, runs: Runs, wave: Wave, histories: Mapping[str, History]
) -> dict[str, RunLook]:
    """Look at the open runs of tenants that are not, or not yet, started by the wave."""
    started = {member.tenant for member in wave.members if member.started_at is not None}
    begun = [
        key
        for key, history in histories.items()
        if key in databases.fleet.tenants and key not in started and not history.is_finished
    ]
    return {key: look for key in begun if (look := runs.find_open(key)) is not None}


def _find_taken(
    databases: Databases,
    looks: Mapping[str, RunLook],
    outside: Mapping[str, RunLook],
    bystanders: Collection[str],
    streaming: Collection[str],
) -> tuple[str, ...]:
    """Return the pool of each stream that goes on while its tenant is not in flight."""
    tenants = databases.fleet.tenants
    open_runs = {key for key, look in looks.items() if look.is_open} | outside.keys()
    working = {key for key, look in looks.items() if look.standing in _WORKING} | {*bystanders}
    of_migrations = [tenants[key].stream_pool for key in open_runs - working if key in tenants]
    # Without a run of its own Dag it is the stream of a rollback.
    of_rollbacks = [STREAM_POOL for key in streaming if key not in open_runs]
    return (*of_migrations, *of_rollbacks)


def _was_alone(history: History) -> bool:
    return history.attempt is not None and history.attempt.is_alone


def _ask_servers(databases: Databases, wave: Wave) -> Mapping[str, ServerFacts | str]:
    tenants = databases.fleet.tenants
    pending = [
        tenants[member.tenant]
        for member in wave.members
        if member.started_at is None and member.standing is None and member.tenant in tenants
    ]
    found = read_servers(databases, pending, with_sizes=False) if wave.stop_reason is None else {}
    for server, facts in found.items():
        if isinstance(facts, str):
            logger.warning("nobody is started from source server %s: %s", server, facts)
    return found
