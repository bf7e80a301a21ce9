"""Where the registered tenants stand."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from importlib import resources

from psycopg2.extensions import connection

from tenantferry.control.phases import Phase
from tenantferry.control.registry import ensure_control_schema

_STANDINGS = resources.files("tenantferry.watch").joinpath("standings.sql").read_text("utf-8")

# Its slot on the source holds what the target does not have yet.
IN_FLIGHT = frozenset({Phase.BACKFILLING, Phase.STREAMING, Phase.VALIDATED, Phase.CUTTING_OVER})
# Its rows are copied, and a stream keeps them current.
STREAMED = frozenset({Phase.STREAMING, Phase.VALIDATED})


@dataclass(frozen=True, slots=True)
class Standing:
    """
    One registered tenant.

    :ivar seconds: since its phase changed, at *changed_at*.
    :ivar source_identity: system identifier of the source's cluster, a slash, the database's name.
    :ivar in_grace: whether it can go back.
    :ivar is_busy: whether one of its steps runs.
    """

    tenant: str
    phase: Phase
    seconds: float
    changed_at: datetime
    source_identity: str
    in_grace: bool
    is_busy: bool

    @property
    def is_moving(self) -> bool:
        """Whether the tenant's source still matters."""
        return self.phase not in (Phase.REGISTERED, Phase.LIVE, Phase.RETIRED) or self.in_grace


def read_standings(target: connection) -> dict[str, Standing]:
    """
    Return all registered tenants, by key; none where nothing was ever prepared.

    :param target: open transaction; only read, but for a control schema of an older version.
    """
    with target.cursor() as cursor:
        cursor.execute("SELECT to_regclass('tenantferry.tenants') IS NOT NULL")
        if cursor.fetchone() != (True,):
            return {}
        ensure_control_schema(target)
        cursor.execute(_STANDINGS)
        return {tenant: Standing(tenant, Phase(phase), *rest) for tenant, phase, *rest in cursor}
