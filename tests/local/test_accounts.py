from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from tenantferry.errors import PermanentError
from tenantferry.local import accounts
from tenantferry.local.accounts import ensure_own_directory, servers_directory

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root cannot run servers itself")


@pytest.fixture
def open_folder(tmp_path: Path) -> Path:
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.geteuid() and not folder.stat().st_mode & 0o001:
            folder.chmod(folder.stat().st_mode | 0o711)
    return tmp_path


def test_servers_directory_is_the_wanted_one_when_it_can_be_reached(open_folder: Path) -> None:
    wanted = open_folder / "checkout" / "servers"
    (open_folder / "checkout").mkdir(mode=0o755)

    assert servers_directory(wanted) == wanted
    assert wanted.is_dir()


@as_root
def test_servers_directory_is_another_when_a_folder_above_is_closed(open_folder: Path) -> None:
    closed = open_folder / "root"
    closed.mkdir(mode=0o700)

    chosen = servers_directory(closed / "servers")

    try:
        assert chosen.parent == Path("/var/tmp")
        assert chosen == servers_directory(closed / "servers")
        assert chosen != servers_directory(closed / "others")
    finally:
        for folder in (chosen, servers_directory(closed / "others")):
            folder.rmdir()


@as_root
def test_servers_directory_refuses_the_other_when_somebody_else_has_made_it(
    open_folder: Path,
) -> None:
    closed = open_folder / "root"
    closed.mkdir(mode=0o700)
    chosen = servers_directory(closed / "servers")
    chosen.rmdir()
    chosen.symlink_to(open_folder)

    try:
        with pytest.raises(PermanentError, match="cannot use the folder"):
            servers_directory(closed / "servers")
    finally:
        chosen.unlink()


def test_ensure_own_directory_keeps_its_own_and_opens_it(tmp_path: Path) -> None:
    (tmp_path / "ours").mkdir(mode=0o700)
    (tmp_path / "ours" / "data").touch()

    assert ensure_own_directory(tmp_path / "ours") == tmp_path / "ours"
    assert (tmp_path / "ours" / "data").exists()
    assert (tmp_path / "ours").stat().st_mode & 0o777 == 0o755


def test_ensure_own_directory_refuses_a_symbolic_link_to_a_folder_of_ours(tmp_path: Path) -> None:
    (tmp_path / "ours").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "ours")

    with pytest.raises(PermanentError, match="HINT: Find out who made it"):
        ensure_own_directory(tmp_path / "link")

    assert (tmp_path / "ours").stat().st_mode & 0o777 == 0o700


@as_root
def test_ensure_own_directory_refuses_a_folder_of_another_account(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    os.chown(tmp_path / "theirs", 65534, 65534)

    with pytest.raises(PermanentError, match="belongs to another account"):
        ensure_own_directory(tmp_path / "theirs")


def test_ensure_own_directory_refuses_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(PermanentError, match="cannot use the folder"):
        ensure_own_directory(tmp_path / "file")


def test_servers_directory_is_the_wanted_one_when_we_are_not_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    closed = tmp_path / "home"
    closed.mkdir(mode=0o700)

    assert servers_directory(closed / "servers") == closed / "servers"


@as_root
def test_service_user_is_an_account_that_servers_accept() -> None:
    name = accounts.service_user()

    assert name is not None
    assert pwd.getpwnam(name).pw_uid != 0
