"""What slows down a tenant, where people look: ``tenantferry.progress``."""

from __future__ import annotations

from tenantferry.connections import ConnectionParams
from tenantferry.throttle.session import Session

_SHOW = (
    "UPDATE tenantferry.streams SET throttled_by = %(reason)s, throttled_at = clock_timestamp()"
    " WHERE tenant = %(tenant)s AND direction = 'forward'"
)


class ControlBoard:
    """Writes to the control schema; has a session only while there is something to show."""

    def __init__(self, target: ConnectionParams, *, tenant: str) -> None:
        self._tenant = tenant
        self._session = Session(
            target, purpose=f"throttle board {tenant}", doing="record what slows down the tenant"
        )

    def show(self, reason: str | None) -> None:
        """
        Show it, or that nothing does any more; commits.

        :raises TransientError: if the target could not be reached.
        """
        self._session.run(_SHOW, {"reason": reason, "tenant": self._tenant})
        if reason is None:
            self.close()

    def close(self) -> None:
        """End its session."""
        self._session.close()
