"""How far the physical standbys of a server replay behind it."""

from __future__ import annotations

from collections.abc import Collection
from importlib import resources

from tenantferry.connections import ConnectionParams
from tenantferry.errors import PermanentError
from tenantferry.throttle.session import Session

_STANDBYS = resources.files("tenantferry.throttle").joinpath("standbys.sql").read_text("utf-8")


class ReplicaLag:
    """
    The gauge of one server.

    :param side: ``source`` or ``target``.
    :param ignored: ``application_name`` of standbys that do not count.
    """

    def __init__(
        self,
        params: ConnectionParams,
        *,
        side: str,
        tenant: str,
        limit_seconds: float,
        ignored: Collection[str] = (),
    ) -> None:
        self.name = f"replica lag of the {side}"
        self._side = side
        self._limit_seconds = limit_seconds
        self._ignored = list(ignored)
        self._session = Session(
            params, purpose=f"throttle {tenant}", doing=f"ask the {side} for its standbys"
        )

    def look(self) -> str | None:
        """
        Return how far the last standby is behind, where that is beyond the limit.

        :raises PermanentError: if the role may not see standbys.
        :raises TransientError: if the server could not be asked.
        """
        row = self._session.run(_STANDBYS, {"ignored": self._ignored})
        may_see, standby, seconds = row or (False, None, None)
        if not may_see:
            raise PermanentError(
                f"the migration role cannot see the standbys of the {self._side}",
                hint=f"GRANT pg_monitor TO it on the {self._side}.",
            )
        if seconds is None or seconds <= self._limit_seconds:
            return None
        return f'{self.name}: {seconds:.0f} s (standby "{standby}")'

    def close(self) -> None:
        """End its session."""
        self._session.close()
