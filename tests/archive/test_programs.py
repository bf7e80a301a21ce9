from __future__ import annotations

import os
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tenantferry.archive import programs
from tenantferry.archive.programs import Programs, find_programs, running
from tenantferry.connections import ConnectionParams
from tenantferry.errors import PermanentError, TransientError

PARAMS = ConnectionParams("db1", 5432, "tenantferry", "acme", "very secret", {"sslmode": "prefer"})


def install(folder: Path, version: str) -> Path:
    """Make programs that tell their version, or run a shell script that they are told."""
    folder.mkdir()
    for name in ("pg_dump", "pg_restore"):
        program = folder / name
        program.write_text(f"#!/bin/sh\necho '{name} (PostgreSQL) {version}'\n", "utf-8")
        program.chmod(0o755)
    return folder


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(programs, "_PACKAGES", ())
    versions = {"old": "14.9", "debian": "15.18 (Debian 15.18-0+deb12u1)", "new": "18beta1"}
    found = [install(tmp_path / name, version) for name, version in versions.items()]
    return os.pathsep.join(map(str, found))


@pytest.mark.parametrize(("server", "chosen"), [(14, 14), (15, 15), (16, 18), (18, 18)], ids=str)
def test_find_programs_takes_the_oldest_that_can_dump_the_server(
    folders: str, server: int, chosen: int
) -> None:
    assert find_programs(server, search_path=folders).major == chosen


def test_find_programs_says_what_to_install_where_none_fits(folders: str) -> None:
    with pytest.raises(PermanentError, match="no pg_dump here") as caught:
        find_programs(19, search_path=folders)

    assert "14 in " in caught.value.detail
    assert "postgresql-client-19" in caught.value.hint


def test_find_programs_needs_both_of_one_folder(folders: str, tmp_path: Path) -> None:
    (tmp_path / "debian" / "pg_restore").unlink()

    assert find_programs(15, search_path=folders).major == 18


def test_the_command_line_shows_no_password_and_the_environment_no_foreign_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGOPTIONS", "-c search_path=evil")
    command = Programs(15, tmp_path).command("pg_dump", PARAMS, "archive acme")

    environment = programs._environment(PARAMS)

    assert "very secret" not in " ".join(command)
    assert "sslmode=prefer" in command[-1]
    assert "application_name='tenantferry archive acme'" in command[-1]
    assert environment["PGPASSWORD"] == "very secret"
    assert [name for name in environment if name.startswith("PG")] == ["PGPASSWORD"]


def test_a_secret_that_could_only_go_on_the_command_line_is_refused(tmp_path: Path) -> None:
    params = replace(PARAMS, options={"sslpassword": "x"})

    with pytest.raises(PermanentError, match="cannot be given sslpassword"):
        Programs(15, tmp_path).command("pg_dump", params, "archive acme")


def shell(name: str, script: str, folder: Path) -> list[str]:
    program = folder / name
    program.write_text(f"#!/bin/sh\n{script}\n", "utf-8")
    program.chmod(0o755)
    return [str(program)]


@pytest.mark.parametrize(
    ("name", "said", "kind"),
    [
        ("pg_dump", "error: permission denied for table x", PermanentError),
        ("pg_dump", "error: aborting because of server version mismatch", PermanentError),
        ("pg_dump", "error: server closed the connection unexpectedly", TransientError),
        ("pg_restore", 'error: could not execute query: role "x" does not exist', PermanentError),
        ("pg_restore", "error: connection to server at db1 failed", TransientError),
    ],
    ids=["refused", "version", "lost", "restore refused", "restore lost"],
)
def test_a_program_that_fails_tells_why_and_whether_to_try_again(
    tmp_path: Path, name: str, said: str, kind: type[Exception]
) -> None:
    command = shell(name, f"echo '{said}' >&2; exit 1", tmp_path)

    with pytest.raises(kind, match="failed with status 1") as caught, running(command, PARAMS):
        pass

    assert said in str(caught.value)


def test_an_error_that_is_only_said_counts_too(tmp_path: Path) -> None:
    command = shell("pg_restore", "echo 'pg_restore: error: something' >&2; exit 0", tmp_path)

    with pytest.raises(PermanentError, match="something"), running(command, PARAMS):
        pass


def test_a_program_that_says_a_lot_is_not_held_up(tmp_path: Path) -> None:
    command = shell("pg_dump", "head -c 3000000 /dev/zero >&2; echo done", tmp_path)

    with running(command, PARAMS, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read() == b"done\n"


def test_a_program_is_killed_when_its_block_is_left_by_an_exception(tmp_path: Path) -> None:
    command = shell("pg_dump", "exec sleep 60", tmp_path)
    began = time.monotonic()

    with pytest.raises(SystemExit), running(command, PARAMS) as process:
        raise SystemExit

    assert process.returncode is not None
    assert time.monotonic() - began < 30


def test_a_program_that_does_not_read_on_is_not_fed_for_ever(tmp_path: Path) -> None:
    command = shell("pg_restore", "echo 'error: enough' >&2; exit 1", tmp_path)

    with (
        pytest.raises(PermanentError, match="enough"),
        running(command, PARAMS, stdin=subprocess.PIPE) as process,
    ):
        assert process.stdin is not None
        while True:
            process.stdin.write(b"x" * 65536)
