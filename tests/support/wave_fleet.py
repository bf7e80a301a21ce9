"""Tenants and facts for the tests of waves, without a database."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from tenantferry.control.waves import Member, Standing, Wave
from tenantferry.fleet import Tenant
from tenantferry.fleet.operation import Waves
from tenantferry.waves.facts import FleetFacts, History, StageFacts, TenantFacts
from tenantferry.waves.standings import RunLook
from tenantferry.waves.starting import TARGET, Supply, WaveView

NOW = datetime(2026, 11, 20, 22, 0, tzinfo=UTC)
UNTIL = datetime(2026, 11, 21, 6, 0, tzinfo=UTC)
POOL = "tenantferry_streams"


def tenant(key: str, **fields: Any) -> Tenant:
    """Declare a tenant; its id follows from its key."""
    number = int.from_bytes(key.encode()[-12:], "big")
    return Tenant.model_validate(
        {
            "key": key,
            "id": UUID(int=number),
            "source": {"conn_id": "source_1", "database": key},
            "region": "eu",
            **fields,
        }
    )


def facts_of(
    key: str,
    *,
    server: str = "db1:5432",
    size_bytes: int | None = 1_000_000,
    unknown: str = "",
    history: History | None = None,
    open_run: RunLook | None = None,
    **fields: Any,
) -> TenantFacts:
    """Return what is known about one tenant."""
    return TenantFacts(
        tenant=tenant(key, **fields),
        server=server,
        size_bytes=size_bytes,
        unknown=unknown,
        history=history or History(),
        open_run=open_run,
    )


def fleet_of(
    *tenants: TenantFacts, stage: StageFacts | None = None, regions: tuple[str, ...] = ("eu",)
) -> FleetFacts:
    """Return a fleet in the only region that the target serves."""
    return FleetFacts(tenants=tenants, regions=frozenset(regions), stage=stage)


def everything(**settings: Any) -> Waves:
    """Return settings with one stage for all."""
    return Waves(**{"stages": (100,), **settings})


def member(key: str, position: int = 1, *, since: datetime | None = None, **fields: Any) -> Member:
    """Return a member; one with a standing was started when it got it."""
    standing: Standing | None = fields.get("standing")
    has_run = standing is not None and standing is not Standing.SKIPPED
    moment = since or NOW if standing is not None else None
    return Member(
        key,
        position,
        f"wave_7__{key}",
        started_at=moment if has_run else None,
        since=moment,
        **fields,
    )


def wave_of(
    *members: Member,
    stop_reason: str | None = None,
    stage_size: int = 100,
    begin: datetime | None = None,
    until: datetime = UNTIL,
) -> Wave:
    """Return wave 7, which serves stage 1."""
    return Wave(7, 1, stage_size, begin, until, None, stop_reason, members)


def view_of(
    wave: Wave,
    *tenants: Tenant,
    servers: dict[str, str] | None = None,
    supplies: dict[str, tuple[Supply, ...]] | None = None,
    **fields: Any,
) -> WaveView:
    """Return a wave with plenty of room; a tenant that is not given is declared as it can be."""
    given = {each.key: each for each in tenants}
    members = {m.tenant: given.get(m.tenant) or tenant(m.tenant) for m in wave.members}
    where = dict.fromkeys((*members, *fields.get("bystanders", {})), "db1:5432")
    where |= servers or {}
    plenty: dict[str, tuple[Supply, ...]] = dict.fromkeys((*where.values(), TARGET, POOL), ())
    return WaveView(
        wave=wave,
        tenants={**members, **given},
        servers=where,
        supplies={**plenty, **(supplies or {})},
        **fields,
    )
