"""What the demo and the tests ask of Airflow's REST API."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import httpx
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_exponential

from tenantferry.errors import PermanentError, TransientError

# On a loaded machine Airflow takes its time; it is still there.
_TIMEOUT_SECONDS = 60.0
_RETRY_SECONDS = 180.0
# Airflow gives no more at once, whatever it is asked for.
_PAGE_SIZE = 100
_CONFLICT = 409
# The request never left, so it may be sent again whatever it asks for.
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


class AirflowApi:
    """
    A client of one Airflow, logged in by password.

    Every method raises `PermanentError` if Airflow refuses the request, and `TransientError` if it
    does not answer. What may be asked twice is asked again for some minutes before that.

    :param url: without a path, e.g. ``http://127.0.0.1:8080``.
    :param retry_seconds: how long to go on asking.
    """

    def __init__(
        self, url: str, *, username: str, password: str, retry_seconds: float = _RETRY_SECONDS
    ) -> None:
        self._retry_seconds = retry_seconds
        self._client = httpx.Client(timeout=_TIMEOUT_SECONDS)
        answer = self._send(
            "POST",
            f"{url}/auth/token",
            is_repeatable=True,
            json={"username": username, "password": password},
        )
        token = _read(answer)["access_token"]
        self._client = httpx.Client(
            base_url=f"{url}/api/v2",
            headers={"Authorization": f"Bearer {token}"},
            timeout=_TIMEOUT_SECONDS,
        )

    def dag_ids(self) -> list[str]:
        """Return the Dags that Airflow knows and that are not stale."""
        return sorted(dag["dag_id"] for dag in self._list("/dags", "dags"))

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
        self._call("PATCH", f"/dags/{dag_id}", is_repeatable=True, json={"is_paused": False})

    def trigger(self, dag_id: str, *, conf: Mapping[str, Any] | None = None) -> str:
        """
        Start a run and return its id.

        :param conf: values of the Dag's parameters, in place of their defaults.
        """
        # The id is ours, so that a request whose answer was lost may be sent again: Airflow then
        # refuses the second run of that id, and there is one.
        run_id = f"manual__{datetime.now(UTC).isoformat()}_{secrets.token_hex(4)}"
        answer = self._send(
            "POST",
            f"/dags/{dag_id}/dagRuns",
            is_repeatable=True,
            json={"logical_date": None, "dag_run_id": run_id, "conf": dict(conf or {})},
        )
        if answer.status_code != _CONFLICT:
            _read(answer)
        return run_id

    def run_state(self, dag_id: str, run_id: str) -> str:
        """Return ``queued``, ``running``, ``success`` or ``failed``."""
        state: str = self._call("GET", f"/dags/{dag_id}/dagRuns/{run_id}")["state"]
        return state

    def tasks(self, dag_id: str, run_id: str) -> dict[str, dict[str, Any]]:
        """Return all that Airflow says of the tasks of a run, by task id."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances"
        return {task["task_id"]: task for task in self._list(path, "task_instances")}

    def task_states(self, dag_id: str, run_id: str) -> dict[str, str | None]:
        """Return task id to state; ``None`` for a task that waits for others."""
        return {name: task["state"] for name, task in self.tasks(dag_id, run_id).items()}

    def mapped_tasks(self, dag_id: str, run_id: str) -> dict[tuple[str, int], dict[str, Any]]:
        """
        Return all that Airflow says of the tasks of a run, by task id and map index.

        The index of a task that is not mapped is -1.
        """
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances"
        tasks = self._list(path, "task_instances")
        return {(task["task_id"], task["map_index"]): task for task in tasks}

    def clear(
        self, dag_id: str, run_id: str, task_ids: list[str], *, downstream: bool = False
    ) -> None:
        """
        Clear these tasks, in whatever state they are.

        :param downstream: and those after them; else no others.
        """
        self._call(
            "POST",
            f"/dags/{dag_id}/clearTaskInstances",
            json={
                "dry_run": False,
                "only_failed": False,
                "dag_run_id": run_id,
                "task_ids": task_ids,
                "include_downstream": downstream,
            },
        )

    def mark(self, dag_id: str, run_id: str, task_id: str, *, state: str) -> None:
        """
        Set a task to ``success`` or ``failed``, in whatever state it is; one that runs is ended.
        """
        self._call(
            "PATCH",
            f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}",
            is_repeatable=True,
            json={"new_state": state},
        )

    def mark_run(self, dag_id: str, run_id: str, *, state: str) -> None:
        """Set a run to ``success`` or ``failed``; tasks that run are ended."""
        self._call(
            "PATCH",
            f"/dags/{dag_id}/dagRuns/{run_id}",
            is_repeatable=True,
            json={"state": state},
        )

    def respond(
        self, dag_id: str, run_id: str, task_id: str, *, option: str, map_index: int = -1
    ) -> None:
        """Answer a task that asks a person, e.g. ``Approve`` or ``Reject``."""
        self._call(
            "PATCH",
            f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/{map_index}/hitlDetails",
            json={"chosen_options": [option]},
        )

    def import_errors(self) -> dict[str, str]:
        """Return file to import error."""
        errors = self._list("/importErrors", "import_errors")
        return {error["filename"]: error["stack_trace"] for error in errors}

    def xcom(self, dag_id: str, run_id: str, task_id: str) -> Any:
        """Return what a task returned."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries/return_value"
        value = self._call("GET", path, params={"deserialize": True})["value"]
        return json.loads(value) if isinstance(value, str) else value

    def pools(self) -> dict[str, int]:
        """Return pool to slots."""
        return {pool["name"]: pool["slots"] for pool in self._list("/pools", "pools")}

    def resize_pool(self, name: str, slots: int) -> None:
        """Give a pool as many slots."""
        self._call(
            "PATCH",
            f"/pools/{name}",
            is_repeatable=True,
            # It wants all of a pool.
            json={"pool": name, "slots": slots, "include_deferred": False},
        )

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

    def _list(self, path: str, field: str) -> Iterator[dict[str, Any]]:
        """Yield every entry of a collection, page by page."""
        offset, total = 0, 1
        while offset < total:
            answer = self._call("GET", path, params={"limit": _PAGE_SIZE, "offset": offset})
            yield from answer[field]
            total = answer["total_entries"] if answer[field] else 0
            offset += len(answer[field])

    def _call(
        self, method: str, path: str, *, is_repeatable: bool = False, **arguments: Any
    ) -> Any:
        repeatable = is_repeatable or method == "GET"
        return _read(self._send(method, path, is_repeatable=repeatable, **arguments))

    def _send(
        self, method: str, path: str, *, is_repeatable: bool, **arguments: Any
    ) -> httpx.Response:
        repeated = httpx.TransportError if is_repeatable else _NOT_SENT
        attempts = Retrying(
            retry=retry_if_exception_type(repeated),
            wait=wait_exponential(multiplier=0.2, max=5),
            stop=stop_after_delay(self._retry_seconds),
            reraise=True,
        )
        try:
            return attempts(self._client.request, method, path, **arguments)
        except httpx.TransportError as error:
            raise TransientError(
                f"Airflow did not answer {method} {path}",
                detail=f"{type(error).__name__}: {error}",
            ) from None


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
