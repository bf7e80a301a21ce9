"""Backfills of many rounds: killed anywhere, bounded in time, under writers that never stop."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from round_stage import KillAfter, Rounds, die, fetch, in_process_that_is_killed, run
from tenantferry.connections import open_connection
from tenantferry.control.chunks import read_chunks
from tenantferry.errors import TransientError
from tenantferry.failpoints import Point, listening
from tenantferry.stream.running import run_stream
from tenantferry.throttle import throttle as throttle_module
from tenantferry.throttle.throttle import Throttle

TOAST = "repeat(md5(id::text), 200)"


@pytest.fixture
def items(rounds: Rounds) -> Rounds:
    """A table of three chunks of ten rows, of which none is copied."""
    rounds.pair(
        "items",
        "id bigint, name text, big text",
        source="ALTER TABLE items ALTER big SET STORAGE EXTERNAL",
    )
    rounds.write(f"INSERT INTO items SELECT id, 'old', {TOAST} FROM generate_series(1, 30) id")
    return rounds


def fill(rounds: Rounds, rows: int) -> None:
    rounds.write(f"INSERT INTO items SELECT id, 'old', 'x' FROM generate_series(31, {rows}) id")


def test_run_backfill_loses_only_chunks_in_flight_when_it_is_killed_in_round_two(
    items: Rounds, caplog: pytest.LogCaptureFixture
) -> None:
    fill(items, 400)
    items.copy_round()
    items.write("UPDATE items SET name = 'new' WHERE id % 3 = 0")

    def run_and_die() -> None:
        logger = logging.getLogger("tenantferry.backfill")
        logger.setLevel(logging.INFO)
        logger.addHandler(KillAfter(12))
        items.run_backfill(backfill_workers=2, round_budget_seconds=600.0)

    in_process_that_is_killed(run_and_die)
    before = {c.number: c for c in read_chunks(items.target, "acme") if c.done_at is not None}
    items.write(
        "UPDATE items SET name = 'newer' WHERE id % 4 = 0", "DELETE FROM items WHERE id = 7"
    )
    caplog.set_level(logging.INFO, logger="tenantferry.backfill")
    caplog.clear()
    result = items.run_backfill(backfill_workers=2, round_budget_seconds=600.0)

    assert 13 <= len(before) <= 15
    assert [c.round for c in before.values()] == [1] + [2] * (len(before) - 1)
    after = {chunk.number: chunk for chunk in read_chunks(items.target, "acme")}
    assert {number: after[number] for number in before} == before
    assert {c.round for n, c in after.items() if n not in before} == {3}
    assert sum("copied chunk" in record.msg for record in caplog.records) == 40 - len(before)
    assert (result.chunks, result.rounds) == (40, 3)
    items.finish()


@pytest.mark.parametrize(
    "point",
    [
        Point.CAUGHT_UP_TO_NOW,
        Point.SNAPSHOT_TAKEN,
        Point.ROUND_BEGUN,
        Point.WRITTEN,
        Point.POSITION_WRITTEN,
        Point.COMMITTED,
        Point.CAUGHT_UP,
        Point.CHUNKS_GIVEN,
        Point.CHUNK_COPIED,
        Point.CHUNK_MARKED,
        Point.CHUNK_COMMITTED,
        Point.ROUND_ENDED,
    ],
    ids=lambda point: point.partition(".")[2],
)
def test_a_round_that_is_killed_anywhere_is_followed_by_the_next_one(
    items: Rounds, point: Point
) -> None:
    items.copy_round()
    items.write(
        "UPDATE items SET name = 'new' WHERE id IN (5, 15, 25)",
        "UPDATE items SET id = 105 WHERE id = 6",
        "UPDATE items SET id = -1, big = 'known' WHERE id = 26",
        "DELETE FROM items WHERE id IN (7, 17, 27)",
        "UPDATE items SET id = -2 WHERE id = 28",
    )

    def die_there(reached: Point) -> None:
        if reached is point:
            die()

    def run_and_die() -> None:
        with listening(die_there):
            items.copy_round()

    in_process_that_is_killed(run_and_die)
    items.write("UPDATE items SET name = 'newer' WHERE id IN (4, 14, 24)")
    result = items.run_backfill()

    assert result.rounds >= 3
    items.finish()


def test_a_round_reaches_no_point_for_each_row(items: Rounds) -> None:
    reached: list[Point] = []
    items.copy_round()
    # They come into the first chunk, which is copied.
    items.write("INSERT INTO items SELECT -id, 'new', 'x' FROM generate_series(1, 2000) id")

    with listening(reached.append):
        items.copy_round()

    assert Point.STAGED in reached
    assert len(reached) < 100


@contextmanager
def writing(rounds: Rounds, *, writers: int = 2) -> Iterator[None]:
    """Let clients write all kinds of changes until the block ends."""
    done = threading.Event()
    failures: list[BaseException] = []

    def move(key: int, to: int) -> str:
        is_free = f"NOT EXISTS (SELECT FROM items WHERE id = {to})"
        return f"UPDATE items SET id = {to} WHERE id = {key} AND {is_free}"

    def write(number: int) -> None:
        params = rounds.source_params
        step = 0
        with closing(open_connection(params, purpose="writer", autocommit=True)) as session:
            run(session, "SET ROLE app_owner; SET search_path = public")
            while not done.wait(0.005):
                step += 1
                # Each writer has every second row; its keys go through all chunks.
                key = (step * 7 % 200) * writers + number
                for statement in (
                    f"UPDATE items SET name = 's{step}' WHERE id = {key}",
                    move(key + 10 * writers, key + 10 * writers + 1000),
                    move(key + 6 * writers + 1000, key + 6 * writers),
                    f"DELETE FROM items WHERE id = {key + 14 * writers}",
                    f"INSERT INTO items SELECT id, 'again', {TOAST}"
                    f" FROM (VALUES ({key + 20 * writers})) AS new (id) ON CONFLICT DO NOTHING",
                ):
                    run(session, statement)

    def write_and_tell(number: int) -> None:
        try:
            write(number)
        except BaseException as failure:  # noqa: BLE001 - the test looks at it
            failures.append(failure)

    threads = [threading.Thread(target=write_and_tell, args=(n,)) for n in range(writers)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert failures == []


def test_run_backfill_is_exact_after_many_rounds_under_writers(items: Rounds) -> None:
    """Each round copies two chunks and is compared at its own snapshot."""
    items.write(f"INSERT INTO items SELECT id, 'old', {TOAST} FROM generate_series(31, 160) id")

    with writing(items):
        result = items.run_backfill(backfill_workers=2)

    assert result.rounds >= 7
    assert items.compared == result.rounds
    items.finish()


def test_run_backfill_holds_no_snapshot_for_longer_than_its_budget_and_a_chunk(
    items: Rounds,
) -> None:
    """Every chunk takes a fifth of a second."""
    fill(items, 120)
    run(
        items.target,
        "CREATE FUNCTION public.wait() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM pg_sleep(0.2); RETURN NULL; END $$;"
        "CREATE TRIGGER wait BEFORE INSERT ON public.items"
        " FOR EACH STATEMENT EXECUTE FUNCTION public.wait();"
        "ALTER TABLE public.items ENABLE ALWAYS TRIGGER wait",
    )

    with looking_at_snapshots(items) as (held, shown):
        result = items.run_backfill(round_budget_seconds=0.7)
    without_budget = 12 * 0.2

    assert result.rounds >= 3
    assert 0.7 < max(held) <= result.longest_snapshot_seconds + 0.5
    assert max(shown) == pytest.approx(max(held), abs=0.5)
    assert result.longest_snapshot_seconds < without_budget
    assert result.seconds > without_budget
    [(rounds, now_held, longest)] = fetch(
        items.target,
        "SELECT rounds, snapshot_seconds, longest_snapshot_seconds FROM tenantferry.progress",
    )
    assert (rounds, now_held) == (result.rounds, None)
    assert longest == pytest.approx(result.longest_snapshot_seconds)


def test_run_backfill_holds_no_snapshot_for_longer_while_it_is_slowed_down(
    items: Rounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit in ("STALE_SECONDS", "LONGEST_WAIT_SECONDS"):
        monkeypatch.setattr(throttle_module, limit, 600.0)
    throttle = Throttle()
    throttle.see("test")

    result = items.run_backfill(throttle=throttle, round_budget_seconds=0.3, backfill_workers=1)

    assert result.rounds == 3
    assert 0.3 < result.longest_snapshot_seconds < 30
    items.finish()


@contextmanager
def looking_at_snapshots(rounds: Rounds) -> Iterator[tuple[list[float], list[float]]]:
    """Collect ages of snapshots: that sessions of ours on the source hold, and that are shown."""
    done = threading.Event()
    held, shown = [0.0], [0.0]
    # A walsender that has exported a snapshot shows no xact_start.
    query = (
        "SELECT extract(epoch FROM max(clock_timestamp() - state_change))::float"
        " FROM pg_stat_activity WHERE application_name LIKE 'tenantferry slot t%'"
        " AND state = 'idle in transaction'"
    )
    view = "SELECT snapshot_seconds FROM tenantferry.progress"

    def look() -> None:
        with (
            closing(open_connection(rounds.source_params, purpose="looker")) as source,
            closing(open_connection(rounds.target_params, purpose="looker")) as target,
        ):
            source.autocommit = target.autocommit = True
            while not done.wait(0.02):
                held.extend(age for (age,) in fetch(source, query) if age is not None)
                shown.extend(age for (age,) in fetch(target, view) if age is not None)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield held, shown
    finally:
        done.set()
        thread.join()


def test_run_backfill_reports_progress_over_all_rounds(items: Rounds) -> None:
    items.run_backfill()

    assert [(report.round, report.chunks, report.rows) for report in items.reports] == [
        (1, 1, 10), (2, 2, 20), (3, 3, 30),
    ]  # fmt: skip
    assert {report.total_chunks for report in items.reports} == {3}
    assert items.reports[-1].eta_seconds == 0.0


def test_run_backfill_ends_where_rows_make_copied_chunks_pending_again_and_again(
    items: Rounds,
) -> None:
    """Before each round a row comes into chunk 1 without all its values."""

    def move_and_catch_up(lsn: int) -> None:
        if moved:
            items.write(f"UPDATE items SET id = -id WHERE id = {moved.pop()}")
        items.catch_up_to(lsn)

    moved = list(range(21, 31))

    result = items.run_backfill(catch_up=move_and_catch_up)

    assert result.rounds < 6
    assert moved
    items.finish()


def test_each_worker_copies_a_chunk_however_small_the_budget_is(items: Rounds) -> None:
    fill(items, 100)

    result = items.run_backfill(backfill_workers=4)

    assert result.rounds == 3
    assert sorted(c.round or 0 for c in read_chunks(items.target, "acme")) == [
        1, 1, 1, 1, 2, 2, 2, 2, 3, 3,
    ]  # fmt: skip


def test_a_stream_does_not_begin_while_chunks_are_pending(items: Rounds) -> None:
    items.copy_round()

    with pytest.raises(TransientError, match="copied only in part"):
        run_stream(
            items.source_params,
            items.target_params,
            items.tenant,
            items.tables(),
            stop=threading.Event(),
        )


def test_a_stream_runs_after_the_last_catch_up(items: Rounds) -> None:
    """The order to stop, which ended the catch-up, is not in its way."""
    items.run_backfill()
    items.write("UPDATE items SET name = 'new'")
    stop = threading.Event()
    thread = threading.Thread(
        target=run_stream,
        args=(items.source_params, items.target_params, items.tenant, items.tables()),
        kwargs={"stop": stop},
        daemon=True,
    )
    query = "SELECT count(*) FROM public.items WHERE name = 'new'"

    thread.start()
    deadline = time.monotonic() + 30
    while fetch(items.target, query) != [(30,)] and time.monotonic() < deadline:
        time.sleep(0.05)
    stop.set()
    thread.join()

    assert fetch(items.target, query) == [(30,)]


def test_a_failure_keeps_the_slot_of_what_is_copied(items: Rounds) -> None:
    def fail(_: int) -> None:
        raise TransientError("the source does not answer")

    with pytest.raises(TransientError, match="does not answer"):
        items.run_backfill(catch_up=fail)

    assert items.copied() == {"items": {1}}
    result = items.run_backfill()
    assert result.rounds == 3
