"""A retirement that dies or fails half-way goes on where it was, and guesses nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from retire_stage import IS_CLOSED, Retiring
from tenantferry.control.phases import Phase
from tenantferry.errors import PermanentError, TransientError
from tenantferry.local.accounts import free_port
from tenantferry.moves.retire import lock_source


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
