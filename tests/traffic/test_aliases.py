from __future__ import annotations

import os
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tenantferry.errors import PermanentError, TransientError
from tenantferry.traffic.aliases import (
    forget_former,
    format_entry,
    parse_entry,
    put_entry,
    read_entry,
    read_former_entry,
    remove_entry,
    replace_entry,
    restore_entry,
    return_entry,
)

TEXT = """\
; managed by hand
[databases]
acme = host=db1 port=5432 dbname=acme pool_size=5
"with space" = host=db1 dbname='it''s'
#acme = host=no
globex=host=db2 port=5433 dbname=globex
"""
NEW = {"host": "db9", "port": "5432", "dbname": "shared", "user": "tenant_acme"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "aliases.ini"
    path.write_text(TEXT, "utf-8")
    path.chmod(0o640)
    return path


def test_replace_entry_changes_its_own_line_only(path: Path) -> None:
    replace_entry(path, "acme", NEW, attempt=7)

    lines, before = path.read_text("utf-8").splitlines(), TEXT.splitlines()
    assert lines[:2] == before[:2]
    assert lines[2].startswith("; before 20")
    assert lines[2].endswith(" tenantferry 7: acme = host=db1 port=5432 dbname=acme pool_size=5")
    assert lines[3] == "acme = host=db9 port=5432 dbname=shared user=tenant_acme"
    assert lines[4:] == before[3:]


def test_replace_entry_changes_nothing_the_second_time(path: Path) -> None:
    replace_entry(path, "acme", NEW, attempt=7)
    once = path.read_text("utf-8")

    replace_entry(path, "acme", NEW, attempt=7)

    assert path.read_text("utf-8") == once


def test_replace_entry_keeps_one_former_line(path: Path) -> None:
    replace_entry(path, "acme", NEW, attempt=7)
    replace_entry(path, "acme", {**NEW, "host": "db8"}, attempt=8)

    assert len(path.read_text("utf-8").splitlines()) == len(TEXT.splitlines()) + 1


def test_restore_entry_gives_back_every_byte(path: Path) -> None:
    replace_entry(path, "acme", NEW, attempt=7)

    assert restore_entry(path, "acme", attempt=7)
    assert path.read_text("utf-8") == TEXT
    assert not restore_entry(path, "acme", attempt=7)


def test_restore_entry_leaves_what_another_attempt_flipped(path: Path) -> None:
    replace_entry(path, "acme", NEW, attempt=7)
    flipped = path.read_text("utf-8")

    assert not restore_entry(path, "acme", attempt=8)
    assert path.read_text("utf-8") == flipped


def test_replace_entry_keeps_mode_and_owner(path: Path) -> None:
    if os.geteuid() == 0:
        os.chown(path, 65534, 65534)
    before = path.stat()

    replace_entry(path, "acme", NEW, attempt=7)

    after = path.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (
        before.st_mode,
        before.st_uid,
        before.st_gid,
    )


def test_replace_entry_keeps_a_symbolic_link(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.ini"
    link.symlink_to(path)

    replace_entry(link, "acme", NEW, attempt=7)

    assert link.is_symlink()
    assert read_entry(path, "acme") == NEW


def test_replace_entry_refuses_an_unknown_alias(path: Path) -> None:
    with pytest.raises(PermanentError, match='alias "nobody" stands 0 times'):
        replace_entry(path, "nobody", NEW, attempt=7)

    assert path.read_text("utf-8") == TEXT


@contextmanager
def full_disk() -> Iterator[None]:
    """Let this process write no byte to any file, as where there is no room left."""
    limit, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))


def test_replace_entry_may_be_tried_again_when_the_disk_was_full(path: Path) -> None:
    with pytest.raises(TransientError, match="could not read or replace"), full_disk():
        replace_entry(path, "acme", NEW, attempt=7)
    unchanged = path.read_text("utf-8")
    replace_entry(path, "acme", NEW, attempt=7)

    assert unchanged == TEXT
    assert read_entry(path, "acme") == NEW


def test_replace_entry_asks_for_a_person_when_the_file_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match="cannot read or replace"):
        replace_entry(tmp_path / "aliases.ini", "acme", NEW, attempt=7)


def test_read_entry_understands_quotes(path: Path) -> None:
    assert read_entry(path, "with space") == {"host": "db1", "dbname": "it's"}


