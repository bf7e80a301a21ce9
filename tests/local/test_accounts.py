from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from tenantferry.local import accounts
from tenantferry.local.accounts import servers_directory

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
