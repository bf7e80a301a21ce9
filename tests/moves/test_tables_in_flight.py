"""Tables that come to a source, or go, while its tenant is on its way."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest

from move_stage import APP_PASSWORD, Stage, rows
from tenantferry.connections import open_connection
from tenantferry.control.phases import Phase
from tenantferry.errors import PermanentError, TransientError
from tenantferry.failpoints import Point, listening
from tenantferry.moves import validate as validating
from tenantferry.moves.cutover import cutover
from tenantferry.moves.lag import measure_lag
from tenantferry.moves.validate import MismatchError, validate
from tenantferry.schema.publication import check_published


def test_validate_tells_of_tables_that_came_or_went(stage: Stage) -> None:
    stage.ask("INSERT INTO public.written VALUES (1) RETURNING 1")
    measure_lag(stage.move)

    stage.ask("DROP TABLE public.written")
    with pytest.raises(PermanentError, match="does not have any more") as dropped:
        validate(stage.move)
    rows(stage.target, "DELETE FROM public.written")
    validated = validate(stage.move)
    stage.ask("CREATE TABLE public.written (id bigint PRIMARY KEY)")
    with pytest.raises(PermanentError, match="lacks tables of the source") as came:
        cutover(stage.move)

    assert "public.written" in dropped.value.detail
    assert "made again: public.written" in came.value.detail
    assert (validated.tables, validated.rows, validated.mismatches) == (1, 9, 0)


def at_the_last_moment(stage: Stage, *statements: str) -> Callable[[str], None]:
    """Let the application change its source when all is checked, and nobody waits yet."""

    def act(step: str) -> None:
        if step == "prepared":
            for statement in statements:
                stage.ask(statement)

    return act


def attempts(stage: Stage) -> list[tuple[object, ...]]:
    return rows(
        stage.target,
        "SELECT drained_at IS NOT NULL, flipped_at IS NULL AND undone_at IS NOT NULL"
        " FROM tenantferry.write_pauses ORDER BY id",
    )


# The stream meets the new column once the source is open again.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(
    "statements",
    [
        ("CREATE TABLE public.late (id int PRIMARY KEY)", "INSERT INTO late VALUES (1)"),
        (
            "DROP TABLE public.written",
            "CREATE TABLE public.written (id bigint PRIMARY KEY)",
            "INSERT INTO public.written VALUES (1)",
        ),
        ("ALTER TABLE public.counted ADD COLUMN extra int DEFAULT 5",),
        ("DROP TABLE public.written",),
    ],
    ids=["created", "made anew", "column with a default", "dropped"],
)
def test_cutover_undoes_itself_where_tables_changed_after_they_were_checked(
    stage: Stage, statements: tuple[str, ...]
) -> None:
    with pytest.raises(TransientError, match="changed since it was validated"):
        cutover(stage.move, on_step=at_the_last_moment(stage, *statements))

    assert attempts(stage) == [(True, True)]
    assert stage.phase() == Phase.VALIDATED
    assert stage.ask("INSERT INTO counted (note) VALUES ('open') RETURNING 1") == [(1,)]


CHANGE_ROWS = "ALTER TABLE public.counted ALTER COLUMN note TYPE text USING upper(note)"


def test_cutover_compares_in_the_pause_a_table_that_was_rewritten_just_before(
    stage: Stage,
) -> None:
    with pytest.raises(MismatchError, match="9 of the places"):
        cutover(stage.move, on_step=at_the_last_moment(stage, CHANGE_ROWS))

    assert attempts(stage) == [(True, True)]
    assert stage.ask("SELECT DISTINCT note FROM counted") == [("OLD",)]


def test_cutover_does_not_mind_a_table_whose_rows_moved_to_another_file(stage: Stage) -> None:
    def rewrite(step: str) -> None:
        if step == "prepared":
            owner = replace(stage.move.source, user="app_owner", password=APP_PASSWORD)
            with closing(open_connection(owner, purpose="vacuum", autocommit=True)) as session:
                rows(session, "VACUUM FULL public.counted")

    cutover(stage.move, on_step=rewrite)

    assert stage.phase() == Phase.LIVE


def test_cutover_compares_before_the_pause_a_table_that_was_rewritten_since_the_validation(
    stage: Stage,
) -> None:
    stage.ask(CHANGE_ROWS)

    with pytest.raises(MismatchError, match="differ"):
        cutover(stage.move)

    assert attempts(stage) == []
    latest = "SELECT since IS NULL, rows, mismatches FROM tenantferry.validations ORDER BY id DESC"
    assert rows(stage.target, latest)[0] == (False, 9, 9)


def test_cutover_compares_all_where_both_sides_got_a_column_of_other_values(stage: Stage) -> None:
    # Told to people as: the same change on both sides.
    rows(stage.target, "ALTER TABLE public.counted ADD COLUMN extra int DEFAULT 6")
    rows(stage.target, "ALTER TABLE public.counted ALTER COLUMN extra DROP DEFAULT")
    stage.ask("ALTER TABLE public.counted ADD COLUMN extra int DEFAULT 5")
    stage.ask("ALTER TABLE public.counted ALTER COLUMN extra DROP DEFAULT")
    stage.ask("INSERT INTO counted (note, extra) VALUES ('new', 1)")
    measure_lag(stage.move)

    with pytest.raises(MismatchError, match="differ"):
        cutover(stage.move)

    assert attempts(stage) == []
    latest = "SELECT since IS NULL, mismatches FROM tenantferry.validations ORDER BY id DESC"
    assert rows(stage.target, latest)[0] == (True, 9)


def test_cutover_compares_a_column_that_came_between_the_looks_of_its_validation(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows(stage.target, "ALTER TABLE public.counted ADD COLUMN extra int DEFAULT 6")

    def add_column(*arguments: Any) -> None:
        check_published(*arguments)
        stage.ask("ALTER TABLE public.counted ADD COLUMN IF NOT EXISTS extra int DEFAULT 5")

    with monkeypatch.context() as patch:
        patch.setattr(validating, "check_published", add_column)
        # It does not know of the column.
        assert validate(stage.move).mismatches == 0

    with pytest.raises(MismatchError, match="differ"):
        cutover(stage.move)
    assert attempts(stage) == []


def test_cutover_pauses_nobody_when_the_schema_changed_while_it_compared(stage: Stage) -> None:
    def deploy(point: Point) -> None:
        if point is Point.ALIGNED:
            stage.ask("CREATE OR REPLACE VIEW public.notes AS SELECT note FROM public.counted")

    stage.ask("UPDATE counted SET note = 'changed' RETURNING 1")
    measure_lag(stage.move)
    old = replace(
        stage.move, tenant=stage.move.tenant.model_copy(update={"validation_max_age_seconds": 0})
    )
    with listening(deploy), pytest.raises(PermanentError, match="schema of tenant"):
        cutover(old)

    assert attempts(stage) == []
