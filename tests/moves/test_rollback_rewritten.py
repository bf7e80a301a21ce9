"""Before a tenant goes back, what a person has rewritten on its source is compared."""

from __future__ import annotations

import time
from typing import Any

import pytest

from move_stage import Stage, rows, written
from rollback_stage import assert_still_live, create_table, fail_at
from tenantferry.control.graces import read_grace, read_source_files
from tenantferry.control.phases import Phase
from tenantferry.errors import PermanentError, TransientError
from tenantferry.moves import rewritten
from tenantferry.moves.cutover import cutover
from tenantferry.moves.rollback import rollback
from tenantferry.schema.table_states import read_row_files
from tenantferry.validation.running import compare_tenant

_REMAKE = (
    "CREATE TABLE public.again (LIKE public.written INCLUDING ALL);{taken_along}"
    " DROP TABLE public.written;"
    " ALTER TABLE public.again RENAME TO written;"
    " ALTER INDEX public.again_pkey RENAME TO written_pkey;"
    " ALTER TABLE public.written OWNER TO app_owner"
)
WITH_ROWS = _REMAKE.format(taken_along=" INSERT INTO public.again SELECT * FROM public.written;")
WITHOUT_ROWS = _REMAKE.format(taken_along="")
REWRITES = {
    "made again": WITH_ROWS,
    "vacuumed": "VACUUM FULL public.written",
    "retyped to the same": "ALTER TABLE public.written ALTER id TYPE bigint USING id + 0",
}
LOSSES = {
    "made again": WITHOUT_ROWS,
    "truncated": "TRUNCATE public.written",
    "retyped": "ALTER TABLE public.written ALTER id TYPE bigint USING id + 1",
}


@pytest.fixture
def used(live: Stage) -> Stage:
    """The live tenant, which has written something that its source has."""
    live.ask("INSERT INTO written VALUES (7)")
    deadline = time.monotonic() + 30
    while written(live, "source") != [7]:
        assert time.monotonic() < deadline
    return live


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The tables of each comparison."""
    found: list[list[str]] = []

    def compare(*arguments: Any, **named: Any) -> Any:
        found.append([table.label for table in arguments[3]])
        return compare_tenant(*arguments, **named)

    monkeypatch.setattr(rewritten, "compare_tenant", compare)
    return found


def test_a_tenant_whose_source_nobody_has_touched_goes_back_without_a_comparison(
    used: Stage, compared: list[list[str]]
) -> None:
    rollback(used.move)

    assert compared == []
    assert written(used, "source") == [7]


@pytest.mark.parametrize("how", REWRITES)
def test_a_rewritten_table_that_has_its_rows_is_compared_once(
    used: Stage, compared: list[list[str]], how: str
) -> None:
    rows(used.source, REWRITES[how])

    with pytest.raises(TransientError, match="failed at fenced"):
        rollback(used.move, on_step=fail_at("fenced"))
    assert_still_live(used)
    rollback(used.move)

    assert compared == [["public.written"]]
    assert used.phase() == Phase.STREAMING
    assert written(used, "source") == [7]


@pytest.mark.parametrize("how", LOSSES)
def test_a_rewritten_table_that_lacks_rows_keeps_the_tenant_live_until_it_is_mended(
    used: Stage, how: str
) -> None:
    rows(used.source, LOSSES[how])

    with pytest.raises(PermanentError, match="does not have the rows of the target") as refused:
        rollback(used.move)

    assert "row id=7" in refused.value.detail
    assert_still_live(used)

    rows(used.source, "TRUNCATE public.written; INSERT INTO public.written VALUES (7)")
    rollback(used.move)
    assert written(used, "source") == [7]


def test_without_the_comparison_a_rollback_loses_what_was_carried_back_before(used: Stage) -> None:
    """As in a grace that began with a version that did not write down where the rows are."""
    rows(used.target, "UPDATE tenantferry.graces SET source_files = NULL")
    rows(used.source, WITHOUT_ROWS)

    rollback(used.move)

    assert used.phase() == Phase.STREAMING
    assert written(used, "source") == []


def test_a_table_that_came_in_grace_is_compared(live: Stage, compared: list[list[str]]) -> None:
    create_table(live)
    with pytest.raises(TransientError, match="failed at prepared"):
        rollback(live.move, on_step=fail_at("prepared"))
    live.ask("INSERT INTO added VALUES (DEFAULT, 1, 'x') RETURNING id")
    rows(live.source, "VACUUM FULL public.added")

    rollback(live.move)

    assert compared == [["public.added"], ["public.added"]]
    assert rows(live.source, "SELECT id, note FROM public.added") == [(1, "x")]


@pytest.mark.parametrize("is_known", [True, False], ids=["known", "of an earlier version"])
def test_a_rollback_undoes_itself_where_a_table_is_rewritten_in_its_write_pause(
    used: Stage, *, is_known: bool
) -> None:
    if not is_known:
        rows(used.target, "UPDATE tenantferry.graces SET source_files = NULL")

    def truncate(step: str) -> None:
        if step == "fenced":
            rows(used.source, "TRUNCATE public.written")

    with pytest.raises(TransientError, match="has its rows on its source"):
        rollback(used.move, on_step=truncate)

    assert_still_live(used)
    with pytest.raises(PermanentError, match="does not have the rows"):
        rollback(used.move)


def test_a_leak_of_the_target_does_not_keep_a_tenant_from_leaving_it(
    used: Stage, compared: list[list[str]]
) -> None:
    rows(used.target, "INSERT INTO public.written VALUES (1, gen_random_uuid())")
    rows(used.target, "ALTER ROLE tenant_acme BYPASSRLS")
    rows(used.source, "VACUUM FULL public.written")

    rollback(used.move)

    assert compared == [["public.written"]]
    assert written(used, "source") == [7]


def test_only_the_tables_that_differ_are_compared_again(
    used: Stage, compared: list[list[str]]
) -> None:
    rows(used.source, "VACUUM FULL public.counted")
    rows(used.source, "TRUNCATE public.written")

    for _ in range(2):
        with pytest.raises(PermanentError, match="does not have the rows") as refused:
            rollback(used.move)

    assert compared == [["public.counted", "public.written"], ["public.written"]]
    assert "counted" not in refused.value.detail


def test_a_rollback_right_after_an_upgrade_brings_the_control_schema_up_to_date(
    used: Stage,
) -> None:
    make_older(used)

    rollback(used.move)

    assert written(used, "source") == [7]


def test_a_cutover_right_after_an_upgrade_brings_the_control_schema_up_to_date(
    stage: Stage,
) -> None:
    make_older(stage)

    cutover(stage.move)

    grace = read_grace(stage.target, "acme")
    assert grace is not None
    files = read_source_files(stage.target, grace.id)
    assert files == read_row_files(stage.source, stage.move.tenant)
    assert files.keys() == {"public.counted", "public.written"}


def make_older(stage: Stage) -> None:
    """Let the control schema be that of a version which did not write down the files."""
    rows(
        stage.target,
        "ALTER TABLE tenantferry.graces DROP COLUMN source_files;"
        " COMMENT ON SCHEMA tenantferry IS 'of an earlier version'",
    )
