"""The runs of Dags, through Airflow's execution API: from a task or a trigger."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from http import HTTPStatus

from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.comms import ErrorResponse, TriggerDagRun
from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

from tenantferry.control.waves import Standing
from tenantferry.errors import TransientError
from tenantferry.fleet.declaration import name_dag
from tenantferry.waves.standings import RunLook, judge_run

_OPEN_STATES = ["queued", "running"]
_ENDED_TASK_STATES = frozenset({"success", "failed", "upstream_failed", "skipped", "removed"})
# A Dag that is not there, or that Airflow cannot start as it is.
_REFUSED = (HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND)


class AirflowRuns:
    """What a wave asks of Airflow. A trigger may look, in a thread; only a task may start."""

    def look(self, tenant: str, run_id: str) -> RunLook | None:
        """
        Return how a run stands; ``None`` if there is no such run.

        :raises TransientError: if Airflow does not tell.
        """
        dag_id = name_dag(tenant)
        try:
            state = RuntimeTaskInstance.get_dagrun_state(dag_id, run_id)
            states = RuntimeTaskInstance.get_task_states(dag_id, run_ids=[run_id])
        except AirflowRuntimeError as error:
            if _status(error) == HTTPStatus.NOT_FOUND:
                return None
            raise _no_answer(error) from None
        return judge_run(state, states.get(run_id, {}))

    def find_open(self, tenant: str) -> RunLook | None:
        """
        Return how the open run of a tenant's Dag stands; ``None`` if there is none.

        :raises TransientError: if Airflow does not tell.
        """
        dag_id = name_dag(tenant)
        try:
            if not RuntimeTaskInstance.get_dr_count(dag_id, states=_OPEN_STATES):
                return None
            runs = RuntimeTaskInstance.get_task_states(dag_id)
        except AirflowRuntimeError as error:
            raise _no_answer(error) from None
        # Which run is open, nobody tells: it is one with a task that has not ended.
        looks = [judge_run("running", tasks) for tasks in runs.values() if _goes_on(tasks)]
        is_running = any(look.standing is Standing.RUNNING for look in looks)
        return looks[0] if looks and not is_running else RunLook(Standing.RUNNING)

    def start(self, tenant: str, run_id: str, *, note: str) -> str:
        """
        Start a run, unless there is one of this id; return why it cannot be, or nothing.

        :raises TransientError: if Airflow does not answer.
        """
        dag_id = name_dag(tenant)
        try:
            if RuntimeTaskInstance.get_dag(dag_id).is_paused:
                return f'Dag "{dag_id}" is paused'
            answer = task_runner.SUPERVISOR_COMMS.send(
                TriggerDagRun(dag_id=dag_id, run_id=run_id, note=note)
            )
        except AirflowRuntimeError as error:
            if _status(error) in _REFUSED:
                return f'Airflow cannot start Dag "{dag_id}": {_tell(error)}'
            raise _no_answer(error) from None
        if isinstance(answer, ErrorResponse) and answer.error != ErrorType.DAGRUN_ALREADY_EXISTS:
            return f'Airflow cannot start Dag "{dag_id}": {answer.error.value}'
        return ""


def find_next_run(dag_id: str) -> datetime | None:
    """
    Return when a Dag runs next by its schedule, a time that is over if it is late; ``None``: never.

    :raises TransientError: if Airflow does not tell.
    """
    try:
        return RuntimeTaskInstance.get_dag(dag_id).next_dagrun
    except AirflowRuntimeError as error:
        raise _no_answer(error) from None


def _goes_on(tasks: Mapping[str, str | None]) -> bool:
    return not _ENDED_TASK_STATES.issuperset(tasks.values())


def _status(error: AirflowRuntimeError) -> int | None:
    status = (error.error.detail or {}).get("status_code")
    return status if isinstance(status, int) else None


def _tell(error: AirflowRuntimeError) -> str:
    """Return what the API says of itself, from the depth where it says it."""
    found: object = error.error.detail
    while isinstance(found, dict):
        found = found.get("detail") or found.get("message")
    return str(found)


def _no_answer(error: AirflowRuntimeError) -> TransientError:
    return TransientError(
        "Airflow did not answer",
        detail=_tell(error),
        hint="Check that its API server runs.",
    )
