"""What the demo and the tests ask of Airflow's REST API."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx

from tenantferry.errors import PermanentError, TransientError


class AirflowApi:
    """
    A client of one Airflow, logged in by password.

    Every method raises `PermanentError` if Airflow refuses the request.

    :param url: without a path, e.g. ``http://127.0.0.1:8080``.
    """

    def __init__(self, url: str, *, username: str, password: str) -> None:
        answer = httpx.post(
            f"{url}/auth/token", json={"username": username, "password": password}, timeout=30
        )
        token = _read(answer)["access_token"]
        self._client = httpx.Client(
            base_url=f"{url}/api/v2",
            headers={"Authorization": f"Bearer {token}"},
            timeout=30,
        )

    def dag_ids(self) -> list[str]:
        """Return the Dags that Airflow knows and that are not stale."""
        answer = self._call("GET", "/dags", params={"limit": 100})
        return sorted(dag["dag_id"] for dag in answer["dags"])

    def wait_for_dag(self, dag_id: str, *, timeout_seconds: float = 60.0) -> None:
        """
        Wait until the dag processor has parsed a Dag.

        :raises TransientError: if it has not in time.
        """
        deadline = time.monotonic() + timeout_seconds
        while dag_id not in self.dag_ids():
            if time.monotonic() > deadline:
                errors = "; ".join(self.import_errors().values())
                raise TransientError(
                    f'Dag "{dag_id}" was not parsed in time',
                    detail=f"Import errors: {errors or 'none'}",
                )
            time.sleep(0.3)  # the API can only be asked

    def unpause(self, dag_id: str) -> None:
        """Let a Dag run."""
        self._call("PATCH", f"/dags/{dag_id}", json={"is_paused": False})

    def trigger(self, dag_id: str) -> str:
        """Start a run and return its id."""
        answer = self._call("POST", f"/dags/{dag_id}/dagRuns", json={"logical_date": None})
        run_id: str = answer["dag_run_id"]
        return run_id

    def run_state(self, dag_id: str, run_id: str) -> str:
        """Return ``queued``, ``running``, ``success`` or ``failed``."""
        state: str = self._call("GET", f"/dags/{dag_id}/dagRuns/{run_id}")["state"]
        return state

    def tasks(self, dag_id: str, run_id: str) -> dict[str, dict[str, Any]]:
        """Return all that Airflow says of the tasks of a run, by task id."""
        answer = self._call("GET", f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances")
        return {task["task_id"]: task for task in answer["task_instances"]}

    def task_states(self, dag_id: str, run_id: str) -> dict[str, str | None]:
        """Return task id to state; ``None`` for a task that waits for others."""
        return {name: task["state"] for name, task in self.tasks(dag_id, run_id).items()}

    def clear(self, dag_id: str, run_id: str, task_ids: list[str]) -> None:
        """Clear these tasks and no others, in whatever state they are."""
        self._call(
            "POST",
            f"/dags/{dag_id}/clearTaskInstances",
            json={
                "dry_run": False,
                "only_failed": False,
                "dag_run_id": run_id,
                "task_ids": task_ids,
            },
        )

    def respond(self, dag_id: str, run_id: str, task_id: str, *, option: str) -> None:
        """Answer a task that asks a person, e.g. ``Approve`` or ``Reject``."""
        self._call(
            "PATCH",
            f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/-1/hitlDetails",
            json={"chosen_options": [option]},
        )

    def import_errors(self) -> dict[str, str]:
        """Return file to import error."""
        answer = self._call("GET", "/importErrors")
        return {error["filename"]: error["stack_trace"] for error in answer["import_errors"]}

    def xcom(self, dag_id: str, run_id: str, task_id: str) -> Any:
        """Return what a task returned."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries/return_value"
        value = self._call("GET", path, params={"deserialize": True})["value"]
        return json.loads(value) if isinstance(value, str) else value

    def pools(self) -> dict[str, int]:
        """Return pool to slots."""
        return {pool["name"]: pool["slots"] for pool in self._call("GET", "/pools")["pools"]}

    def task_log(self, dag_id: str, run_id: str, task_id: str) -> str:
        """Return the log of all tries of a task, one event per line."""
        base = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}"
        last_try = self._call("GET", base)["try_number"]
        lines: list[str] = []
        for number in range(1, last_try + 1):
            answer = self._call("GET", f"{base}/logs/{number}", params={"full_content": True})
            lines.append(f"--- try {number}")
            lines.extend(_tell(event) for event in answer["content"])
        return "\n".join(lines)

    def _call(self, method: str, path: str, **arguments: Any) -> Any:
        return _read(self._client.request(method, path, **arguments))


def _read(answer: httpx.Response) -> Any:
    if answer.is_error:
        raise PermanentError(
            f"Airflow refuses {answer.request.method} {answer.request.url.path}",
            detail=f"Status {answer.status_code}: {answer.text[:500]}",
        )
    return answer.json()


def _tell(event: str | dict[str, Any]) -> str:
    if isinstance(event, str):
        return event
    rest = {k: v for k, v in event.items() if k not in ("timestamp", "level", "event", "logger")}
    details = f" {json.dumps(rest)}" if rest else ""
    return f"{event.get('timestamp')} {event.get('level')} {event['event']}{details}"
