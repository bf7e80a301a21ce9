"""A customer's own database with its application."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import psycopg2
import pytest
from psycopg2.extensions import connection

from tenantferry.connections import open_client_connection
from tenantferry.local.client import JOURNAL_NAME, SUMMARY_NAME
from tenantferry.local.loading import adopt_objects, load_sample
from tenantferry.local.measurements import Summary, read_summary
from tenantferry.local.postgres import PostgresServer

_APP_PASSWORD = "app"
_numbers = count(1)


@dataclass(frozen=True, slots=True)
class Application:
    """A database with an owner, and a login that may read and write."""

    server: PostgresServer
    database: str
    directory: Path

    @property
    def environment(self) -> dict[str, str]:
        params = self.server.superuser
        return {
            **os.environ,
            "PGHOST": params.host,
            "PGPORT": str(params.port),
            "PGUSER": "shop_app",
            "PGPASSWORD": _APP_PASSWORD,
            "PGDATABASE": self.database,
            "PYTHONPATH": os.pathsep.join(sys.path),
        }

    def connect(self) -> connection:
        params = self.server.superuser
        return psycopg2.connect(
            host=params.host, port=params.port, user="shop_app", password=_APP_PASSWORD,
            dbname=self.database,
        )  # fmt: skip

    def execute(self, statement: str, *values: object) -> None:
        params = self.server.superuser.with_database(self.database)
        with closing(open_client_connection(params, purpose="test")) as session, session:
            session.cursor().execute(statement, values or None)

    @property
    def journal(self) -> Path:
        return self.directory / JOURNAL_NAME

    def run_client(self, *, acknowledged_writes: int, generic: bool = False) -> Summary:
        """Run a real client until it has written so much; return its last words."""
        arguments = ["--directory", str(self.directory), "--rate", "200", "--workers", "2"]
        process = subprocess.Popen(
            [sys.executable, "-m", "tenantferry.local.client", *arguments,
             *(["--generic"] if generic else [])],
            env=self.environment,
        )  # fmt: skip
        path = self.directory / SUMMARY_NAME
        deadline = time.monotonic() + 60
        try:
            while process.poll() is None and time.monotonic() < deadline:
                summary = read_summary(path)
                if summary is not None and summary.acknowledged_writes >= acknowledged_writes:
                    break
                time.sleep(0.1)  # its summary can only be read
        finally:
            process.send_signal(signal.SIGTERM)
            returncode = process.wait(timeout=30)
        finished = read_summary(path)
        assert returncode == 0
        assert finished is not None
        assert finished.finished
        return finished


@pytest.fixture(scope="session")
def shop_server(source_server: PostgresServer) -> PostgresServer:
    source_server.psql(
        "-c", "CREATE ROLE shop_owner",
        "-c", f"CREATE ROLE shop_app LOGIN PASSWORD '{_APP_PASSWORD}'",
    )  # fmt: skip
    return source_server


@pytest.fixture
def empty_shop(shop_server: PostgresServer, tmp_path: Path) -> Iterator[Application]:
    name = f"shop_{next(_numbers)}"
    shop_server.psql("-c", f"CREATE DATABASE {name} OWNER shop_owner")
    yield Application(shop_server, name, tmp_path)
    shop_server.psql("-c", f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def shop(empty_shop: Application) -> Application:
    """The sample application with few rows."""
    load_sample(empty_shop.server, empty_shop.database, owner="shop_owner", rows=2_000)
    adopt_objects(empty_shop.server, empty_shop.database, owner="shop_owner", app="shop_app")
    return empty_shop
