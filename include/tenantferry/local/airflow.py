"""Run a whole Airflow on this machine: its four components, as docker-compose.yaml runs them."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self
from urllib.parse import quote

import httpx

from tenantferry.connections import ConnectionParams
from tenantferry.errors import PermanentError, TransientError
from tenantferry.fleet import load_fleet
from tenantferry.fleet.pools import plan_pools
from tenantferry.local.accounts import free_port
from tenantferry.local.airflow_api import AirflowApi
from tenantferry.local.processes import end_sessions, kill_sessions

# Arguments of "airflow". docker-compose.yaml runs the same ones; a test compares them. Task logs
# are read from the shared folder, so nobody has to serve them.
MIGRATE: tuple[str, ...] = ("db", "migrate")
IMPORT_POOLS: tuple[str, ...] = ("pools", "import")
COMPONENTS: Mapping[str, tuple[str, ...]] = {
    "api-server": ("api-server",),
    "scheduler": ("scheduler", "--skip-serve-logs"),
    "dag-processor": ("dag-processor",),
    "triggerer": ("triggerer", "--skip-serve-logs"),
}
START_TIMEOUT_SECONDS = 180.0
# Airflow gives a task five seconds to end; after half of this time it is told again.
STOP_TIMEOUT_SECONDS = 12.0
_HEALTHY = ("metadatabase", "scheduler", "triggerer", "dag_processor")

# People and tests wait here for what a production scheduler may take its time for.
_QUICK: Mapping[str, str] = {
    "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.3",
    "AIRFLOW__SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "2",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "30",
    # What a scheduler leaves behind that is killed waits for these two.
    "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "15",
    "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "5",
    "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
    "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "5",
    # Many tasks may start at the same time, on a machine that does other things as well.
    "AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT": "120",
    "AIRFLOW__DAG_PROCESSOR__DAG_FILE_PROCESSOR_TIMEOUT": "180",
    "AIRFLOW__DAG_PROCESSOR__PARSING_PROCESSES": "1",
    "AIRFLOW__API__AUTO_REFRESH_INTERVAL": "1",
}


class LocalAirflow:
    """
    Airflow with a LocalExecutor, reachable from this machine only.

    :param directory: becomes ``AIRFLOW_HOME``; keeps logs, so that they can be read afterwards.
    :param project_root: the folder that holds ``dags``, ``plugins`` and ``include``.
    :param metadata: an empty database, or one of an earlier start, with the role that owns it.
    :param connections: Airflow connections by id. They travel in the environment of the
        processes, never through a file.
    :param parallelism: tasks at the same time; Airflow keeps a process for each.
    :param on_spawn: told of each process, the leader of a session, as soon as it is started.
    """

    username = "admin"

    def __init__(
        self,
        directory: Path,
        *,
        project_root: Path,
        metadata: ConnectionParams,
        fleet_file: Path,
        connections: Mapping[str, ConnectionParams],
        parallelism: int = 8,
        on_spawn: Callable[[subprocess.Popen[bytes]], None] | None = None,
    ) -> None:
        self.directory = directory
        self.project_root = project_root
        self.metadata = metadata
        self.fleet_file = fleet_file
        self.connections = connections
        self.parallelism = parallelism
        self.on_spawn = on_spawn
        self.password = secrets.token_urlsafe(12)
        self.url = f"http://127.0.0.1:{free_port()}"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._keys = {
            "AIRFLOW__CORE__FERNET_KEY": _fernet_key(),
            "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_urlsafe(32),
            "AIRFLOW__API__SECRET_KEY": secrets.token_urlsafe(32),
        }

    @property
    def api(self) -> AirflowApi:
        """A client of the REST API, logged in."""
        return AirflowApi(self.url, username=self.username, password=self.password)

    def environment(self) -> dict[str, str]:
        """Return what every Airflow process of this instance is started with. Holds secrets."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("AIRFLOW")}
        return {
            **inherited,
            **_QUICK,
            **self._keys,
            **{f"AIRFLOW_CONN_{k.upper()}": _encode(v) for k, v in self.connections.items()},
            "AIRFLOW_HOME": str(self.directory),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            "PYTHONPATH": str(self.project_root / "include"),
            "PYTHONUNBUFFERED": "1",
            "TENANTFERRY_FLEET": str(self.fleet_file),
            "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
            "AIRFLOW__CORE__PARALLELISM": str(self.parallelism),
            "AIRFLOW__CORE__DAGS_FOLDER": str(self.project_root / "dags"),
            "AIRFLOW__CORE__PLUGINS_FOLDER": str(self.project_root / "plugins"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.url}/execution/",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": f"{self.username}:admin",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(self._passwords_file),
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__API__PORT": self.url.rpartition(":")[2],
            "AIRFLOW__API__BASE_URL": self.url,
            "AIRFLOW__API__WORKERS": "1",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": _encode_url(self.metadata),
        }

    def start(self) -> None:
        """
        Create what is missing, start the components and wait until all are healthy.

        :raises TransientError: if one does not come up; what was started is ended again.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        _write_private(self._passwords_file, json.dumps({self.username: self.password}))
        pools = self.directory / "pools.json"
        pools.write_text(json.dumps(plan_pools(load_fleet(self.fleet_file))), "utf-8")
        self._run(MIGRATE)
        try:
            for name, arguments in COMPONENTS.items():
                self.processes[name] = self._spawn(name, arguments)
            self._run((*IMPORT_POOLS, str(pools)))
            self._wait_until_healthy()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End every process that was started and wait until the last is gone."""
        end_sessions(list(self.processes.values()), timeout_seconds=STOP_TIMEOUT_SECONDS)
        self.processes.clear()

    def restart(self, component: str) -> None:
        """
        Kill one component with all that it runs, as a crash of its machine would; start it again.

        The scheduler runs the tasks: they die with it.

        :param component: a key of `COMPONENTS`.
        :raises TransientError: if it does not come up.
        """
        kill_sessions([self.processes[component]])
        self.processes[component] = self._spawn(component, COMPONENTS[component])
        self._wait_until_healthy()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def _passwords_file(self) -> Path:
        return self.directory / "passwords.json"

    def _spawn(self, name: str, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
        with self._log_file(name).open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "airflow", *arguments],
                cwd=self.project_root,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Tasks get process groups of their own; the session still holds them all.
                start_new_session=True,
            )
        if self.on_spawn is not None:
            self.on_spawn(process)
        return process

    def _run(self, arguments: Sequence[str]) -> None:
        name = "-".join(arguments[:2])
        process = self._spawn(name, arguments)
        try:
            status = process.wait(START_TIMEOUT_SECONDS)
        finally:
            end_sessions([process], timeout_seconds=STOP_TIMEOUT_SECONDS)
        if status != 0:
            raise PermanentError(f'"airflow {name}" failed', detail=self._tail(name))

    def _wait_until_healthy(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        waiting: list[str] = list(_HEALTHY)
        while waiting:
            for name, process in self.processes.items():
                if process.poll() is not None:
                    raise TransientError(
                        f'Airflow component "{name}" ended', detail=self._tail(name)
                    )
            if time.monotonic() > deadline:
                raise TransientError(
                    "Airflow did not become healthy in time",
                    detail=f"Still waiting for: {', '.join(waiting)}.",
                    hint=f'See the logs in "{self.directory}".',
                )
            time.sleep(0.2)  # the health endpoint can only be asked, it does not tell
            waiting = self._unhealthy()

    def _unhealthy(self) -> list[str]:
        try:
            answer = httpx.get(f"{self.url}/api/v2/monitor/health", timeout=5).json()
        except httpx.TransportError:
            return list(_HEALTHY)
        return [name for name in _HEALTHY if answer.get(name, {}).get("status") != "healthy"]

    def _log_file(self, name: str) -> Path:
        return self.directory / f"{name}.log"

    def _tail(self, name: str) -> str:
        lines = self._log_file(name).read_text("utf-8", "replace").splitlines()
        return "\n".join(lines[-15:])


def _encode(params: ConnectionParams) -> str:
    return json.dumps(
        {
            "conn_type": "postgres",
            "host": params.host,
            "port": params.port,
            "login": params.user,
            "password": params.password,
            "schema": params.database,
            "extra": dict(params.options),
        }
    )


def _encode_url(params: ConnectionParams) -> str:
    login = f"{quote(params.user, safe='')}:{quote(params.password, safe='')}"
    return f"postgresql+psycopg2://{login}@{params.host}:{params.port}/{params.database}"


def _fernet_key() -> str:
    # 32 bytes in URL-safe base64 with its padding.
    return secrets.token_urlsafe(32) + "="


def _write_private(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.chmod(0o600)
    path.write_text(text, "utf-8")
