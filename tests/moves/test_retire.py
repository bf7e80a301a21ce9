"""A retired tenant has a proved dump, and a source that nobody gets into."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import pytest

from move_stage import rows
from retire_stage import IS_CLOSED, Retiring
from tenantferry.connections import open_connection
from tenantferry.control.direction import Direction
from tenantferry.control.phases import Phase
from tenantferry.errors import PermanentError
from tenantferry.local.postgres import PostgresServer
from tenantferry.lsn import parse_lsn
from tenantferry.moves.retire import find_retirable
from tenantferry.stream.handshake import wait_for_position


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


def test_begin_ends_the_reverse_stream_of_the_tenant(in_grace: Retiring) -> None:
    with in_grace.stage.reversing():
        in_grace.stage.ask("INSERT INTO counted (note) VALUES ('still followed')")
        [(lsn,)] = in_grace.ask("SELECT pg_current_wal_flush_lsn()::text")
        wait_for_reverse(in_grace, lsn)
        in_grace.ask("UPDATE tenantferry.graces SET ends_at = now()")
        in_grace.begin()
        in_grace.stage.ask("INSERT INTO counted (note) VALUES ('not any more')")
        archived = in_grace.archive()

    assert archived.rows == 10
    assert in_grace.ask("SELECT end_reason FROM tenantferry.graces") == [("retired",)]
    assert in_grace.ask("SELECT tenant FROM tenantferry.streams WHERE direction = 'reverse'") == []


def wait_for_reverse(in_grace: Retiring, lsn_text: str) -> None:
    wait_for_position(
        in_grace.stage.move.target, "acme", parse_lsn(lsn_text), timeout_seconds=30,
        direction=Direction.REVERSE,
    )  # fmt: skip


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


def test_the_password_of_the_source_leaves_the_alias_file_with_it(over: Retiring) -> None:
    file = over.stage.pooler.aliases_file
    over.begin()
    over.archive()
    over.verify()
    assert over.stage.move.source.database in file.read_text("utf-8")

    over.lock()

    assert over.stage.move.source.database not in file.read_text("utf-8")
    assert over.stage.ask("SELECT current_user::text") == [("tenant_acme",)]
