"""What is not retired, not dumped and not locked, and stays as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from move_stage import Stage, rows
from retire_stage import Retiring
from tenantferry.archive import programs
from tenantferry.archive.storage import StorageLostError
from tenantferry.connections import ConnectionParams, open_client_connection, open_connection
from tenantferry.control.graces import Grace
from tenantferry.control.phases import IllegalPhaseError, Phase
from tenantferry.errors import PermanentError, TransientError
from tenantferry.moves import sessions
from tenantferry.moves.archiving import archive_source, verify_archive
from tenantferry.moves.retire import Approval, begin_retire, find_retirable, lock_source
from tenantferry.reverse.positions import begin_position
from tenantferry.traffic.fence import ForeignSessionError, plan_fence, raise_fence


def test_a_tenant_in_grace_is_not_retired(in_grace: Retiring) -> None:
    with pytest.raises(PermanentError, match="is not over") as caught:
        in_grace.begin()

    assert "It lasts until" in caught.value.detail
    assert in_grace.stage.phase() == Phase.LIVE
    assert in_grace.ask("SELECT count(*) FROM tenantferry.graces WHERE ended_at IS NULL") == [(1,)]
    assert find_retirable(in_grace.stage.move.target, {"acme"}) == []


def test_a_lost_way_back_does_not_shorten_the_grace(in_grace: Retiring) -> None:
    in_grace.ask("UPDATE tenantferry.graces SET lost_at = now(), lost_reason = 'Too far behind.'")

    with pytest.raises(PermanentError, match="is not over"):
        in_grace.begin()


def test_a_tenant_that_is_not_live_is_not_retired(stage: Stage, tmp_path: Path) -> None:
    with pytest.raises(IllegalPhaseError, match='in phase "validated"'):
        begin_retire(stage.move, Approval("acme", 1), tmp_path, stage.move.source)


@pytest.mark.parametrize("phase", [Phase.LIVE, Phase.RETIRING], ids=str)
def test_an_approval_for_another_tenant_or_an_earlier_cutover_retires_nobody(
    over: Retiring, phase: Phase
) -> None:
    approval = over.approval
    if phase is Phase.RETIRING:
        over.begin()

    for wrong in (
        replace(approval, tenant="globex"),
        replace(approval, attempt=approval.attempt - 1),
    ):
        with pytest.raises(PermanentError, match="nobody has approved"):
            begin_retire(over.stage.move, wrong, over.folder, over.server)

    assert over.stage.phase() == phase


def test_the_way_back_stays_while_the_source_could_not_be_archived(
    over: Retiring, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = over.stage.move.source.database
    superuser = over.source_server.psql

    superuser("-c", f"GRANT CONNECT ON DATABASE {database} TO PUBLIC")
    with pytest.raises(PermanentError, match="not fenced any more"):
        over.begin()
    superuser("-c", f"REVOKE CONNECT ON DATABASE {database} FROM PUBLIC")

    superuser("-c", "ALTER ROLE tenantferry NOCREATEDB")
    with pytest.raises(PermanentError, match="cannot create a database"):
        over.begin()
    superuser("-c", "ALTER ROLE tenantferry CREATEDB")

    (tmp_path / "file").touch()
    with pytest.raises(StorageLostError, match="could not write"):
        replace(over, folder=tmp_path / "file").begin()

    with monkeypatch.context() as without:
        without.setenv("PATH", "/nowhere")
        without.setattr(programs, "_PACKAGES", ())
        with pytest.raises(PermanentError, match="no pg_dump here"):
            over.begin()

    assert over.stage.phase() == Phase.LIVE
    assert over.ask("SELECT count(*) FROM tenantferry.graces WHERE ended_at IS NULL") == [(1,)]
    assert over.begin() == Phase.RETIRING
    assert list((over.folder / "acme").iterdir()) == []


def test_nothing_is_archived_or_locked_before_retiring_has_begun(over: Retiring) -> None:
    for verb in (over.archive, over.verify, over.lock):
        with pytest.raises(IllegalPhaseError, match="not being retired"):
            verb()

    assert over.is_open()
    assert not over.folder.exists()


def test_a_source_that_somebody_opened_is_neither_dumped_nor_locked(over: Retiring) -> None:
    over.begin()
    database = over.stage.move.source.database
    over.source_server.psql("-c", f"GRANT CONNECT ON DATABASE {database} TO PUBLIC")

    with pytest.raises(PermanentError, match="not fenced any more"):
        over.archive()

    assert not over.dump.exists()


@pytest.fixture
def other_source(over: Retiring) -> Iterator[ConnectionParams]:
    """Another database of the source's server, fenced as a cutover does it."""
    server, params = over.source_server, over.stage.move.source
    name = f"{params.database}_other"
    server.psql("-c", f"CREATE DATABASE {name} OWNER app_owner")
    with closing(
        open_connection(params.with_database(name), purpose="fence", autocommit=True)
    ) as session:
        rows(
            session,
            "CREATE SCHEMA tenantferry;"
            "CREATE TABLE tenantferry.reverse_positions (grace bigint, closed_at timestamptz);"
            "INSERT INTO tenantferry.reverse_positions VALUES (1)",
        )
        raise_fence(session, plan_fence(session), timeout_seconds=5)
    yield params.with_database(name)
    server.psql("-c", f"DROP DATABASE {name} WITH (FORCE)")


