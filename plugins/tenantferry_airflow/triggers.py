"""What waits in the triggerer. Nothing here blocks its event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import psycopg2
from airflow.triggers.base import BaseTrigger, TriggerEvent

from tenantferry.errors import PermanentError, TransientError
from tenantferry.moves.lag import measure_lag, read_stream_failure
from tenantferry_airflow.assembly import aread_move
from tenantferry_airflow.fleet import load_declared_fleet, require_tenant

if TYPE_CHECKING:
    from tenantferry.moves.move import Move

# Markers are this far apart, so that several in a row say more than one.
SAMPLE_INTERVAL_SECONDS = 1.0

# asyncio's own executor has about as many threads as there are cores, and a round trip to a
# stream that is down holds one for half a minute: no other trigger should wait for that.
_MEASURERS = ThreadPoolExecutor(max_workers=32, thread_name_prefix="tenantferry-lag")

# The lag is then unknown, which is not zero. The stream is retried by itself: we go on asking.
_UNKNOWN = (TransientError, psycopg2.OperationalError, psycopg2.InterfaceError)


class LagTrigger(BaseTrigger):
    """
    Measure a tenant's lag until it is low several times in a row.

    It starts over when the triggerer does: samples in a row are the condition.

    :param tenant: key of a tenant of the fleet file.
    :param deadline: when to give up, in seconds since the epoch.
    """

    def __init__(self, *, tenant: str, deadline: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow gives it no types
        self.tenant = tenant
        self.deadline = deadline

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what is stored of it in Airflow's database: a name and a number."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {"tenant": self.tenant, "deadline": self.deadline},
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Tell once how the waiting ended."""
        try:
            payload = await self._wait()
        except PermanentError as error:
            message = f'the lag of tenant "{self.tenant}" cannot be measured'
            payload = {"status": "failed", "message": message, "detail": str(error)}
        yield TriggerEvent(payload)  # type: ignore[no-untyped-call]  # Airflow gives it no types

    async def _wait(self) -> dict[str, Any]:
        fleet = await asyncio.to_thread(load_declared_fleet)
        tenant = require_tenant(fleet, self.tenant)
        move = await aread_move(fleet, tenant, run_id=None)
        samples: list[float] = []
        problem = "No marker has come back yet."
        while len(samples) < tenant.lag_samples:
            if time.time() >= self.deadline:
                message = f'the stream of tenant "{self.tenant}" did not keep up in time'
                return {"status": "timeout", "message": message, "detail": problem}
            try:
                seconds = await self._measure(move)
            except _UNKNOWN as error:
                problem = await self._explain(move, error)
                samples.clear()
                self.log.warning("lag is unknown: %s", problem)
            else:
                is_low = seconds < tenant.lag_threshold_seconds
                samples = [*samples, round(seconds, 4)] if is_low else []
                problem = f"The last round trip of a marker took {seconds:.3f} s."
                self.log.info(
                    "marker round trip %.3f s, threshold %.3f s, %s of %s in a row",
                    seconds,
                    tenant.lag_threshold_seconds,
                    len(samples),
                    tenant.lag_samples,
                )
            if len(samples) < tenant.lag_samples:
                await asyncio.sleep(SAMPLE_INTERVAL_SECONDS)
        return {"status": "open", "samples": samples}

    async def _measure(self, move: Move) -> float:
        return await asyncio.get_running_loop().run_in_executor(_MEASURERS, measure_lag, move)

    async def _explain(self, move: Move, error: Exception) -> str:
        """Return why the lag is unknown, with what the stream itself says of its end."""
        problem = str(error)
        failure = await asyncio.get_running_loop().run_in_executor(
            _MEASURERS, read_stream_failure, move
        )
        # A round trip that took too long says it already.
        return f"{problem}\n{failure}" if failure and failure not in problem else problem
