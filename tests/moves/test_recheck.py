"""A cutover compares again what was written since the validation, and nothing else."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from typing import Any

import psycopg2
import pytest

from move_stage import Stage, rows
from tenantferry.connections import open_client_connection, open_connection
from tenantferry.control.phases import Phase
from tenantferry.control.touched import Touched, read_touched
from tenantferry.control.validations import read_latest_validation
from tenantferry.errors import TransientError
from tenantferry.failpoints import Point, listening
from tenantferry.local.postgres import PostgresServer
from tenantferry.moves import validate as validating
from tenantferry.moves.cutover import cutover
from tenantferry.moves.lag import measure_lag
from tenantferry.moves.move import Move
from tenantferry.moves.validate import MismatchError, validate
from tenantferry.stream import remembering
from tenantferry.stream.handshake import hold, release
from tenantferry.validation import running, touched
from tenantferry.validation.alignment import View
from tenantferry.validation.comparison import ChunkComparison, compare_chunks
from tenantferry.validation.touched import Recheck, TouchedComparison

LOOKS = "SELECT since IS NULL, tables, chunks, rows, mismatches FROM tenantferry.validations"


def write(stage: Stage, *statements: str) -> None:
    """Let the application write on the source, and wait until the target has it."""
    for statement in statements:
        stage.ask(f"{statement} RETURNING 1" if "TRUNCATE" not in statement else statement)
    measure_lag(stage.move)


def touched_rows(stage: Stage) -> list[Touched]:
    latest = read_latest_validation(stage.target, "acme")
    assert latest is not None
    found = read_touched(stage.target, "acme", since=latest.position)
    assert found is not None
    return list(found)


@pytest.fixture
def much_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too much to leave all of it to the write pause."""
    monkeypatch.setattr(validating, "MAX_LAST_KEYS", 0)


def with_tenant(move: Move, **changes: Any) -> Move:
    return replace(move, tenant=move.tenant.model_copy(update=changes))


def at(step: str, act: Callable[[], object]) -> Callable[[str], None]:
    return lambda reached: act() if reached == step else None  # type: ignore[return-value]


def attempts(stage: Stage) -> list[tuple[object, ...]]:
    return rows(
        stage.target,
        "SELECT compared_at IS NOT NULL, undone_at IS NOT NULL, undo_reason"
        " FROM tenantferry.write_pauses ORDER BY id",
    )


def test_the_stream_remembers_the_keys_that_it_writes(stage: Stage) -> None:
    write(
        stage,
        "UPDATE counted SET note = 'changed' WHERE id = 2",
        "UPDATE counted SET id = 30 WHERE id = 3",
        "DELETE FROM counted WHERE id = 4",
        "INSERT INTO written VALUES (7)",
    )

    assert touched_rows(stage) == [
        Touched("public", "counted", ("id",), (("2",), ("3",), ("30",), ("4",))),
        Touched("public", "written", ("id",), (("7",),)),
    ]


def test_the_stream_remembers_a_table_as_a_whole_when_it_was_truncated(stage: Stage) -> None:
    write(stage, "INSERT INTO written VALUES (7)", "TRUNCATE written")

    assert touched_rows(stage) == [Touched("public", "written", (), ())]


def test_the_stream_remembers_a_table_as_a_whole_when_much_of_it_is_written(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remembering, "MAX_KEYS", 2)

    write(stage, "INSERT INTO written VALUES (1), (2)", "INSERT INTO written VALUES (3), (4)")

    assert touched_rows(stage) == [Touched("public", "written", (), ())]
    # From the next comparison on single rows count again.
    validate(stage.move)
    write(stage, "INSERT INTO written VALUES (5)")
    assert touched_rows(stage) == [Touched("public", "written", ("id",), (("5",),))]


def recorded_keys(stage: Stage) -> list[str]:
    """Return every key in the record, as often as it stands there."""
    return [
        key
        for (keys,) in rows(stage.target, "SELECT keys FROM tenantferry.touched")
        for key in keys or ["any"]
    ]


def test_the_stream_remembers_a_row_once_however_often_it_is_written(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remembering, "MAX_KEYS", 4)

    for number in range(10):
        write(stage, f"UPDATE counted SET note = 'written {number}' WHERE id = 2")
    write(stage, "UPDATE counted SET note = 'written' WHERE id IN (2, 3)")

    assert recorded_keys(stage) == ["2", "3"]
    assert touched_rows(stage) == [Touched("public", "counted", ("id",), (("2",), ("3",)))]


