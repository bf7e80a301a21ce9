"""What README.md tells people to write and to run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tenantferry.connections import ConnectionParams, open_admin_console
from tenantferry.errors import TransientError
from tenantferry.local.accounts import (
    free_port,
    give_to_service_user,
    servers_directory,
    service_user,
)
from tenantferry.local.pgbouncer import find_pgbouncer

PROJECT_ROOT = Path(__file__).resolve().parents[2]
README = (PROJECT_ROOT / "README.md").read_text("utf-8")


def blocks_with(text: str) -> list[str]:
    """Return the indented or plain code blocks that hold *text*."""
    blocks = re.findall(r"^ *```\w*\n(.*?)^ *```$", README, re.DOTALL | re.MULTILINE)
    return [re.sub("^   ", "", block, flags=re.MULTILINE) for block in blocks if text in block]


@pytest.fixture
def folder() -> Iterator[Path]:
    base = servers_directory(Path(tempfile.mkdtemp(prefix="tenantferry-test-")))
    yield base
    shutil.rmtree(base)


@pytest.fixture
def console(folder: Path) -> Iterator[ConnectionParams]:
    """The admin console of a PgBouncer that reads exactly the four files of README.md."""
    port = free_port()
    (folder / "tenantferry").mkdir()
    for name in ("pgbouncer.ini", "users.txt", "hba.conf", "tenantferry/aliases.ini"):
        mark = "#" if name == "hba.conf" else ";"  # how its comments begin
        (text,) = blocks_with(f"{mark} /etc/pgbouncer/{name}")
        text = text.replace("10.0.0.0/8", "127.0.0.1/32")
        text = text.replace("/etc/pgbouncer", str(folder)).replace("…", "secret")
        text = text.replace("0.0.0.0", "127.0.0.1").replace("6432", str(port))
        text = text.replace("pool_mode", "unix_socket_dir =\npool_mode")
        (folder / name).write_text(text, "utf-8")
        (folder / name).chmod(0o640)
        give_to_service_user(folder / name)
    process = subprocess.Popen(
        [find_pgbouncer(), "--quiet", str(folder / "pgbouncer.ini")],
        user=service_user(),
        group=service_user(),
        extra_groups=[] if service_user() else None,
        cwd="/",
    )
    yield ConnectionParams("127.0.0.1", port, "tenantferry_admin", "pgbouncer", "secret")
    process.kill()
    process.wait(20)


def ask(console: ConnectionParams, command: str) -> list[tuple[object, ...]]:
    deadline = time.monotonic() + 20
    while True:
        try:
            opened = open_admin_console(console, purpose="test")
        except TransientError:
            assert time.monotonic() < deadline
            time.sleep(0.02)  # a start can only be asked for
        else:
            break
    with closing(opened), opened.cursor() as cursor:
        cursor.execute(command)
        return cursor.fetchall() if cursor.description else []


def test_pgbouncer_reads_what_the_readme_says(console: ConnectionParams) -> None:
    (acme,) = (row for row in ask(console, "SHOW DATABASES") if row[0] == "acme")

    assert acme[:5] == ("acme", "db1", 5432, "acme", "acme_app")
    settings = {str(row[0]): row[1] for row in ask(console, "SHOW CONFIG")}
    assert (settings["pool_mode"], settings["query_wait_timeout"]) == ("transaction", "60")
    assert settings["auth_type"] == "hba"
    ask(console, "RELOAD")


def test_the_command_of_the_readme_makes_pools(tmp_path: Path) -> None:
    (block,) = blocks_with("tenantferry.fleet.pools")
    command = block.splitlines()[0].replace("pools.json", str(tmp_path / "pools.json"))
    fleet = PROJECT_ROOT / "include" / "fleet.yaml"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    subprocess.run(
        ["sh", "-euc", command],
        cwd=PROJECT_ROOT,
        env={
            **environment,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "TENANTFERRY_FLEET": str(fleet),
        },
        check=True,
        timeout=60,
    )

    made = json.loads((tmp_path / "pools.json").read_text("utf-8"))
    assert made == json.loads((PROJECT_ROOT / "include" / "pools.json").read_text("utf-8"))


def test_every_file_that_the_readme_names_exists() -> None:
    named = set(re.findall(r"(?:include|scripts|dags|plugins|docs)/[\w./*-]*\w", README))

    assert {"include/tenantferry/schema/source_privileges.sql", "include/fleet.yaml"} <= named
    assert [name for name in sorted(named) if not any(PROJECT_ROOT.glob(name))] == []
