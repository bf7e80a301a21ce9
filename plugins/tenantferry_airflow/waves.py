"""The tasks of ``nightly_wave`` and ``nightly_plan``, and what waits between steps."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.sdk import BaseHook, BaseOperator
from airflow.sdk.exceptions import AirflowNotFoundException
from airflow.triggers.base import BaseTrigger, TriggerEvent

from tenantferry.connections import ConnectionParams
from tenantferry.control.waves import Wave
from tenantferry.errors import PermanentError, TransientError
from tenantferry.fleet import Fleet
from tenantferry.waves.nightly import begin_wave, resume_wave, show_plan
from tenantferry.waves.reading import Databases
from tenantferry.waves.running import advance_wave
from tenantferry.waves.runs import Wait
from tenantferry.waves.showing import render_plan, write_markdown
from tenantferry_airflow.connections import to_params
from tenantferry_airflow.dag_runs import AirflowRuns, find_next_run
from tenantferry_airflow.fleet import load_declared_fleet

if TYPE_CHECKING:
    from airflow.sdk import Connection, Context

    from tenantferry.waves.planning import WavePlan

WAVE = "nightly_wave"
PLAN = "nightly_plan"
# Nobody tells a trigger that a run has ended; it asks this often.
POLL_SECONDS = 5.0


class PlanWaveOperator(BaseOperator):
    """
    Decide which tenants are moved tonight, and log why not the others.

    Starts nobody.

    :return: the plan, also as Markdown, pushed to XCom.
    """

    ui_color = "#dbeafe"

    def execute(self, context: Context) -> dict[str, Any]:
        """Make the plan, show it, and store it."""
        databases = read_databases(load_declared_fleet())
        until = _read_end(context, databases.fleet)
        made = begin_wave(databases, AirflowRuns(), run_id=context["run_id"], until=until)
        if isinstance(made, Wave):
            self.log.info("wave %s has begun: its plan stands", made.number)
            return {"wave": made.number, "picked": [member.tenant for member in made.members]}
        return _report(self, made)


class ShowPlanOperator(BaseOperator):
    """
    Show the plan of the next run of ``nightly_wave``, made for the time at which it begins.

    Stores nothing, starts nobody. Where ``nightly_wave`` has no schedule, the plan is for now.

    :return: the plan, also as Markdown, pushed to XCom.
    """

    ui_color = "#dbeafe"

    def execute(self, context: Context) -> dict[str, Any]:  # noqa: ARG002 - of Airflow
        """Make the plan, and show it."""
        databases = read_databases(load_declared_fleet())
        return _report(self, show_plan(databases, AirflowRuns(), at=find_next_run(WAVE)))


class RunWaveOperator(BaseOperator):
    """
    Start what was picked, within the limits, until the wave is over or has stopped itself.

    Deferred while it waits: it occupies no worker slot. Never ends a tenant's run.

    :return: what became of the tenants, pushed to XCom.
    """

    ui_color = "#a7f3d0"

    def execute(self, context: Context) -> dict[str, Any]:
        """Begin, or go on where an earlier try stopped, or where a person wants it to go on."""
        databases = read_databases(load_declared_fleet())
        resume_wave(databases, run_id=context["run_id"])
        return self._take_step(databases, context)

    def resume(
        self,
        context: Context,
        event: dict[str, Any],  # noqa: ARG002 - every step looks for itself
    ) -> dict[str, Any]:
        """Take the next step: something has changed, or time has passed."""
        return self._take_step(read_databases(load_declared_fleet()), context)

    def _take_step(self, databases: Databases, context: Context) -> dict[str, Any]:
        found = advance_wave(databases, AirflowRuns(), run_id=context["run_id"])
        if isinstance(found, Wait):
            self._wait(found)
        self.log.info("the wave is over: %s", found.tell())
        # Through JSON: XCom would otherwise wrap a tuple and show it as text.
        summary: dict[str, Any] = json.loads(json.dumps(asdict(found)))
        return summary

    def _wait(self, wait: Wait) -> NoReturn:
        in_flight = ", ".join(f"{w.tenant} ({w.look.standing})" for w in wait.watched)
        self.log.info("waiting; in flight: %s", in_flight or "nobody")
        until = None if wait.seconds is None else time.time() + wait.seconds
        watched = [[w.tenant, w.run_id, _tell(w.look)] for w in wait.watched]
        self.defer(
            trigger=WaveTrigger(watched=watched, until=until), method_name=self.resume.__name__
        )


class WaveTrigger(BaseTrigger):
    """
    Wait until one of some runs stands differently, or until a time.

    :param watched: of each run: tenant, run id, and how it stood.
    :param until: seconds since the epoch; ``None``: for as long as it takes.
    """

    def __init__(self, *, watched: list[list[Any]], until: float | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow gives it no types
        self.watched = watched
        self.until = until

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what is stored of it in Airflow's database: names and numbers."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {"watched": self.watched, "until": self.until},
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Tell once what ended the waiting."""
        reason = await self._wait()
        self.log.info("the wave takes its next step: %s", reason)
        yield TriggerEvent({"reason": reason})  # type: ignore[no-untyped-call]  # untyped

    async def _wait(self) -> str:
        while self.until is None or time.time() < self.until:
            for tenant, run_id, known in self.watched:
                try:
                    look = await asyncio.to_thread(AirflowRuns().look, tenant, run_id)
                except TransientError as error:
                    self.log.warning("run %s cannot be seen now: %s", run_id, error)
                    continue
                if look is None or _tell(look) != known:
                    return f"run {run_id} stands differently"
            left = POLL_SECONDS if self.until is None else self.until - time.time()
            await asyncio.sleep(max(0.0, min(POLL_SECONDS, left)))
        return "its time has come"


def read_databases(fleet: Fleet) -> Databases:
    """
    Resolve the connections of a whole fleet, in a task.

    :raises PermanentError: if that of the target is not usable. A source whose connection is not
        costs only its own tenants their turn.
    """
    found = {
        each.source.conn_id: _find_source(each.source.conn_id) for each in fleet.tenants.values()
    }
    sources: dict[str, ConnectionParams | str] = {}
    for key, tenant in fleet.tenants.items():
        connection = found[tenant.source.conn_id]
        if isinstance(connection, str):
            sources[key] = connection
            continue
        try:
            sources[key] = to_params(connection, database=tenant.source.database)
        except PermanentError as error:
            sources[key] = error.message
    target = to_params(BaseHook.get_connection(fleet.target.conn_id))
    return Databases(fleet=fleet, target=target, sources=sources)


def _find_source(conn_id: str) -> Connection | str:
    try:
        return BaseHook.get_connection(conn_id)
    except AirflowNotFoundException:
        return f'connection "{conn_id}" does not exist'


def _report(operator: BaseOperator, plan: WavePlan) -> dict[str, Any]:
    operator.log.info("tonight's plan:\n%s", render_plan(plan))
    groups = (plan.picked, plan.waiting, plan.under_way, plan.held_back, plan.refused)
    return {
        "sentence": plan.sentence,
        "picked": [line.tenant for line in plan.picked],
        "reasons": {line.tenant: line.reason for group in groups for line in group},
        "markdown": write_markdown(plan),
    }


def _read_end(context: Context, fleet: Fleet) -> datetime:
    """Return when the wave starts nobody any more: counted from its time, also if it is late."""
    run_after: datetime = context["dag_run"].run_after
    return run_after + timedelta(hours=fleet.waves.hours)


def _tell(look: Any) -> dict[str, Any]:
    # As it comes back from Airflow's database.
    told: dict[str, Any] = json.loads(json.dumps(asdict(look)))
    return told