@pytest.mark.parametrize("value", ["", "it's", "a b", "=;#", "ünï", 'say "x"'])
def test_parse_entry_reads_what_format_entry_writes(value: str) -> None:
    entry = {"host": "db1", "password": value}

    assert parse_entry(format_entry(entry)) == entry


def test_format_entry_refuses_a_line_break() -> None:
    with pytest.raises(PermanentError, match='"password" of an alias holds a line break'):
        format_entry({"password": "a\nb = host=evil"})


def test_parse_entry_shows_no_password_in_its_error() -> None:
    with pytest.raises(PermanentError) as caught:
        parse_entry("host=db1 password='secret")

    assert "secret" not in str(caught.value)


def test_put_entry_and_remove_entry_leave_the_rest(path: Path) -> None:
    put_entry(path, "tenantferry_acme", NEW)
    assert read_entry(path, "tenantferry_acme") == NEW

    remove_entry(path, "tenantferry_acme")

    assert path.read_text("utf-8") == TEXT


def test_two_tenants_flip_at_once_and_none_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "aliases.ini"
    keys = [f"t{n}" for n in range(8)]
    path.write_text("".join(f"{key} = host=old dbname={key}\n" for key in keys), "utf-8")
    threads = [
        threading.Thread(target=replace_entry, args=(path, key, NEW), kwargs={"attempt": 1})
        for key in keys
    ]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [read_entry(path, key) for key in keys] == [NEW] * len(keys)


def flip(path: Path, *, attempt: int) -> None:
    """As a cutover does: what else the line says stays."""
    replace_entry(path, "acme", {**read_entry(path, "acme"), **NEW}, attempt=attempt)


def test_return_entry_puts_back_the_very_line_and_keeps_both_comments(path: Path) -> None:
    flip(path, attempt=7)

    returned = return_entry(path, "acme", former=7, attempt=8)
    once = path.read_text("utf-8")
    return_entry(path, "acme", former=7, attempt=8)

    assert returned == read_entry(path, "acme") == read_former_entry(path, "acme", attempt=7)
    assert TEXT.splitlines()[2] in once.splitlines()
    assert [" tenantferry 7: " in line for line in once.splitlines()[2:4]] == [True, False]
    assert [" tenantferry 8: " in line for line in once.splitlines()[2:4]] == [False, True]
    assert path.read_text("utf-8") == once


def test_restore_entry_takes_a_return_back_so_that_it_can_be_tried_again(path: Path) -> None:
    flip(path, attempt=7)
    there = path.read_text("utf-8")
    return_entry(path, "acme", former=7, attempt=8)

    assert restore_entry(path, "acme", attempt=8)

    assert path.read_text("utf-8") == there
    assert return_entry(path, "acme", former=7, attempt=9)["host"] == "db1"


def test_forget_former_leaves_the_file_as_it_was_before_the_cutover(path: Path) -> None:
    replace_entry(path, "globex", NEW, attempt=6)
    before = path.read_text("utf-8")
    flip(path, attempt=7)
    return_entry(path, "acme", former=7, attempt=8)

    forget_former(path, "acme")
    forget_former(path, "acme")

    assert path.read_text("utf-8") == before


def test_return_entry_keeps_what_else_was_changed_in_the_line(path: Path) -> None:
    flip(path, attempt=7)
    text = path.read_text("utf-8").replace(
        "pool_size=5 user=tenant_acme", "pool_size=9 user=tenant_acme reserve_pool=2"
    )
    path.write_text(text, "utf-8")

    returned = return_entry(path, "acme", former=7, attempt=8)

    assert returned == {
        "host": "db1", "port": "5432", "dbname": "acme", "pool_size": "9", "reserve_pool": "2",
    }  # fmt: skip


def test_return_entry_refuses_a_file_that_does_not_tell(path: Path) -> None:
    flip(path, attempt=7)
    replace_entry(path, "globex", NEW, attempt=8)
    before = path.read_text("utf-8")

    with pytest.raises(PermanentError, match='does not tell where alias "acme" pointed before'):
        return_entry(path, "acme", former=8, attempt=9)

    assert path.read_text("utf-8") == before


def test_replace_entry_forgets_what_a_rollback_left_behind(path: Path) -> None:
    flip(path, attempt=7)
    return_entry(path, "acme", former=7, attempt=8)

    flip(path, attempt=9)

    kept = [line for line in path.read_text("utf-8").splitlines() if " tenantferry " in line]
    assert [" tenantferry 9: " in line for line in kept] == [True]
