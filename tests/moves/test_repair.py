"""A validation that is told to repair copies the chunks that differ once more, and no others."""

from __future__ import annotations

from dataclasses import replace

import pytest

from move_stage import Stage, rows
from tenantferry.control.phases import Phase
from tenantferry.control.streams import mark_copy_again
from tenantferry.errors import TransientError
from tenantferry.moves import repair
from tenantferry.moves import validate as validating
from tenantferry.moves.backfill import backfill
from tenantferry.moves.cutover import cutover
from tenantferry.moves.lag import measure_lag
from tenantferry.moves.move import Move
from tenantferry.moves.validate import MismatchError, validate

# The stream of the stage ends where another one begins.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")

OTHER_ID = "22222222-2222-2222-2222-222222222222"
DAMAGES = {
    "changed": "UPDATE public.counted SET note = 'changed by hand' WHERE id = 5",
    "missing": "DELETE FROM public.counted WHERE id = 5",
    "extra": "UPDATE public.counted SET id = 6000 WHERE id = 6",
}
VERSIONS = "SELECT id, xmin::text, ctid::text FROM public.counted WHERE {} ORDER BY tenant_id, id"


@pytest.fixture
def move(move: Move) -> Move:
    """Nine rows are three chunks."""
    return replace(move, tenant=move.tenant.model_copy(update={"chunk_rows": 3}))


@pytest.mark.parametrize("damage", DAMAGES)
def test_repair_copies_only_the_chunks_that_differ(stage: Stage, damage: str) -> None:
    rows(stage.target, "INSERT INTO public.counted (tenant_id, id) VALUES (%s, 5)", OTHER_ID)
    rows(stage.target, DAMAGES[damage])
    sound = VERSIONS.format(f"id <= 3 OR tenant_id = '{OTHER_ID}'")
    before = rows(stage.target, sound)

    with stage.streaming_again():
        rows(stage.source, "INSERT INTO public.counted (id, note) VALUES (-1, 'written meanwhile')")
        result = validate(stage.move, repair=True)

    assert (result.mismatches, result.rows) == (0, 10)
    assert stage.phase() == Phase.VALIDATED
    assert rows(stage.target, sound)[1:] == before
    assert rows(stage.target, "SELECT mismatches > 0 FROM tenantferry.validations ORDER BY id") == [
        (False,),
        (True,),
        (False,),
    ]


def test_validate_repairs_nothing_unless_it_is_told_to(stage: Stage) -> None:
    rows(stage.target, DAMAGES["changed"])
    damaged = rows(stage.target, VERSIONS.format("true"))

    with stage.streaming_again(), pytest.raises(MismatchError, match='"repair"'):
        validate(stage.move)

    assert rows(stage.target, VERSIONS.format("true")) == damaged
    assert stage.phase() == Phase.STREAMING


def test_a_run_that_repairs_copies_nothing_else_again(stage: Stage) -> None:
    rows(stage.target, DAMAGES["changed"])
    sound = rows(stage.target, VERSIONS.format("id <= 3"))

    with stage.streaming_again():
        with pytest.raises(MismatchError):
            validate(stage.move)
        backfill(stage.move, repair=True)
        result = validate(stage.move, repair=True)

    assert result.mismatches == 0
    assert rows(stage.target, VERSIONS.format("id <= 3")) == sound


def test_a_run_repairs_also_what_a_cutover_has_found_row_by_row(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validating, "MAX_LAST_KEYS", 0)
    sound = rows(stage.target, VERSIONS.format("id <= 3"))

    with stage.streaming_again():
        stage.ask("UPDATE counted SET note = 'changed' WHERE id = 5 RETURNING 1")
        measure_lag(stage.move)
        rows(stage.target, DAMAGES["changed"])
        with pytest.raises(MismatchError, match="id=5"):
            cutover(stage.move)
        backfill(stage.move, repair=True)
        result = validate(stage.move, repair=True)

    assert result.mismatches == 0
    assert rows(stage.target, VERSIONS.format("id <= 3")) == sound


def test_a_run_that_repairs_copies_all_again_where_nothing_less_helps(stage: Stage) -> None:
    before = rows(stage.target, VERSIONS.format("true"))
    mark_copy_again(stage.target, "acme", needed=True)
    # A mismatch that comes on top of it does not make it better.
    mark_copy_again(stage.target, "acme", needed=True, repairable=True)

    backfill(stage.move, repair=True)

    after = rows(stage.target, VERSIONS.format("true"))
    assert not set(after) & set(before)


@pytest.mark.parametrize("step", [validate, backfill], ids=["validate", "backfill"])
def test_a_repair_that_died_is_gone_on_with(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, step: object
) -> None:
    rows(stage.target, DAMAGES["changed"])
    sound = rows(stage.target, VERSIONS.format("id <= 3"))

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with stage.streaming_again():
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(repair, "copy_in_step", die)
            validate(stage.move, repair=True)
        assert stage.phase() == Phase.BACKFILLING
        with pytest.raises(TransientError, match="backfilling"):
            validate(stage.move)
        if step is backfill:
            backfill(stage.move)
        result = validate(stage.move, repair=True)

    assert result.mismatches == 0
    assert rows(stage.target, VERSIONS.format("id <= 3")) == sound
