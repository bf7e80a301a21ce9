from __future__ import annotations

import os
import threading
import tracemalloc
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psycopg2
import pytest
from psycopg2.extensions import connection

from tenantferry.archive import dumping, storage
from tenantferry.archive.contents import read_contents
from tenantferry.archive.dumping import Dump, dump_database
from tenantferry.archive.programs import Programs, find_programs
from tenantferry.archive.restoring import check_restore, scratch_name
from tenantferry.archive.storage import StorageRefusedError, Written
from tenantferry.connections import ConnectionParams, open_connection
from tenantferry.errors import PermanentError, TransientError
from tenantferry.local.accounts import free_port
from tenantferry.local.postgres import PostgresServer

Check = Callable[..., object]


def run(session: connection, statement: str) -> list[tuple[object, ...]]:
    with session.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall() if cursor.description else []


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "acme" / "retire_1.dump"


@pytest.fixture
def dump(kept: ConnectionParams, path: Path) -> Dump:
    return dump_database(kept, path, tenant_key="acme")


@pytest.fixture
def check(
    dump: Dump, path: Path, restore_server: ConnectionParams, source_server: PostgresServer
) -> Check:
    def call(*, written: Written | None = None, dumped: Dump = dump) -> object:
        return check_restore(
            restore_server,
            path,
            tenant_key="acme",
            written=written or dumped.written,
            dumped=dumped.contents,
            source_major=source_server.installation.major,
        )

    return call


def databases(server: PostgresServer) -> list[str]:
    found = server.psql("-c", "SELECT datname FROM pg_database").splitlines()
    return [name for name in found if name.startswith("tenantferry_verify")]


def test_a_dump_is_counted_table_by_table_and_has_nothing_of_ours(dump: Dump, path: Path) -> None:
    assert dump.contents.rows == {
        "public.parents": 3000, "public.children": 500, "public.odd_2026": 5,
    }  # fmt: skip
    assert (dump.contents.total, dump.contents.encoding) == (3505, "UTF8")
    assert path.stat().st_size == dump.written.bytes
    assert b"reverse_positions" not in path.read_bytes()


def test_a_restored_dump_has_every_row_and_its_database_is_dropped(
    check: Check, dump: Dump, source_server: PostgresServer
) -> None:
    assert check() == dump.contents

    assert databases(source_server) == []


