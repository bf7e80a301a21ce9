"""A rollback loses no write, and leaves the tenant on its source, still followed."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import pytest

from move_stage import Stage, rows, written
from rollback_stage import aliases, assert_back, create_table, who
from tenantferry.connections import (
    open_admin_console,
    open_client_connection,
    open_connection,
)
from tenantferry.control.registry import SupersededError
from tenantferry.control.streams import require_stream
from tenantferry.errors import PermanentError
from tenantferry.local.postgres import PostgresServer
from tenantferry.lsn import parse_lsn
from tenantferry.moves.backfill import backfill
from tenantferry.moves.cutover import cutover
from tenantferry.moves.move import Move
from tenantferry.moves.probe import probe
from tenantferry.moves.rollback import rollback
from tenantferry.moves.validate import validate
from traffic_clients import Writers


def test_rollback_under_load_loses_no_write_and_fails_none(
    live: Stage, before: tuple[list[str], str]
) -> None:
    with Writers([live.client] * 4) as writers:
        writers.wait_for(100)
        summary = rollback(live.move)
        writers.wait_for(100)

    assert writers.errors == []
    assert written(live, "source") == sorted(writers.acknowledged)
    assert len(written(live, "target")) <= len(writers.acknowledged) - 100
    assert summary.write_pause_ms < 500, summary.steps
    assert list(summary.steps) == [
        "paused", "fenced", "drained", "sequences", "flipped", "resumed",
    ]  # fmt: skip
    assert_back(live, before[0])
    assert aliases(live) == before[1]
    assert rollback(live.move) == summary
    assert probe(live.move).database == live.move.source.database


def test_nobody_gets_into_the_target_as_the_tenant_any_more(live: Stage) -> None:
    password = aliases(live).rpartition("password=")[2].split()[0]
    direct = replace(live.move.target, user="tenant_acme", password=password)
    open_client_connection(direct, purpose="stale pooler").close()

    rollback(live.move)

    with pytest.raises(PermanentError) as refused:
        open_client_connection(direct, purpose="stale pooler")
    assert "not permitted to log in" in refused.value.detail
    assert password not in aliases(live)


def test_no_reverse_slot_is_left_when_the_last_tenant_went_back(live: Stage) -> None:
    rollback(live.move)

    assert rows(live.target, "SELECT slot_name FROM pg_replication_slots") == []
    assert rows(live.target, "SELECT pubname FROM pg_publication") == []


def test_sequences_go_on_where_the_target_has_left_them(live: Stage) -> None:
    handed_out = [
        number
        for _ in range(3)
        for (number,) in live.ask("INSERT INTO counted (note) VALUES ('target') RETURNING id")
    ]
    live.ask("SELECT nextval('counted_id_seq')")  # nobody's key

    summary = rollback(live.move)

    assert handed_out == [10, 11, 12]
    assert summary.sequences == {"counted_id_seq": 14}
    assert live.ask("INSERT INTO counted (note) VALUES ('source') RETURNING id") == [(14,)]


def test_rollback_keeps_what_was_changed_and_deleted_since(live: Stage) -> None:
    live.ask("UPDATE counted SET note = 'new' WHERE id = 3 RETURNING id")
    live.ask("DELETE FROM counted WHERE id = 4 RETURNING id")

    rollback(live.move)

    assert live.ask("SELECT id, note FROM counted WHERE id < 6 ORDER BY id") == [
        (1, "old"), (2, "old"), (3, "new"), (5, "old"),
    ]  # fmt: skip


def test_changes_made_to_the_alias_since_the_cutover_are_kept(
    live: Stage, before: tuple[list[str], str]
) -> None:
    text = aliases(live).replace("\nacme = ", "\nglobex = host=elsewhere\nacme = pool_size=7 ")
    live.pooler.aliases_file.write_text(text, "utf-8")
    with closing(open_admin_console(live.pooler.admin, purpose="test")) as console:
        rows(console, "RELOAD")

    rollback(live.move)

    [line] = [line for line in aliases(live).splitlines() if line.startswith("acme = ")]
    [former] = [line for line in before[1].splitlines() if line.startswith("acme = ")]
    assert sorted(line.split()) == sorted([*former.split(), "pool_size=7"])
    assert "\nglobex = host=elsewhere\n" in aliases(live)
    assert "tenantferry" not in aliases(live)


def test_rollback_carries_what_is_written_to_a_table_that_was_just_created(live: Stage) -> None:
    create_table(live)

    def write(step: str) -> None:
        if step == "prepared":
            live.ask("INSERT INTO added VALUES (DEFAULT, 1, 'x') RETURNING id")

    rollback(live.move, on_step=write)

    assert live.ask("SELECT id FROM added") == [(1,)]


def test_a_session_that_sleeps_in_the_target_past_the_pooler_is_ended_and_writes_nothing(
    live: Stage,
) -> None:
    password = aliases(live).rpartition("password=")[2].split()[0]
    direct = replace(live.move.target, user="tenant_acme", password=password)
    with closing(open_client_connection(direct, purpose="cron")) as cron:
        rows(cron, "INSERT INTO written VALUES (1)")

        rollback(live.move)

        with pytest.raises(Exception, match="terminat"):
            cron.commit()
    assert written(live, "source") == written(live, "target") == []


def test_the_next_stream_begins_where_the_log_of_the_source_is_flushed(
    live: Stage, source_server: PostgresServer
) -> None:
    """Else the source could crash, and its log end before P."""
    flushed: list[str] = []
    with closing(open_connection(source_server.superuser, purpose="test")) as session:

        def look(step: str) -> None:
            if step == "sequences":
                # Its end would flush it, soon at least.
                rows(session, "SELECT pg_logical_emit_message(false, 'x', 'x')")
            elif step == "files":
                [(lsn,)] = rows(session, "SELECT pg_current_wal_flush_lsn()::text")
                flushed.append(lsn)

        rollback(live.move, on_step=look)

    [lsn] = flushed
    assert parse_lsn(lsn) >= require_stream(live.target, "acme").position


def test_rollback_succeeds_whatever_the_application_sees_so_that_the_stream_begins(
    live: Stage, before: tuple[list[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Move) -> None:
        raise PermanentError("the application cannot read")

    monkeypatch.setattr("tenantferry.moves.rollback.probe", fail)

    rollback(live.move)

    assert_back(live, before[0])


def test_steps_of_the_run_that_was_rolled_back_are_refused_and_say_who_has_the_tenant(
    live: Stage,
) -> None:
    rollback(replace(live.move, run_id="rollback run"))

    for step in (backfill, validate, cutover, probe):
        with pytest.raises(SupersededError, match='run "rollback run" has tenant "acme"'):
            step(live.move)

    assert backfill(replace(live.move, run_id=None)).rows == 9
    assert who(live) == "app_owner"


def test_the_slot_that_the_cutover_could_not_drop_serves_the_next_stream(live: Stage) -> None:
    rows(
        live.source,
        "SELECT pg_create_logical_replication_slot('tenantferry_acme', 'pgoutput')",
    )
    [(restart,)] = rows(live.source, "SELECT restart_lsn FROM pg_replication_slots"
                        " WHERE slot_name = 'tenantferry_acme'")  # fmt: skip

    rollback(live.move)

    assert rows(live.source, "SELECT restart_lsn FROM pg_replication_slots"
                " WHERE slot_name = 'tenantferry_acme'") == [(restart,)]  # fmt: skip


def test_connection_params_of_the_application_reach_neither_side_while_it_is_decided(
    live: Stage,
) -> None:
    password = aliases(live).rpartition("password=")[2].split()[0]
    here = replace(live.move.source, user="app_owner", password="owner")
    there = replace(live.move.target, user="tenant_acme", password=password)
    refused: set[tuple[str, str]] = set()

    def knock(step: str) -> None:
        for params in (here, there):
            try:
                open_client_connection(params, purpose="stranger").close()
            except PermanentError:
                refused.add((step, params.user))

    rollback(live.move, on_step=knock)

    for step in ("fenced", "drained", "sequences", "files", "flipped"):
        assert {(step, "app_owner"), (step, "tenant_acme")} <= refused
    assert ("resumed", "tenant_acme") in refused
    assert ("resumed", "app_owner") not in refused
