"""The client of Airflow's REST API against a server that does not always answer."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tenantferry.errors import PermanentError, TransientError
from tenantferry.local.accounts import free_port
from tenantferry.local.airflow_api import AirflowApi


class Flaky(ThreadingHTTPServer):
    """
    A server of a few of Airflow's paths, that hangs up on its clients.

    :ivar before: methods of requests that it hangs up on before it acts.
    :ivar after: methods of requests that it acts on, and then hangs up.
    :ivar runs: ids of the runs that were made.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.before: list[str] = []
        self.after: list[str] = []
        self.seen: list[str] = []
        self.runs: list[str] = []
        self.cleared = 0
        self.bodies: list[dict[str, Any]] = []
        self.dags = [f"migrate_{number:03}" for number in range(250)]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def act(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        split = urlsplit(path)
        query = {name: int(values[0]) for name, values in parse_qs(split.query).items()}
        if split.path == "/auth/token":
            return 201, {"access_token": "t"}
        if split.path.endswith("/dagRuns"):
            if body["dag_run_id"] in self.runs:
                return 409, {"detail": "it is there"}
            self.runs.append(body["dag_run_id"])
            return 200, body
        is_clear = split.path.endswith("/clearTaskInstances")
        if is_clear or method == "PATCH":
            self.cleared += is_clear
            self.bodies.append(body)
            return 200, {}
        if split.path == "/api/v2/dags" and method == "GET":
            page = self.dags[query["offset"] : query["offset"] + min(query["limit"], 100)]
            return 200, {"dags": [{"dag_id": d} for d in page], "total_entries": len(self.dags)}
        return 404, {"detail": "no such path"}


class _Handler(BaseHTTPRequestHandler):
    server: Flaky

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PATCH(self) -> None:
        self._answer("PATCH")

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _answer(self, method: str) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else {}
        self.server.seen.append(method)
        if method in self.server.before:
            self.server.before.remove(method)
            return  # closes the connection
        status, answer = self.server.act(method, self.path, body)
        if method in self.server.after:
            self.server.after.remove(method)
            return
        encoded = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(encoded)))
        self.end_headers()
        self.wfile.write(encoded)


@pytest.fixture
def server() -> Iterator[Flaky]:
    with Flaky() as flaky:
        thread = threading.Thread(target=flaky.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield flaky
        flaky.shutdown()
        thread.join()


@pytest.fixture
def api(server: Flaky) -> AirflowApi:
    return AirflowApi(server.url, username="u", password="p", retry_seconds=3)


def test_a_question_that_got_no_answer_is_asked_again(server: Flaky, api: AirflowApi) -> None:
    server.before = ["GET", "GET"]

    assert "migrate_000" in api.dag_ids()


def test_dag_ids_are_those_of_all_pages(server: Flaky, api: AirflowApi) -> None:
    assert api.dag_ids() == server.dags
    assert server.seen.count("GET") == 3


def test_dag_ids_are_none_where_there_are_none(server: Flaky, api: AirflowApi) -> None:
    server.dags = []

    assert api.dag_ids() == []


@pytest.mark.parametrize("loses", ["before", "after"])
def test_a_trigger_whose_answer_was_lost_makes_one_run(
    server: Flaky, api: AirflowApi, loses: str
) -> None:
    setattr(server, loses, ["POST"])

    run_id = api.trigger("migrate_000")

    assert server.runs == [run_id]
    assert api.trigger("migrate_000") != run_id


@pytest.mark.parametrize(("loses", "cleared"), [("before", 0), ("after", 1)])
def test_a_clear_whose_answer_was_lost_is_not_sent_again(
    server: Flaky, api: AirflowApi, loses: str, cleared: int
) -> None:
    setattr(server, loses, ["POST"])

    with pytest.raises(TransientError, match="did not answer POST"):
        api.clear("migrate_000", "run", ["cutover"])

    assert server.cleared == cleared


@pytest.mark.parametrize("downstream", [False, True])
def test_clear_takes_those_after_it_along_only_when_asked(
    server: Flaky, api: AirflowApi, downstream: bool
) -> None:
    api.clear("migrate_000", "run", ["backfill"], downstream=downstream)

    (body,) = server.bodies
    assert body["task_ids"] == ["backfill"]
    assert body["include_downstream"] is downstream


@pytest.mark.parametrize("loses", ["before", "after"])
def test_a_mark_whose_answer_was_lost_is_made_again(
    server: Flaky, api: AirflowApi, loses: str
) -> None:
    setattr(server, loses, ["PATCH"])

    api.mark("migrate_000", "run", "stream_cdc", state="failed")

    assert server.bodies[-1] == {"new_state": "failed"}


def test_a_refusal_is_not_repeated(server: Flaky, api: AirflowApi) -> None:
    server.seen.clear()

    with pytest.raises(PermanentError, match="Status 404"):
        api.run_state("migrate_000", "run")

    assert server.seen == ["GET"]


def test_an_airflow_that_is_gone_is_given_up_in_time() -> None:
    with pytest.raises(TransientError, match="ConnectError"):
        AirflowApi(f"http://127.0.0.1:{free_port()}", username="u", password="p", retry_seconds=1)