def test_another_database_than_the_tenants_is_neither_dumped_nor_locked(
    over: Retiring, other_source: ConnectionParams
) -> None:
    wrong = replace(over.stage.move, source=other_source)
    access = (
        "SELECT datname, datacl, datconnlimit FROM pg_database WHERE datname LIKE 'source%'"
        " ORDER BY 1"
    )
    over.begin()
    before = over.source_server.psql("-c", access)

    with pytest.raises(PermanentError, match="not the one that it was prepared from"):
        archive_source(wrong, over.folder)
    assert not over.dump.exists()

    over.archive()
    over.verify()
    with pytest.raises(PermanentError, match="not the one that it was prepared from"):
        lock_source(wrong, over.folder)

    assert over.source_server.psql("-c", access) == before
    assert over.stage.phase() == Phase.RETIRING
    position = "SELECT count(*) FROM tenantferry.reverse_positions WHERE closed_at IS NULL"
    assert over.source_server.psql("-c", position, database=other_source.database) == "1"


def test_a_session_that_was_let_in_is_found_before_the_dump_also_behind_a_mended_fence(
    over: Retiring,
) -> None:
    over.begin()
    database = over.stage.move.source.database
    app = replace(over.stage.move.source, user="app_owner", password="owner")
    over.source_server.psql("-c", f"GRANT CONNECT ON DATABASE {database} TO app_owner")
    with closing(open_client_connection(app, purpose="app")) as session, session:
        rows(session, "SET default_transaction_read_only = off")
        over.source_server.psql("-c", f"REVOKE CONNECT ON DATABASE {database} FROM app_owner")

        with pytest.raises(ForeignSessionError, match="through the fence"):
            over.archive()
        assert not over.dump.exists()


def test_a_reverse_stream_that_hangs_is_not_waited_for_without_a_word(
    over: Retiring, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "_SOURCE_LOCK_TIMEOUT", "200ms")
    over.begin()
    now = datetime.now(UTC)
    with closing(open_connection(over.stage.move.source, purpose="reverse acme")) as hung:
        begin_position(hung, Grace(1, "acme", 1, 1, now, now, None, None))
        hung.commit()
        rows(hung, "SELECT FROM tenantferry.reverse_positions FOR UPDATE")

        with pytest.raises(TransientError, match="could not get a lock on the source") as caught:
            over.archive()

    assert "reverse_positions" in caught.value.detail


def test_whoever_passes_the_fence_after_the_dump_keeps_the_source_open_until_it_is_dumped_again(
    over: Retiring,
) -> None:
    over.begin()
    over.archive()
    over.verify()
    database = over.source_server.superuser.with_database(over.stage.move.source.database)
    with closing(open_connection(database, purpose="dba", autocommit=True)) as dba:
        with pytest.raises(ForeignSessionError, match="cannot be ended by us"):
            over.lock()
        rows(dba, "INSERT INTO public.counted (note) VALUES ('late')")
        # Without a timeout it would return before the session is gone.
        over.source_server.psql("-c", f"SELECT pg_terminate_backend({dba.info.backend_pid}, 9999)")

    with pytest.raises(PermanentError, match="has changed since it was dumped") as caught:
        over.lock()

    assert caught.value.detail == "public.counted has 10 rows instead of 9 rows."
    assert over.is_open()
    with pytest.raises(PermanentError, match="was not verified"):
        over.lock()
    assert over.archive().rows == 10
    over.verify()
    over.lock()
    assert over.stage.phase() == Phase.RETIRED


def test_a_source_whose_dump_was_not_verified_is_not_locked(over: Retiring) -> None:
    over.begin()
    over.archive()

    with pytest.raises(PermanentError, match="was not verified"):
        over.lock()

    assert over.is_open()


def test_a_damaged_dump_keeps_the_source_open_until_another_one_was_verified(
    over: Retiring,
) -> None:
    over.begin()
    over.archive()
    data = bytearray(over.dump.read_bytes())
    data[len(data) // 2] ^= 1
    over.dump.write_bytes(data)
    with pytest.raises(PermanentError, match="not the dump that was written"):
        over.verify()
    with pytest.raises(PermanentError, match="was not verified"):
        over.lock()
    assert over.is_open()

    over.archive()
    over.verify()
    over.lock()

    assert over.stage.phase() == Phase.RETIRED


def test_a_verified_dump_that_is_gone_keeps_the_source_open_until_it_is_dumped_again(
    over: Retiring,
) -> None:
    over.begin()
    over.archive()
    over.verify()
    over.dump.unlink()

    with pytest.raises(PermanentError, match="not kept any more"):
        over.lock()
    assert over.is_open()

    assert not over.archive().is_verified
    over.verify()
    over.lock()
    assert over.stage.phase() == Phase.RETIRED


def test_a_dump_that_is_looked_for_elsewhere_is_not_taken_for_damaged(over: Retiring) -> None:
    over.begin()
    over.archive()

    with pytest.raises(PermanentError, match="not where the fleet file says"):
        verify_archive(over.stage.move, over.folder / "other", over.server)