def test_rows_are_counted_under_the_snapshot_of_the_dump(
    kept: ConnectionParams,
    path: Path,
    check: Check,
    source_owner: connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever is written meanwhile is in neither, so that both can be compared."""
    real = read_contents

    def write_afterwards(source: connection) -> object:
        counted = real(source)
        run(source_owner, "INSERT INTO parents (colour) SELECT 'red' FROM generate_series(1, 10)")
        return counted

    monkeypatch.setattr(dumping, "read_contents", write_afterwards)

    again = dump_database(kept, path, tenant_key="acme")

    assert again.contents.rows["public.parents"] == 3000
    check(dumped=again)


@pytest.mark.parametrize("damage", ["cut", "byte", "more"])
def test_a_dump_that_is_not_what_was_written_is_found_out(
    check: Check, path: Path, source_server: PostgresServer, damage: str
) -> None:
    data = bytearray(path.read_bytes())
    if damage == "cut":
        del data[-100:]
    elif damage == "byte":
        data[len(data) // 2] ^= 1
    else:
        data += b"more"
    path.write_bytes(data)

    with pytest.raises(PermanentError, match="not the dump that was written"):
        check()

    assert databases(source_server) == []


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ({"public.parents": 3001}, "public.parents has 3000 rows instead of 3001 rows"),
        ({"public.lost": 0}, "public.lost has no such table instead of 0 rows"),
    ],
    ids=["a row less", "a table less"],
)
def test_a_restore_that_lacks_something_is_found_out(
    check: Check, dump: Dump, rows: dict[str, int], told: str
) -> None:
    dump.contents.rows.update(rows)  # type: ignore[attr-defined]

    with pytest.raises(PermanentError, match="differs from what was dumped") as caught:
        check()

    assert told in caught.value.detail


def test_a_dump_that_cannot_be_restored_says_what_pg_restore_said(
    kept: ConnectionParams,
    path: Path,
    check: Check,
    source_server: PostgresServer,
    source_owner: connection,
) -> None:
    source_server.psql("-c", "CREATE ROLE reader")
    run(source_owner, "ALTER TABLE parents ENABLE ROW LEVEL SECURITY")
    run(source_owner, "CREATE POLICY own ON parents TO reader USING (true)")
    dump = dump_database(kept, path, tenant_key="acme")
    run(source_owner, "DROP POLICY own ON parents")
    source_server.psql("-c", "DROP ROLE reader")

    with pytest.raises(PermanentError, match="pg_restore failed") as caught:
        check(dumped=dump)

    assert 'role "reader" does not exist' in caught.value.detail
    assert "roles that policies name" in caught.value.hint


def test_a_missing_dump_is_told_apart_from_a_bad_one(check: Check, path: Path) -> None:
    path.unlink()

    with pytest.raises(StorageRefusedError, match="could not read"):
        check()


def test_what_a_killed_verification_left_is_replaced(
    check: Check, source_server: PostgresServer, restore_server: ConnectionParams
) -> None:
    with closing(open_connection(restore_server, purpose="test", autocommit=True)) as session:
        run(session, "CREATE DATABASE tenantferry_verify_acme")
    left = restore_server.with_database("tenantferry_verify_acme")
    with closing(open_connection(left, purpose="left", autocommit=True)) as session:
        run(session, "CREATE TABLE public.parents (of_the_former text)")

        check()

        with pytest.raises(psycopg2.OperationalError):
            run(session, "SELECT 1")
    assert databases(source_server) == []


def test_a_server_that_does_not_let_us_create_a_database_is_named(
    check: Check, source_server: PostgresServer
) -> None:
    source_server.psql("-c", "ALTER ROLE tenantferry NOCREATEDB")

    with pytest.raises(PermanentError, match="cannot create a database") as caught:
        check()

    assert "CREATEDB" in caught.value.hint


def test_a_server_older_than_the_dump_is_refused_before_anything_is_restored(
    dump: Dump,
    path: Path,
    restore_server: ConnectionParams,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "tenantferry.archive.restoring.find_programs", lambda _: Programs(99, Path("/nowhere"))
    )

    with pytest.raises(PermanentError, match="cannot be restored by PostgreSQL"):
        check_restore(
            restore_server, path, tenant_key="acme", written=dump.written, dumped=dump.contents,
            source_major=99,
        )  # fmt: skip


def test_a_source_whose_table_we_may_not_read_is_not_dumped(
    kept: ConnectionParams, tmp_path: Path, source_server: PostgresServer
) -> None:
    source_server.psql("-c", "CREATE TABLE public.of_a_dba (id int)", database=kept.database)

    with pytest.raises(PermanentError, match="cannot dump") as caught:
        dump_database(kept, tmp_path / "a.dump", tenant_key="acme")

    assert "of_a_dba" in caught.value.detail
    assert list(tmp_path.iterdir()) == []


def test_a_source_that_is_away_may_come_back(kept: ConnectionParams, tmp_path: Path) -> None:
    away = ConnectionParams(kept.host, free_port(), kept.user, kept.database, kept.password)

    with pytest.raises(TransientError, match="could not connect"):
        dump_database(away, tmp_path / "a.dump", tenant_key="acme")


def test_a_source_that_dies_during_the_dump_leaves_no_dump(
    kept: ConnectionParams,
    path: Path,
    source: connection,
    source_owner: connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # More than a pipe holds, or pg_dump would be through before anybody reads.
    add_noise(source_owner, rows=20_000)
    real = storage.Digest.add

    def end_dump(self: storage.Digest, chunk: bytes) -> None:
        run(
            source,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = 'tenantferry archive acme'",
        )
        real(self, chunk)

    monkeypatch.setattr(storage.Digest, "add", end_dump)
    monkeypatch.setattr(dumping, "CHUNK_BYTES", 65536)

    with pytest.raises(TransientError, match="pg_dump failed"):
        dump_database(kept, path, tenant_key="acme")

    assert list(path.parent.iterdir()) == []


def add_noise(owner: connection, *, rows: int) -> None:
    """Add a table that cannot be compressed well."""
    run(
        owner,
        "CREATE TABLE noise AS SELECT n, gen_random_uuid()::text || gen_random_uuid()"
        f" || gen_random_uuid() || gen_random_uuid() AS text FROM generate_series(1, {rows}) AS n",
    )


def test_no_password_shows_while_a_dump_runs(
    kept: ConnectionParams, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[bytes] = []
    real = storage.Digest.add

    def look(self: storage.Digest, chunk: bytes) -> None:
        children = Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text()
        shown.extend(Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children.split())
        real(self, chunk)

    monkeypatch.setattr(storage.Digest, "add", look)

    dump_database(kept, path, tenant_key="acme")

    assert any(b"pg_dump" in command for command in shown)
    assert not any(kept.password.encode() in command for command in shown)


def test_a_dump_is_never_in_memory_as_a_whole(
    kept: ConnectionParams, path: Path, source_owner: connection
) -> None:
    add_noise(source_owner, rows=70_000)
    tracemalloc.start()
    dump = dump_database(kept, path, tenant_key="acme")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert dump.written.bytes > 5 * 1024 * 1024
    assert peak < 4 * 1024 * 1024


def test_the_name_of_the_scratch_database_is_never_cut_so_that_tenants_share_it() -> None:
    # Gotcha 13.
    one, other = scratch_name("k" * 47 + "1"), scratch_name("k" * 47 + "2")

    assert one != other
    assert max(len(one), len(other)) <= 63


def test_the_programs_of_this_machine_fit_the_source(source_server: PostgresServer) -> None:
    found = find_programs(source_server.installation.major)

    assert found.major >= source_server.installation.major
    assert os.access(found.folder / "pg_dump", os.X_OK)
