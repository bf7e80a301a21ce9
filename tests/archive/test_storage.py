from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tenantferry.archive.storage import (
    StorageLostError,
    StorageRefusedError,
    Written,
    check_writable,
    read_chunks,
    store,
)
from tenantferry.errors import PermanentError


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


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (ValueError("Unsupported filesystem: 'nfs'"), StorageRefusedError),
        (ImportError("Install s3fs to access S3"), StorageRefusedError),
        (RuntimeError("429: Too many requests"), StorageLostError),
    ],
    ids=["unknown scheme", "missing package", "error of its own"],
)
def test_what_a_storage_raises_of_its_own_comes_as_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception, expected: type[Exception]
) -> None:
    monkeypatch.setattr(_Odd, "failure", failure)
    path = _Odd(tmp_path / "a.dump")

    for act in (lambda: store(path, [b"x"]), lambda: list(read_chunks(path))):
        with pytest.raises(expected) as caught:
            act()
        assert str(failure) in str(caught.value)


def test_an_error_of_the_chunks_is_raised_as_it_is(tmp_path: Path) -> None:
    def fail() -> Iterator[bytes]:
        yield b"half"
        raise PermanentError("pg_dump failed")

    with pytest.raises(PermanentError, match="pg_dump failed") as caught:
        store(tmp_path / "a.dump", fail())

    assert type(caught.value) is PermanentError


def test_check_writable_leaves_nothing_behind(tmp_path: Path) -> None:
    check_writable(tmp_path / "acme" / "begin.check")

    assert list((tmp_path / "acme").iterdir()) == []


class _Odd(type(Path())):  # type: ignore[misc]
    """A path of a storage with errors of its own."""

    failure = Exception()

    def open(self, *arguments: object, **named: object) -> object:
        raise self.failure


class _Full(type(Path())):  # type: ignore[misc]
    """A path on a disk that is full."""

    def open(self, *arguments: object, **named: object) -> object:
        return Path("/dev/full").open("wb")
