"""Every step may be asked for in every phase: it does its work, finds it done, or says "later"."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from move_stage import Stage, rows
from tenantferry.control.phases import Phase
from tenantferry.errors import PermanentError, TransientError
from tenantferry.moves.backfill import backfill
from tenantferry.moves.cutover import cutover
from tenantferry.moves.lag import measure_lag
from tenantferry.moves.preflight import AlreadyLiveError, preflight
from tenantferry.moves.prepare import prepare
from tenantferry.moves.probe import probe
from tenantferry.moves.stream import stream
from tenantferry.moves.validate import MismatchError, validate

# The stream that the stage hosts ends where its slot is replaced.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


def count_rows(stage: Stage) -> list[tuple[object, ...]]:
    return rows(stage.target, "SELECT count(*), sum(id) FROM public.counted")


def set_phase(stage: Stage, phase: Phase) -> None:
    rows(stage.target, "UPDATE tenantferry.tenants SET phase = %s", phase)


def test_every_step_of_a_live_tenant_finds_it_live(stage: Stage) -> None:
    move = stage.move
    cutover(move)
    stage.ask("INSERT INTO counted (note) VALUES ('after the cutover') RETURNING id")
    before = count_rows(stage)

    assert preflight(move).already_live
    prepare(move)
    assert backfill(move).rows == 9
    assert stream(move, stop=threading.Event()).reason
    assert measure_lag(move) == 0.0
    assert validate(move).mismatches == 0
    cutover(move)
    probe(move)

    assert stage.phase() == Phase.LIVE
    assert count_rows(stage) == before


def test_preflight_of_another_run_refuses_a_live_tenant(stage: Stage) -> None:
    cutover(stage.move)

    with pytest.raises(AlreadyLiveError, match="already live"):
        preflight(replace(stage.move, run_id="another run"))


def test_every_early_step_of_a_streaming_tenant_finds_its_work_done(stage: Stage) -> None:
    # Of another copy, or another slot, it would be another; the stream goes on confirming the slot.
    copied = "SELECT consistent_point FROM tenantferry.rounds"
    before = rows(stage.target, copied)

    assert preflight(stage.move).planned_statements == 0
    assert prepare(stage.move).statements == 0
    assert backfill(stage.move).rows == 9

    assert stage.phase() == Phase.VALIDATED
    assert rows(stage.target, copied) == before


def test_backfill_starts_over_when_the_slot_was_dropped_by_hand(stage: Stage) -> None:
    rows(
        stage.source,
        "SELECT pg_terminate_backend(active_pid, 10000), pg_drop_replication_slot(slot_name)"
        " FROM pg_replication_slots WHERE slot_name = %s",
        stage.move.tenant.slot,
    )
    rows(stage.source, "INSERT INTO public.counted (note) VALUES ('nobody streamed this')")

    result = backfill(stage.move)

    assert result.rows == 10
    assert stage.phase() == Phase.STREAMING
    with stage.streaming():
        assert validate(stage.move).mismatches == 0


@pytest.mark.parametrize("phase", [Phase.BACKFILLING, Phase.CUTTING_OVER], ids=str)
def test_validate_waits_for_a_phase_that_passes(stage: Stage, phase: Phase) -> None:
    set_phase(stage, phase)

    with pytest.raises(TransientError, match=phase):
        validate(stage.move)


def test_stream_waits_while_the_rows_are_copied_again(stage: Stage) -> None:
    set_phase(stage, Phase.BACKFILLING)

    with pytest.raises(TransientError, match="being copied"):
        stream(stage.move, stop=threading.Event())


def test_preflight_is_tried_again_when_only_the_pooler_is_down(stage: Stage) -> None:
    stage.pooler.stop()

    with pytest.raises(TransientError):
        preflight(stage.move)


def test_backfill_copies_again_what_a_validation_found_different(stage: Stage) -> None:
    rows(stage.target, "UPDATE public.counted SET note = 'changed by hand' WHERE id = 3")
    with pytest.raises(MismatchError, match="counted"):
        validate(stage.move)

    assert backfill(stage.move).rows == 9

    with stage.streaming():
        assert validate(stage.move).mismatches == 0


def test_a_mismatch_that_was_mended_by_hand_needs_no_new_backfill(stage: Stage) -> None:
    rows(stage.target, "UPDATE public.counted SET note = 'changed by hand' WHERE id = 3")
    with pytest.raises(MismatchError, match="counted"):
        validate(stage.move)
    slot = "SELECT restart_lsn FROM pg_replication_slots WHERE slot_name = 'tenantferry_acme'"
    rows(stage.target, "UPDATE public.counted SET note = 'old' WHERE id = 3")

    assert validate(stage.move).mismatches == 0
    backfill(stage.move)

    assert stage.phase() == Phase.VALIDATED
    assert len(rows(stage.source, slot)) == 1


def test_a_table_made_after_the_backfill_is_copied_beside_the_others(stage: Stage) -> None:
    rows(stage.source, "SET ROLE app_owner")
    rows(stage.source, "CREATE TABLE public.later (id int PRIMARY KEY)")
    rows(stage.source, "INSERT INTO public.later VALUES (1), (2)")
    rows(stage.source, "RESET ROLE")
    with pytest.raises(PermanentError, match="later"):
        validate(stage.move)

    prepare(stage.move)
    result = backfill(stage.move)

    assert (result.tables, result.rows, result.rounds) == (3, 11, 2)
    with stage.streaming():
        assert validate(stage.move).rows == 11


def test_a_table_that_was_prepared_but_not_copied_keeps_the_tenant_at_its_source(
    stage: Stage,
) -> None:
    rows(stage.source, "SET ROLE app_owner")
    rows(stage.source, "CREATE TABLE public.later (id int PRIMARY KEY)")
    rows(stage.source, "INSERT INTO public.later VALUES (1), (2)")
    rows(stage.source, "RESET ROLE")
    prepare(stage.move)

    for step in (validate, cutover):
        with pytest.raises(PermanentError, match=r"not copied yet\n.*later") as refused:
            step(stage.move)
        assert '"preflight"' in refused.value.hint

    assert stage.phase() == Phase.VALIDATED


def test_a_sequence_made_after_the_preparation_goes_on_in_the_target(stage: Stage) -> None:
    rows(stage.source, "SET ROLE app_owner")
    rows(stage.source, "CREATE SEQUENCE public.ticket_no INCREMENT BY 10")
    rows(stage.source, "SELECT nextval('public.ticket_no')")
    rows(stage.source, "RESET ROLE")

    cutover(stage.move)

    assert stage.ask("SELECT nextval('ticket_no')") == [(11,)]
