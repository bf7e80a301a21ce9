"""A live tenant that may be retired, and what a test of that does and looks at."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from move_stage import Stage, rows
from tenantferry.connections import ConnectionParams, open_connection
from tenantferry.errors import PermanentError, TransientError
from tenantferry.local.postgres import PostgresServer
from tenantferry.moves.archiving import ArchiveSummary, archive_source, verify_archive
from tenantferry.moves.cutover import cutover
from tenantferry.moves.retire import Approval, LockSummary, begin_retire, lock_source

# Runs one verb, that kills itself after one of its steps.
SCRIPT = """
import os, pickle, signal, sys
from tenantferry.lsn import parse_lsn
from tenantferry.moves.archiving import archive_source, verify_archive
from tenantferry.moves.retire import lock_source
verb, arguments, fatal = pickle.load(sys.stdin.buffer)
{"archive": archive_source, "verify": verify_archive, "lock": lock_source}[verb](
    *arguments, on_step=lambda step: step == fatal and os.kill(os.getpid(), signal.SIGKILL))
"""
IS_CLOSED = "could not connect"


@dataclass
class Retiring:
    """
    A live tenant whose grace is over.

    :ivar folder: where its dump goes.
    :ivar server: where its dump is restored.
    """

    stage: Stage
    folder: Path
    server: ConnectionParams
    source_server: PostgresServer

    @property
    def dump(self) -> Path:
        [(attempt, token)] = self.ask("SELECT attempt, token FROM tenantferry.archives")
        return self.folder / "acme" / f"retire_{attempt}_{token}.dump"

    @property
    def approval(self) -> Approval:
        [(attempt,)] = self.ask(
            "SELECT max(id) FROM tenantferry.write_pauses WHERE tenant = 'acme'"
        )
        return Approval("acme", attempt)

    def begin(self) -> str:
        return begin_retire(self.stage.move, self.approval, self.folder, self.server).phase

    def archive(self) -> ArchiveSummary:
        return archive_source(self.stage.move, self.folder)

    def verify(self) -> ArchiveSummary:
        return verify_archive(self.stage.move, self.folder, self.server)

    def lock(self) -> LockSummary:
        return lock_source(self.stage.move, self.folder)

    def run_and_kill(self, verb: str, fatal: str) -> None:
        arguments: tuple[Any, ...] = (self.stage.move, self.folder)
        if verb == "verify":
            arguments += (self.server,)
        process = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            input=pickle.dumps((verb, arguments, fatal)),
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            timeout=60,
            check=False,
        )
        assert process.returncode == -signal.SIGKILL, fatal

    def ask(self, query: str) -> list[tuple[Any, ...]]:
        return rows(self.stage.target, query)

    def ask_source(self, query: str) -> str:
        """Ask as a superuser, whom no lock keeps out."""
        database = self.stage.move.source.database
        return self.source_server.psql("-c", query, database=database)

    def is_open(self) -> bool:
        """Tell whether our own role gets into the source."""
        try:
            open_connection(self.stage.move.source, purpose="look").close()
        except (PermanentError, TransientError):
            return False
        return True

    def scratch_databases(self) -> list[str]:
        found = self.source_server.psql("-c", "SELECT datname FROM pg_database").splitlines()
        return [name for name in found if name.startswith("tenantferry_verify")]


@pytest.fixture
def in_grace(
    stage: Stage,
    source_server: PostgresServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Retiring]:
    """A tenant that was just cut over."""
    folder = source_server.installation.bin_directory
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    source_server.psql("-c", "ALTER ROLE tenantferry CREATEDB")
    cutover(stage.move)
    server = stage.move.source.with_database("postgres")
    yield Retiring(stage, tmp_path / "archive", server, source_server)
    source_server.psql("-c", "ALTER ROLE tenantferry NOCREATEDB")


@pytest.fixture
def over(in_grace: Retiring) -> Retiring:
    """A live tenant whose grace is over."""
    in_grace.ask("UPDATE tenantferry.graces SET ends_at = now() - interval '1 hour'")
    return in_grace
