from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from move_stage import Stage, rows
from tenantferry.archive import programs
from tenantferry.archive.storage import StorageLostError
from tenantferry.connections import (
    ConnectionParams,
    open_client_connection,
    open_connection,
)
from tenantferry.control.direction import Direction
from tenantferry.control.graces import Grace
from tenantferry.control.phases import IllegalPhaseError, Phase
from tenantferry.errors import PermanentError, TransientError
from tenantferry.local.accounts import free_port
from tenantferry.local.postgres import PostgresServer
from tenantferry.lsn import parse_lsn
from tenantferry.moves import sessions
from tenantferry.moves.archiving import ArchiveSummary, archive_source, verify_archive
from tenantferry.moves.cutover import cutover
from tenantferry.moves.retire import (
    Approval,
    LockSummary,
    begin_retire,
    find_retirable,
    lock_source,
)
from tenantferry.reverse.positions import begin_position
from tenantferry.stream.handshake import wait_for_position
from tenantferry.traffic.fence import ForeignSessionError, plan_fence, raise_fence

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
def live(
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
def over(live: Retiring) -> Retiring:
    """A live tenant whose grace is over."""
    live.ask("UPDATE tenantferry.graces SET ends_at = now() - interval '1 hour'")
    return live


def test_a_retired_tenant_has_a_proved_dump_and_a_source_that_nobody_gets_into(
    over: Retiring,
) -> None:
    over.begin()
    archived = over.archive()
    verified = over.verify()
    locked = over.lock()

    assert over.stage.phase() == Phase.RETIRED
    assert (archived.tables, archived.rows, archived.is_verified) == (2, 9, False)
    assert verified == replace(archived, is_verified=True)
    assert archived.url == str(over.dump)
    assert over.dump.stat().st_size == archived.bytes
    assert not over.is_open()
    assert locked.reverse_slot_dropped
    assert over.ask("SELECT count(*) FROM pg_replication_slots") == [(0,)]
    assert over.ask_source("SELECT count(*) FROM public.counted") == "9"
    assert over.ask_source(
        "SELECT (SELECT count(*) FROM pg_replication_slots WHERE database = current_database())"
        " + (SELECT count(*) FROM pg_publication)"
        " + (SELECT count(*) FROM pg_namespace WHERE nspname = 'tenantferry')"
    ) == "0"  # fmt: skip
    assert over.scratch_databases() == []
    assert over.stage.ask("INSERT INTO counted (note) VALUES ('goes on') RETURNING id") == [(10,)]


def test_each_verb_of_a_retired_tenant_finds_its_work_done(over: Retiring) -> None:
    over.begin()
    over.archive()
    verified = over.verify()
    locked = over.lock()
    before = over.dump.stat().st_mtime_ns
    changes = over.ask("SELECT count(*) FROM tenantferry.phase_changes")

    assert over.begin() == Phase.RETIRED
    assert (over.archive(), over.verify(), over.lock()) == (verified, verified, locked)

    assert over.dump.stat().st_mtime_ns == before
    assert over.ask("SELECT count(*) FROM tenantferry.phase_changes") == changes


def test_the_application_is_let_in_again_by_what_a_superuser_is_told(over: Retiring) -> None:
    over.begin()
    over.archive()
    over.verify()
    unlock = over.lock().unlock
    app = replace(over.stage.move.source, user="app_owner", password="owner")
    with pytest.raises(PermanentError, match=IS_CLOSED):
        open_connection(app, purpose="app")

    over.source_server.psql("-c", unlock)

    with closing(open_connection(app, purpose="app", autocommit=True)) as session:
        assert rows(session, "SELECT count(*) FROM public.counted") == [(9,)]
        assert rows(session, "SHOW default_transaction_read_only") == [("off",)]
    assert over.is_open()
    assert [(unlock,)] == over.ask("SELECT unlock FROM tenantferry.archives")


def test_a_tenant_in_grace_is_not_retired(live: Retiring) -> None:
    with pytest.raises(PermanentError, match="is not over") as caught:
        live.begin()

    assert "It lasts until" in caught.value.detail
    assert live.stage.phase() == Phase.LIVE
    assert live.ask("SELECT count(*) FROM tenantferry.graces WHERE ended_at IS NULL") == [(1,)]
    assert find_retirable(live.stage.move.target, {"acme"}) == []


def test_a_lost_way_back_does_not_shorten_the_grace(live: Retiring) -> None:
    live.ask("UPDATE tenantferry.graces SET lost_at = now(), lost_reason = 'Too far behind.'")

    with pytest.raises(PermanentError, match="is not over"):
        live.begin()


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


def test_find_retirable_names_those_past_grace_and_those_that_were_interrupted(
    over: Retiring,
) -> None:
    [found] = find_retirable(over.stage.move.target, {"acme", "globex"})
    assert (found.tenant, found.phase, found.lost_reason) == ("acme", Phase.LIVE, None)
    assert found.attempt == over.approval.attempt
    assert found.live_since is not None

    over.begin()
    [found] = find_retirable(over.stage.move.target, {"acme"})
    assert (found.phase, found.live_since) == (Phase.RETIRING, None)
    assert found.attempt == over.approval.attempt

    assert find_retirable(over.stage.move.target, {"globex"}) == []


def test_find_retirable_finds_nothing_in_a_target_without_control_schema(
    over: Retiring, target_server: PostgresServer
) -> None:
    assert find_retirable(over.stage.move.target.with_database("postgres"), {"acme"}) == []


def test_begin_ends_the_reverse_stream_of_the_tenant(live: Retiring) -> None:
    with live.stage.reversing():
        live.stage.ask("INSERT INTO counted (note) VALUES ('still followed')")
        [(lsn,)] = live.ask("SELECT pg_current_wal_flush_lsn()::text")
        wait_for_reverse(live, lsn)
        live.ask("UPDATE tenantferry.graces SET ends_at = now()")
        live.begin()
        live.stage.ask("INSERT INTO counted (note) VALUES ('not any more')")
        archived = live.archive()

    assert archived.rows == 10
    assert live.ask("SELECT end_reason FROM tenantferry.graces") == [("retired",)]
    assert live.ask("SELECT tenant FROM tenantferry.streams WHERE direction = 'reverse'") == []


def wait_for_reverse(live: Retiring, lsn_text: str) -> None:
    wait_for_position(
        live.stage.move.target, "acme", parse_lsn(lsn_text), timeout_seconds=30,
        direction=Direction.REVERSE,
    )  # fmt: skip


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


def test_targets_that_share_a_folder_keep_their_dumps_apart(over: Retiring) -> None:
    over.begin()
    over.archive()
    mine = over.dump.read_bytes()
    # Another target's tenant of that name, after as many cutovers.
    over.ask("ALTER TABLE tenantferry.archives RENAME TO archives_here")
    over.ask("CREATE TABLE tenantferry.archives (LIKE tenantferry.archives_here INCLUDING ALL)")
    over.ask(
        "INSERT INTO tenantferry.archives (tenant, attempt)"
        " SELECT tenant, attempt FROM tenantferry.archives_here"
    )
    over.archive()

    assert len(list(over.dump.parent.iterdir())) == 2
    over.ask("DROP TABLE tenantferry.archives")
    over.ask("ALTER TABLE tenantferry.archives_here RENAME TO archives")
    assert over.dump.read_bytes() == mine


def test_a_dump_that_is_looked_for_elsewhere_is_not_taken_for_damaged(over: Retiring) -> None:
    over.begin()
    over.archive()

    with pytest.raises(PermanentError, match="not where the fleet file says"):
        verify_archive(over.stage.move, over.folder / "other", over.server)


def test_a_retirement_that_is_killed_after_every_step_goes_on_where_it_was(over: Retiring) -> None:
    over.begin()
    for step in ("closed", "dumped", "recorded"):
        over.run_and_kill("archive", step)
        assert over.ask("SELECT dumped_at IS NOT NULL FROM tenantferry.archives") == [
            (step == "recorded",)
        ]
    archived = over.archive()
    assert over.dump.stat().st_size == archived.bytes
    assert [path.name for path in over.dump.parent.iterdir()] == [over.dump.name]
    over.run_and_kill("verify", "restored")
    over.run_and_kill("verify", "recorded")
    assert over.verify().is_verified
    assert over.scratch_databases() == []
    for step in ("cleared", "locking", "locked", "recorded", "reverse slot"):
        assert over.is_open() == (step in ("cleared", "locking", "locked"))
        over.run_and_kill("lock", step)
        assert over.is_open() == (step in ("cleared", "locking"))
        is_over = step in ("recorded", "reverse slot")
        assert over.stage.phase() == (Phase.RETIRED if is_over else Phase.RETIRING)

    locked = over.lock()

    assert over.stage.phase() == Phase.RETIRED
    assert locked.reverse_slot_dropped
    over.source_server.psql("-c", locked.unlock)
    assert over.is_open()


def test_a_source_that_is_away_is_not_taken_for_locked(over: Retiring) -> None:
    over.begin()
    over.archive()
    over.verify()
    over.run_and_kill("lock", "locked")
    away = replace(over.stage.move, source=replace(over.stage.move.source, port=free_port()))

    with pytest.raises(TransientError, match=IS_CLOSED):
        lock_source(away, over.folder)

    assert over.stage.phase() == Phase.RETIRING


def test_a_source_that_refuses_us_before_we_locked_it_is_not_taken_for_locked(
    over: Retiring,
) -> None:
    over.begin()
    over.archive()
    over.verify()
    database = over.stage.move.source.database
    over.source_server.psql("-c", f"REVOKE CONNECT ON DATABASE {database} FROM tenantferry")

    with pytest.raises(PermanentError, match=IS_CLOSED):
        over.lock()

    assert over.stage.phase() == Phase.RETIRING


def test_a_source_that_is_gone_already_can_be_recorded_as_locked(over: Retiring) -> None:
    over.begin()
    over.archive()
    over.verify()
    gone = replace(over.stage.move, source=replace(over.stage.move.source, port=free_port()))
    over.ask("UPDATE tenantferry.archives SET locked_at = now()")

    lock_source(gone, over.folder)

    assert over.stage.phase() == Phase.RETIRED


def test_the_reverse_slot_stays_while_another_tenant_can_go_back(over: Retiring) -> None:
    over.ask(
        "INSERT INTO tenantferry.tenants (tenant, tenant_id, phase, source_identity)"
        " VALUES ('globex', gen_random_uuid(), 'live', '1/globex');"
        "INSERT INTO tenantferry.write_pauses (tenant, deadline, resumed_at)"
        " VALUES ('globex', now(), now());"
        "INSERT INTO tenantferry.graces (tenant, attempt, start_lsn, ends_at)"
        " SELECT 'globex', max(id), '0/1', now() + interval '1 day' FROM tenantferry.write_pauses"
    )
    over.begin()
    over.archive()
    over.verify()

    assert not over.lock().reverse_slot_dropped
    assert over.ask("SELECT count(*) FROM pg_replication_slots") == [(1,)]


def test_a_password_that_cannot_be_removed_from_the_alias_file_is_not_passed_over(
    over: Retiring,
) -> None:
    move, file = over.stage.move, over.stage.pooler.aliases_file
    over.begin()
    over.archive()
    over.verify()
    kept = file.rename(file.with_name("kept"))
    with pytest.raises(PermanentError, match=file.name):
        over.lock()
    kept.rename(file)
    assert move.source.database in file.read_text("utf-8")

    over.lock()

    assert move.source.database not in file.read_text("utf-8")


def test_the_password_of_the_source_leaves_the_alias_file_with_it(over: Retiring) -> None:
    file = over.stage.pooler.aliases_file
    over.begin()
    over.archive()
    over.verify()
    assert over.stage.move.source.database in file.read_text("utf-8")

    over.lock()

    assert over.stage.move.source.database not in file.read_text("utf-8")
    assert over.stage.ask("SELECT current_user::text") == [("tenant_acme",)]