def test_the_stream_remembers_a_row_again_after_each_comparison(stage: Stage) -> None:
    write(stage, "UPDATE counted SET note = 'before' WHERE id = 2")
    validate(stage.move)

    write(stage, "UPDATE counted SET note = 'after' WHERE id = 2")

    assert touched_rows(stage) == [Touched("public", "counted", ("id",), (("2",),))]
    # Whether or not the comparison came to an end.
    hold(stage.move.target, "acme")
    release(stage.move.target, "acme")
    write(stage, "UPDATE counted SET note = 'at last' WHERE id = 2")
    assert recorded_keys(stage) == ["2", "2"]


def test_the_stream_remembers_whole_tables_where_their_keys_take_too_much_memory(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remembering, "MAX_BYTES", 300)

    write(
        stage,
        "INSERT INTO written VALUES (1)",
        "UPDATE counted SET note = 'changed' WHERE id IN (1, 2)",
        "INSERT INTO written VALUES (1000)",
    )

    assert touched_rows(stage) == [
        Touched("public", "counted", (), ()),
        Touched("public", "written", ("id",), (("1",), ("1000",))),
    ]


def test_a_validation_forgets_what_was_written_before_it(stage: Stage) -> None:
    write(stage, "INSERT INTO written VALUES (7)")

    validate(stage.move)

    assert touched_rows(stage) == []
    assert rows(stage.target, "SELECT count(*) FROM tenantferry.touched") == [(0,)]


def test_a_validation_that_fails_forgets_nothing(stage: Stage) -> None:
    write(stage, "INSERT INTO written VALUES (7)")
    rows(stage.target, "UPDATE public.counted SET note = 'by hand' WHERE id = 1")

    with pytest.raises(MismatchError):
        validate(stage.move)

    assert rows(stage.target, "SELECT keys FROM tenantferry.touched") == [(["7"],)]


@pytest.mark.usefixtures("much_is_written")
def test_cutover_compares_before_the_pause_what_was_written_since_the_validation(
    stage: Stage,
) -> None:
    write(
        stage,
        "UPDATE counted SET id = 30 WHERE id = 3",
        "INSERT INTO written SELECT generate_series(1, 5)",
    )

    cutover(stage.move)

    # It says nothing new of the tenant.
    assert rows(
        stage.target,
        "SELECT count(*) FROM tenantferry.phase_changes WHERE to_phase = 'validated'",
    ) == [(1,)]
    # Two keys, of which one is gone, and five; the pause itself records no validation.
    assert rows(stage.target, f"{LOOKS} ORDER BY id") == [(True, 2, 2, 9, 0), (False, 2, 0, 6, 0)]
    assert attempts(stage) == [(True, False, None)]
    assert rows(stage.target, "SELECT count(*) FROM tenantferry.touched") == [(0,)]


def test_cutover_leaves_a_few_rows_to_the_pause(stage: Stage) -> None:
    write(stage, "UPDATE counted SET note = 'changed' WHERE id = 2")
    rows(stage.target, "UPDATE public.counted SET note = 'applied wrongly' WHERE id = 2")

    with pytest.raises(MismatchError, match="id=2"):
        cutover(stage.move)

    assert rows(stage.target, LOOKS) == [(True, 2, 2, 9, 0)]
    assert [attempt[:2] for attempt in attempts(stage)] == [(False, True)]


def test_cutover_compares_a_table_as_a_whole_where_any_row_may_have_been_written(
    stage: Stage,
) -> None:
    write(stage, "TRUNCATE counted", "INSERT INTO counted (note) VALUES ('first')")

    cutover(stage.move)

    assert rows(stage.target, f"{LOOKS} ORDER BY id DESC LIMIT 1") == [(False, 1, 1, 1, 0)]


