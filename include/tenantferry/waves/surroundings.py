"""The room around a wave: who else is in flight, and what the servers have left."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from psycopg2.extensions import connection

from tenantferry.control.waves import Standing, Wave
from tenantferry.waves.facts import History, must_be_alone
from tenantferry.waves.reading import (
    Databases,
    ServerFacts,
    plan_supplies,
    read_servers,
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
    :ivar occupants: tenants of which only the stream goes on: they failed, or wait for a person.
    :ivar servers: of pending members: what is left of each, or why nobody knows.
    """

    bystanders: Mapping[str, bool]
    occupants: tuple[str, ...]
    servers: Mapping[str, ServerFacts | str]


def look_around(
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
    occupants = [key for key in outside if key not in bystanders]
    occupants += [
        key for key, look in looks.items() if look.is_open and look.standing not in _WORKING
    ]
    return Surroundings(bystanders, tuple(occupants), _ask_servers(databases, wave))


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
        supplies=plan_supplies(databases, around.servers, on_target, around.occupants),
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
