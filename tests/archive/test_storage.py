from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tenantferry.archive.storage import (
    StorageLostError,
    StorageRefusedError,
    Written,
    read_chunks,
    store,
)


def test_store_tells_size_and_digest_of_what_it_wrote(tmp_path: Path) -> None:
    path = tmp_path / "acme" / "retire_1.dump"

    written = store(path, [b"one", b"", b"two"])

    assert written == Written(6, hashlib.sha256(b"onetwo").hexdigest())
    assert b"".join(read_chunks(path)) == b"onetwo"
    assert [file.name for file in path.parent.iterdir()] == ["retire_1.dump"]


def test_store_leaves_nothing_of_a_file_that_was_not_completed(tmp_path: Path) -> None:
    def fail() -> Iterator[bytes]:
        yield b"half"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store(tmp_path / "a.dump", fail())

    assert list(tmp_path.iterdir()) == []


def test_store_keeps_the_former_file_until_the_new_one_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "a.dump"
    store(path, [b"former"])
    seen = []

    def look() -> Iterator[bytes]:
        yield b"new"
        seen.append(path.read_bytes())

    store(path, look())

    assert seen == [b"former"]
    assert path.read_bytes() == b"new"


def test_store_overwrites_what_a_killed_process_left(tmp_path: Path) -> None:
    (tmp_path / "a.dump.partial").write_bytes(b"much longer than what comes now")

    store(tmp_path / "a.dump", [b"new"])

    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("a.dump", b"new")]


def test_a_storage_that_refuses_is_permanent_and_one_that_fails_is_not(tmp_path: Path) -> None:
    with pytest.raises(StorageRefusedError, match="could not read"):
        list(read_chunks(tmp_path / "missing.dump"))
    # A full disk, as a device that says so at every write.
    with pytest.raises(StorageLostError, match="could not write") as caught:
        store(_Full(tmp_path / "a.dump"), [b"x" * 100_000])
    assert "No space left" in caught.value.detail


class _Full(type(Path())):  # type: ignore[misc]
    """A path on a disk that is full."""

    def open(self, *arguments: object, **named: object) -> object:
        return Path("/dev/full").open("wb")
