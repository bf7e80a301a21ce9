"""How long the clients' queries take, as the pooler sees it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from tenantferry.errors import TenantferryError
from tenantferry.traffic.instances import Instance
from tenantferry.traffic.pgbouncer import Console, open_console

# Queries, and the microseconds that they took, by instance and alias; since the instance started.
_Totals = dict[tuple[str, str], tuple[int, int]]


class QueryLatency:
    """
    The gauge of a router: the average of all queries of all its clients between two looks.

    Queries that have not ended yet do not count.
    """

    name = "latency of queries"

    def __init__(self, instances: Sequence[Instance], *, tenant: str, limit_ms: float) -> None:
        self._instances = instances
        self._purpose = f"throttle {tenant}"
        self._limit_ms = limit_ms
        self._stack = ExitStack()
        self._consoles: list[Console] = []
        self._totals: _Totals | None = None

    def look(self) -> str | None:
        """
        Return the average since the last look, where that is beyond the limit.

        :raises TenantferryError: if an instance could not be asked.
        """
        before = self._totals
        try:
            totals = self._read_totals()
        except TenantferryError:
            self.close()
            raise
        queries, microseconds = (0, 0) if before is None else _sum_since(before, totals)
        self._totals = totals
        if queries == 0 or microseconds / queries <= self._limit_ms * 1000:
            return None
        return f"{self.name}: {microseconds / queries / 1000:.0f} ms"

    def close(self) -> None:
        """End its sessions."""
        self._stack.close()
        self._consoles = []
        self._totals = None

    def _read_totals(self) -> _Totals:
        if not self._consoles:
            self._consoles = [
                self._stack.enter_context(open_console(i.name, i.admin, purpose=self._purpose))
                for i in self._instances
            ]
        return {
            (console.name, str(row["database"])): (
                int(str(row["total_query_count"])),
                int(str(row["total_query_time"])),
            )
            for console in self._consoles
            for row in console.run("SHOW STATS")
            if row["database"] != "pgbouncer"
        }


def _sum_since(before: _Totals, now: _Totals) -> tuple[int, int]:
    """Add up what has come; an alias that was made anew counts from zero, and is left out once."""
    queries = microseconds = 0
    for place, (count, time) in now.items():
        # An instance tells nothing of an alias before its first query.
        last_count, last_time = before.get(place, (0, 0))
        if count >= last_count and time >= last_time:
            queries += count - last_count
            microseconds += time - last_time
    return queries, microseconds
