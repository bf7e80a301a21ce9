"""The first half of a night: make the plan, and store it."""

from __future__ import annotations

from contextlib import closing
from datetime import datetime, timedelta

from psycopg2.extensions import connection

from tenantferry.connections import open_connection
from tenantferry.control.registry import ensure_control_schema
from tenantferry.control.waves import (
    Pick,
    Wave,
    read_clock,
    read_wave,
    record_plan,
    reopen_wave,
)
from tenantferry.fleet import Tenant
from tenantferry.waves.facts import FleetFacts, History, TenantFacts
from tenantferry.waves.planning import WavePlan, plan_wave
from tenantferry.waves.reading import (
    Databases,
    ServerFacts,
    read_histories,
    read_servers,
    read_stage,
)
from tenantferry.waves.runs import Runs


def show_plan(databases: Databases, runs: Runs, *, at: datetime | None = None) -> WavePlan:
    """
    Return what a wave would do as things are now. Changes nothing.

    :param at: when it begins; ``None``, or over: now.
    """
    with closing(open_target(databases)) as target:
        now = read_clock(target)
        begin = now if at is None else max(now, at)
        until = begin + timedelta(hours=databases.fleet.waves.hours)
        return _plan(target, databases, runs, now=begin, until=until)


def begin_wave(
    databases: Databases, runs: Runs, *, run_id: str, until: datetime
) -> WavePlan | Wave:
    """
    Plan the wave of one run of ``nightly_wave`` and store the plan.

    :param until: from then on it starts no tenant.
    :return: the wave itself where it has started somebody already: then its plan stands.
    """
    with closing(open_target(databases)) as target:
        with target:
            ensure_control_schema(target)
        wave = read_wave(target, run_id)
        if wave is not None and any(member.started_at is not None for member in wave.members):
            return wave
        plan = _plan(target, databases, runs, now=read_clock(target), until=until)
        with target:
            record_plan(
                target,
                run_id,
                [Pick(p.tenant, p.is_alone, p.size_bytes) for p in plan.picked],
                stage=plan.stage.number,
                stage_size=plan.stage.size,
                stage_wave=plan.stage.wave,
                starts_from=plan.stage.begins_at,
                starts_until=until,
            )
        return plan


def resume_wave(databases: Databases, *, run_id: str) -> None:
    """
    Let a wave that ended go on: only a person takes one up again.

    What is tried again after a failure of its own finds a wave that has not ended. If it was
    stopped, it stays so.
    """
    with closing(open_target(databases)) as target, target:
        ensure_control_schema(target)
        if (wave := read_wave(target, run_id)) is not None:
            reopen_wave(target, wave.number)


def open_target(databases: Databases) -> connection:
    """Open a session with the target, in autocommit."""
    return open_connection(databases.target, purpose="wave", autocommit=True)


def _plan(
    target: connection, databases: Databases, runs: Runs, *, now: datetime, until: datetime
) -> WavePlan:
    fleet = databases.fleet
    facts = FleetFacts(
        tenants=_read_tenants(databases, runs, read_histories(target)),
        regions=fleet.target.regions,
        broken=fleet.broken,
        stage=read_stage(target),
    )
    return plan_wave(facts, fleet.waves, now=now, until=until)


def _read_tenants(
    databases: Databases, runs: Runs, histories: dict[str, History]
) -> tuple[TenantFacts, ...]:
    """Read what is known of each declared tenant, each source server asked once."""
    tenants = list(databases.fleet.tenants.values())
    unfinished = [t for t in tenants if not histories.get(t.key, History()).is_finished]
    servers = read_servers(databases, unfinished, with_sizes=True)
    names = databases.servers()
    found = []
    for tenant in tenants:
        history = histories.get(tenant.key, History())
        # Where nothing was begun, nothing is asked: a fleet has a thousand tenants.
        has_run = history.is_begun and not history.is_finished
        size, unknown = _find_size(databases, tenant, servers.get(names[tenant.key]))
        found.append(
            TenantFacts(
                tenant=tenant,
                server=names[tenant.key],
                size_bytes=size,
                unknown=unknown,
                history=history,
                open_run=runs.find_open(tenant.key) if has_run else None,
            )
        )
    return tuple(found)


def _find_size(
    databases: Databases, tenant: Tenant, server: ServerFacts | str | None
) -> tuple[int | None, str]:
    """Return the size of a tenant's source, or why it is unknown."""
    source = databases.sources[tenant.key]
    if isinstance(source, str):
        return None, source
    if not isinstance(server, ServerFacts):
        return None, server or "its source was not asked"
    size = server.sizes.get(source.database)
    return size, "" if size is not None else f'its source has no database "{source.database}"'