def test_cutover_compares_a_whole_table_on_as_many_lanes_as_a_validation(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(stage, "TRUNCATE counted", "TRUNCATE written")
    used: list[set[int]] = []

    def look_at_lanes(view: View, *arguments: Any, **options: Any) -> list[ChunkComparison]:
        used.append({lane.source.info.backend_pid for lane in view.lanes})
        return compare_chunks(view, *arguments, **options)

    monkeypatch.setattr(touched, "compare_chunks", look_at_lanes, raising=False)
    cutover(with_tenant(stage.move, backfill_workers=2))

    assert [len(lanes) for lanes in used] == [2]


@contextmanager
def writing(stage: Stage, statement: str) -> Iterator[None]:
    """Let the application write over and over until the block ends; it must not fail."""
    done = threading.Event()
    failures: list[Exception] = []

    def write_on() -> None:
        try:
            with closing(open_client_connection(stage.client, purpose="writer")) as client:
                client.autocommit = True
                while not done.is_set():
                    rows(client, statement)
        except psycopg2.Error as error:
            failures.append(error)

    thread = threading.Thread(target=write_on)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(30)
    assert failures == []


def test_cutover_of_a_tenant_that_writes_the_same_rows_over_and_over(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More changes than may be remembered of a table, and fewer rows."""
    monkeypatch.setattr(remembering, "MAX_KEYS", 20)
    [(changes,)] = rows(stage.target, "SELECT changes FROM tenantferry.streams")

    with writing(stage, "UPDATE counted SET note = clock_timestamp()::text"):
        while changes + 200 > rows(stage.target, "SELECT changes FROM tenantferry.streams")[0][0]:
            time.sleep(0.05)
        cutover(stage.move)

    assert attempts(stage) == [(True, False, None)]
    # Some of all that is written last, and nothing of it as a whole.
    assert rows(stage.target, "SELECT count(*) FROM tenantferry.validations WHERE chunks > 0") == [
        (1,)
    ]


@pytest.mark.usefixtures("much_is_written")
def test_cutover_compares_again_until_little_is_left(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    todo = [8, 3, 1, 0]

    def write_less_and_less(point: Point) -> None:
        if point is Point.ALIGNED:
            write(stage, f"UPDATE counted SET note = 'changed' WHERE id <= {todo.pop(0)}")

    write(stage, "UPDATE counted SET note = 'changed'")
    with listening(write_less_and_less):
        cutover(stage.move)

    assert todo == []
    assert rows(stage.target, f"{LOOKS} WHERE since IS NOT NULL ORDER BY id") == [
        (False, 1, 0, rows_compared, 0) for rows_compared in (9, 8, 3, 1)
    ]
    assert attempts(stage) == [(True, False, None)]


def test_cutover_pauses_nobody_when_rows_are_written_faster_than_they_are_compared(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remembering, "MAX_KEYS", 0)
    slow = with_tenant(stage.move, recheck_seconds=0.0001)

    with writing(stage, "UPDATE counted SET note = clock_timestamp()::text"):
        measure_lag(stage.move)
        with pytest.raises(TransientError, match="as fast as they are written") as caught:
            cutover(slow)

    assert 'any row of table "public.counted"' in caught.value.detail
    assert "recheck_seconds is 0.0001" in caught.value.detail
    assert attempts(stage) == []
    assert stage.phase() == Phase.VALIDATED
    # In a quieter hour.
    cutover(stage.move)
    assert attempts(stage) == [(True, False, None)]


def test_cutover_leaves_a_whole_table_to_the_pause_that_has_time_for_it(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a table without a key nothing else is ever known."""
    monkeypatch.setattr(remembering, "MAX_KEYS", 0)
    in_pause: list[bool] = []
    compare = Recheck.compare

    def note(recheck: Recheck, touched: Sequence[Touched], **options: Any) -> TouchedComparison:
        if "view" not in options:
            in_pause.extend(found.is_whole for found in touched)
        return compare(recheck, touched, **options)

    monkeypatch.setattr(Recheck, "compare", note)
    with writing(stage, "UPDATE counted SET note = clock_timestamp()::text"):
        measure_lag(stage.move)
        cutover(stage.move)

    assert in_pause == [True]
    assert attempts(stage) == [(True, False, None)]


@pytest.mark.usefixtures("much_is_written")
def test_cutover_takes_no_truncate_meanwhile_for_a_mismatch(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(stage, "INSERT INTO written VALUES (7)")

    def truncate_first(*arguments: Any, **options: Any) -> Recheck:
        stage.ask("TRUNCATE written")
        return Recheck(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(running, "Recheck", truncate_first)
        with pytest.raises(TransientError, match="could not tell"):
            cutover(stage.move)

    assert attempts(stage) == []
    cutover(stage.move)
    assert attempts(stage) == [(True, False, None)]


@pytest.mark.usefixtures("much_is_written")
def test_cutover_pauses_nobody_when_a_row_went_wrong_since_the_validation(stage: Stage) -> None:
    write(stage, "UPDATE counted SET note = 'changed' WHERE id = 2")
    rows(stage.target, "UPDATE public.counted SET note = 'applied wrongly' WHERE id = 2")

    with pytest.raises(MismatchError, match="id=2"):
        cutover(stage.move)

    assert stage.phase() == Phase.STREAMING
    assert attempts(stage) == []


def test_cutover_undoes_itself_when_the_last_rows_went_wrong(stage: Stage) -> None:
    def write_last() -> None:
        write(stage, "INSERT INTO written VALUES (7), (8)")

    def go_wrong() -> None:
        rows(stage.target, "DELETE FROM public.written WHERE id = 8")

    def act(step: str) -> None:
        at("prepared", write_last)(step)
        at("drained", go_wrong)(step)

    with pytest.raises(MismatchError, match="id=8"):
        cutover(stage.move, on_step=act)

    [(compared, undone, reason)] = attempts(stage)
    assert (compared, undone) == (False, True)
    assert "written last" in str(reason)
    assert stage.phase() == Phase.VALIDATED
    # It is found again, by the next attempt as by a validation.
    with pytest.raises(MismatchError, match="id=8"):
        cutover(stage.move)
    with pytest.raises(MismatchError, match="id=8"):
        validate(stage.move)


def test_cutover_undoes_itself_when_nobody_knows_any_more_what_was_written_last(
    stage: Stage,
) -> None:
    def forget() -> None:
        rows(stage.target, "UPDATE tenantferry.streams SET touched_since = NULL")

    with pytest.raises(TransientError, match="nobody knows any more"):
        cutover(stage.move, on_step=at("drained", forget))

    assert [attempt[:2] for attempt in attempts(stage)] == [(False, True)]
    assert stage.phase() == Phase.VALIDATED


def test_cutover_undoes_itself_when_a_sample_that_began_earlier_finds_a_difference(
    stage: Stage,
) -> None:
    def find() -> None:
        rows(
            stage.target,
            "INSERT INTO tenantferry.validations"
            " (tenant, position, started_at, tables, chunks, rows, mismatches)"
            " SELECT tenant, position, started_at, tables, chunks, rows, 1"
            " FROM tenantferry.validations",
        )

    with pytest.raises(TransientError, match="began earlier"):
        cutover(stage.move, on_step=at("sequences", find))

    assert [attempt[1] for attempt in attempts(stage)] == [True]
    # What is true is found out by the next attempt.
    cutover(stage.move)
    assert stage.phase() == Phase.LIVE


def test_cutover_undoes_itself_when_comparing_the_last_rows_takes_too_long(
    stage: Stage, target_server: PostgresServer
) -> None:
    superuser = target_server.superuser.with_database(stage.move.target.database)
    with ExitStack() as stack:

        def be_in_the_way() -> None:
            opened = stack.enter_context(closing(open_connection(superuser, purpose="test")))
            rows(opened, "LOCK TABLE public.written")

        def act(step: str) -> None:
            at("prepared", lambda: write(stage, "INSERT INTO written VALUES (7)"))(step)
            at("drained", be_in_the_way)(step)

        with pytest.raises(TransientError, match=r"recheck_seconds is 0\.2"):
            cutover(with_tenant(stage.move, recheck_seconds=0.2), on_step=act)

    assert attempts(stage)[0][:2] == (False, True)
    assert stage.phase() == Phase.VALIDATED
    assert stage.ask("SELECT id FROM written") == [(7,)]


def test_without_remembering_a_row_that_goes_wrong_goes_live(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remembering.Memory, "note", lambda *_, **__: None)
    write(stage, "UPDATE counted SET note = 'changed' WHERE id = 2")
    rows(stage.target, "UPDATE public.counted SET note = 'applied wrongly' WHERE id = 2")

    cutover(stage.move)

    with pytest.raises(psycopg2.Error):
        rows(stage.source, "SELECT 1 / count(*) FROM public.counted WHERE note = 'applied wrongly'")
    assert stage.ask("SELECT note FROM counted WHERE id = 2") == [("applied wrongly",)]
