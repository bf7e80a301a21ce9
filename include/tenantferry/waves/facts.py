"""What a wave is planned from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from tenantferry.control.phases import Phase
from tenantferry.control.waves import Standing
from tenantferry.fleet import Tenant
from tenantferry.fleet.operation import Waves
from tenantferry.waves.standings import RunLook

FINISHED = frozenset({Phase.LIVE, Phase.RETIRING, Phase.RETIRED})
LARGE = "large"


@dataclass(frozen=True, slots=True)
class Attempt:
    """The last time that a wave started a tenant."""

    wave: int
    standing: Standing
    since: datetime
    detail: str
    is_alone: bool


@dataclass(frozen=True, slots=True)
class History:
    """
    What the control schema says of one tenant; nothing, before its first move.

    :ivar since: of the phase.
    :ivar rolled_back_at: when it went back to its source, if it ever did.
    :ivar given_up_at: when its move was given up, if it ever was.
    """

    phase: Phase | None = None
    since: datetime | None = None
    rolled_back_at: datetime | None = None
    given_up_at: datetime | None = None
    attempt: Attempt | None = None

    @property
    def is_finished(self) -> bool:
        """Whether its clients work in the target, and nobody is bringing them back."""
        return self.phase in FINISHED

    @property
    def is_begun(self) -> bool:
        """Whether somebody has moved it, or tried to."""
        return self.phase is not None or self.attempt is not None


@dataclass(frozen=True, slots=True)
class TenantFacts:
    """
    What is known about one tenant.

    :ivar server: its source server, as ``host:port``.
    :ivar size_bytes: of its source database; ``None``: unknown.
    :ivar unknown: why the size is unknown.
    :ivar open_run: the run of its Dag that is under way, whoever started it.
    """

    tenant: Tenant
    server: str
    size_bytes: int | None = None
    unknown: str = ""
    history: History = field(default_factory=History)
    open_run: RunLook | None = None


@dataclass(frozen=True, slots=True)
class StageFacts:
    """
    The latest stage.

    :ivar number: 1 is the first of the declared stages.
    :ivar wave: that it began with.
    :ivar size: tenants that have to be live for it to end.
    :ivar live: tenants of it that are.
    :ivar last_live_at: when the last of them went live.
    """

    number: int
    wave: int
    size: int
    live: int
    last_live_at: datetime | None


@dataclass(frozen=True, slots=True)
class FleetFacts:
    """
    A fleet at one moment.

    :ivar regions: that the target may hold; empty means every region.
    :ivar broken: tenants that cannot be used as they are declared, and why.
    :ivar stage: ``None`` before the first wave.
    """

    tenants: tuple[TenantFacts, ...]
    regions: frozenset[str] = frozenset()
    broken: Mapping[str, str] = field(default_factory=dict)
    stage: StageFacts | None = None


def must_be_alone(tenant: Tenant, size_bytes: int | None, settings: Waves) -> bool:
    """Tell whether a tenant is never to be in flight beside another."""
    return tenant.size_class == LARGE or (size_bytes or 0) >= settings.alone_bytes
