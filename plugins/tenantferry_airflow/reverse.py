"""The tasks of ``reverse_stream``: wait until it is needed, then run it for all live tenants."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import psycopg2
from airflow.sdk import BaseHook, BaseOperator
from airflow.sdk.exceptions import AirflowNotFoundException
from airflow.triggers.base import BaseTrigger, TriggerEvent

from tenantferry.errors import PermanentError, TenantferryError, TransientError
from tenantferry.lsn import format_lsn
from tenantferry.reverse.running import LaneSource, run_reverse
from tenantferry.reverse.slot import is_reverse_slot_recorded
from tenantferry_airflow.connections import to_params
from tenantferry_airflow.fleet import load_declared_fleet, require_tenant

if TYPE_CHECKING:
    from airflow.sdk import Connection, Context

# A first cutover is weeks away or a retry of it seconds: a session that listens all the time would
# be one more to look after, and a tenant can go back as soon as this has found out.
POLL_SECONDS = 10.0


class ReverseSlotTrigger(BaseTrigger):
    """
    Wait until a cutover has created the reverse slot.

    A target that cannot be asked is asked again: nothing can have been missed.
    """

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what is stored of it in Airflow's database: its name."""
        return f"{type(self).__module__}.{type(self).__qualname__}", {}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Tell once that the slot is there."""
        while not await self._is_there():
            await asyncio.sleep(POLL_SECONDS)
        yield TriggerEvent({"status": "there"})  # type: ignore[no-untyped-call]  # Airflow gives it no types

    async def _is_there(self) -> bool:
        try:
            fleet = await asyncio.to_thread(load_declared_fleet)
            target = to_params(await BaseHook.aget_connection(fleet.target.conn_id))
            return await asyncio.to_thread(is_reverse_slot_recorded, target)
        except (TenantferryError, psycopg2.Error, AirflowNotFoundException) as error:
            self.log.warning("the target cannot be asked: %s", error)
            return False


class WaitForReverseSlotOperator(BaseOperator):
    """
    Wait until there is a reverse slot to read.

    Deferred from the start: it occupies no worker slot.
    """

    ui_color = "#fde68a"

    def execute(self, context: Context) -> None:  # noqa: ARG002  # Airflow's signature
        """Hand over to the triggerer at once."""
        trigger = ReverseSlotTrigger()  # type: ignore[no-untyped-call]  # Airflow gives it no types
        self.defer(trigger=trigger, method_name=self.finish.__name__)

    def finish(self, context: Context, event: dict[str, Any]) -> None:  # noqa: ARG002  # the same
        """Go on."""
        self.log.info("the target has a reverse slot")


class ReverseStreamOperator(BaseOperator):
    """
    Apply what live tenants write in the target to their sources, for all of them.

    Occupies one worker slot for as long as tenants can go back. Cannot defer: it moves the rows
    itself. Does not decide whose grace ends.

    :return: numbers of this run, pushed to XCom; only where the slot was given up.
    """

    ui_color = "#a7f3d0"
    # Made in execute(): a lock cannot be copied, and Airflow copies operators.
    _stop: threading.Event | None = None

    def execute(self, context: Context) -> dict[str, Any]:  # noqa: ARG002  # Airflow's signature
        """Run the streams until nobody needs them."""
        fleet = load_declared_fleet()
        self._stop = threading.Event()
        result = run_reverse(
            to_params(_get_connection(fleet.target.conn_id)),
            find_source,
            stop=self._stop,
            wal_budget_bytes=fleet.grace.wal_budget_bytes,
        )
        self.log.info("reverse streams ended: %s", result.reason)
        if self._stop.is_set():
            # A success here would leave tenants that are live without a way back.
            raise TransientError(
                "the reverse streams were told to end",
                hint="They go on from where each source is when the task is run again.",
            )
        return {
            "changes": result.changes,
            "read_to": format_lsn(result.read_to),
            "reason": result.reason,
        }

    def on_kill(self) -> None:
        """
        Let every stream end at a commit of its source.

        Called in a signal handler when the task is cleared, marked or shut down; Airflow kills the
        process five seconds later, which loses nothing either.
        """
        if self._stop is not None:
            self._stop.set()


def find_source(tenant: str) -> LaneSource:
    """
    Look a tenant's source up, as the fleet is declared now.

    :raises PermanentError: if the tenant is not declared or its connection is not usable.
    """
    declared = require_tenant(load_declared_fleet(), tenant)
    connection = _get_connection(declared.source.conn_id)
    return LaneSource(declared, to_params(connection, database=declared.source.database))


def _get_connection(conn_id: str) -> Connection:
    try:
        return BaseHook.get_connection(conn_id)
    except AirflowNotFoundException:
        raise PermanentError(
            f'Airflow connection "{conn_id}" does not exist', hint="Create it."
        ) from None
