"""Trigger the moves of a demo in Airflow, and watch them to their end."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console

from tenantferry.connections import ConnectionParams, open_connection
from tenantferry.errors import PermanentError
from tenantferry.local.airflow_api import AirflowApi
from tenantferry.local.clients import ClientProcess
from tenantferry.local.progress import (
    Progress,
    View,
    choose_display,
    name_running,
    read_progress,
)

_REFRESH_SECONDS = 1.0
_LOG_LINES = 40
# A stream goes on when a later step has failed, so such a run never ends by itself.
_FAILED_TASK_STATES = frozenset({"failed", "upstream_failed"})


@dataclass(slots=True)
class Run:
    """
    One run of a tenant's Dag.

    :ivar state: ``running``, ``success`` or ``failed``.
    :ivar tasks: task id to state.
    """

    tenant: str
    dag_id: str
    run_id: str
    state: str = "running"
    tasks: dict[str, str | None] = field(default_factory=dict)

    def refresh(self, api: AirflowApi) -> None:
        """Ask Airflow, unless it is over."""
        if self.is_over:
            return
        state = api.run_state(self.dag_id, self.run_id)
        self.tasks = api.task_states(self.dag_id, self.run_id)
        if state == "success":
            self.state = state
        elif state == "failed" or _FAILED_TASK_STATES & set(self.tasks.values()):
            self.state = "failed"

    @property
    def is_over(self) -> bool:
        """Tell whether nothing more will come of it."""
        return self.state != "running"

    def tell_failure(self, api: AirflowApi) -> str:
        """Return the end of the log of each task that failed."""
        parts = []
        for task, state in self.tasks.items():
            if state == "failed":
                lines = api.task_log(self.dag_id, self.run_id, task).splitlines()[-_LOG_LINES:]
                parts.append("\n".join([f"{self.dag_id}, task {task}, end of its log:", *lines]))
        return "\n\n".join(parts) or f"{self.dag_id}: the run failed, and no task says why"


def trigger_runs(
    api: AirflowApi,
    dag_ids: Mapping[str, str],
    *,
    conf: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Run]:
    """
    Trigger a Dag for every tenant.

    :param dag_ids: by tenant.
    :param conf: the Dag's parameters, by tenant.
    :raises PermanentError: if a Dag file does not import.
    """
    for dag_id in set(dag_ids.values()):
        api.wait_for_dag(dag_id)
    if import_errors := api.import_errors():
        raise PermanentError(
            "Dag files do not import",
            detail="\n".join(f"{file}:\n{text}" for file, text in import_errors.items()),
        )
    for dag_id in set(dag_ids.values()):
        api.unpause(dag_id)
    told = conf or {}
    return [
        Run(tenant, dag_id, api.trigger(dag_id, conf=told.get(tenant)))
        for tenant, dag_id in dag_ids.items()
    ]


def wait_for_tasks(
    runs: list[Run],
    api: AirflowApi,
    tasks: Collection[str],
    *,
    clients: Mapping[str, ClientProcess],
) -> None:
    """
    Wait until some tasks of every run have succeeded, or the run has failed.

    The run's state then says which, though other tasks of it may go on.

    :raises PermanentError: if a client ends meanwhile.
    """
    while not all(run.is_over for run in runs):
        for run in runs:
            clients[run.tenant].check()
            run.refresh(api)
            if not run.is_over and all(run.tasks.get(task) == "success" for task in tasks):
                run.state = "success"
        time.sleep(_REFRESH_SECONDS)  # Airflow can only be asked


def watch_runs(
    runs: list[Run],
    api: AirflowApi,
    *,
    target_params: ConnectionParams,
    clients: Mapping[str, ClientProcess],
    console: Console,
) -> None:
    """
    Show the progress until every run is over, well or not.

    :raises PermanentError: if a client ends meanwhile.
    """
    with (
        closing(open_connection(target_params, purpose="demo", autocommit=True)) as target,
        choose_display(console) as display,
    ):
        while True:
            found = read_progress(target)
            for run in runs:
                clients[run.tenant].check()
                run.refresh(api)
            display.show([_view(run, found, clients[run.tenant]) for run in runs])
            if all(run.is_over for run in runs):
                return
            time.sleep(_REFRESH_SECONDS)  # a screen, for people


def _view(run: Run, found: Mapping[str, Progress], client: ClientProcess) -> View:
    summary = client.summary()
    return View(
        progress=found.get(run.tenant, Progress(run.tenant)),
        task=run.state if run.is_over else name_running(run.tasks),
        requests=summary.requests if summary else 0,
        failed=summary.failed if summary else 0,
        is_over=run.is_over,
    )
