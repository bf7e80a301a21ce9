"""A tenant that goes there and back, again and again: no write is lost, no row is copied twice."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

import pytest

from move_stage import Stage, rows
from tenantferry.connections import ConnectionParams, open_client_connection
from tenantferry.control.direction import Direction
from tenantferry.control.streams import StreamCommand, StreamState, require_stream
from tenantferry.errors import TransientError
from tenantferry.moves.backfill import backfill
from tenantferry.moves.cutover import cutover
from tenantferry.moves.move import Move
from tenantferry.moves.preflight import preflight
from tenantferry.moves.prepare import prepare
from tenantferry.moves.probe import probe
from tenantferry.moves.rollback import rollback
from tenantferry.moves.stream import stream
from tenantferry.moves.validate import validate
from tenantferry.stream.handshake import wait_for_position
from tenantferry.stream.marker import emit_marker
from tenantferry.stream.running import StreamResult
from traffic_clients import Writers

CONTENT = "SELECT id, note FROM public.counted ORDER BY id"


class Journal:
    """
    One client that inserts, updates and deletes rows of its own, and knows what must be there.

    :ivar rows: id to note, as acknowledged.
    """

    def __init__(self, params: ConnectionParams) -> None:
        self.rows: dict[int, str] = {}
        self.errors: list[str] = []
        self.writes = 0
        self._params = params
        self._quiet = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Journal:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Let it finish what it does, and hold it within the block."""
        with self._quiet:
            yield

    def _run(self) -> None:
        chance = random.Random(7)
        with closing(open_client_connection(self._params, purpose="journal")) as client:
            while not self._stop.is_set():
                with self._quiet:
                    try:
                        self._write(client, chance)
                    except Exception as error:  # noqa: BLE001 - the test looks at them
                        self.errors.append(repr(error))
                        return
                self._stop.wait(0.005)

    def _write(self, client: Any, chance: random.Random) -> None:
        note = f"note {self.writes}"
        known = sorted(self.rows)
        action = chance.random()
        with client:
            if action < 0.5 or not known:
                [(row,)] = rows(client, "INSERT INTO counted (note) VALUES (%s) RETURNING id", note)
                assert row not in self.rows
            else:
                row = chance.choice(known)
                change = (
                    "UPDATE counted SET note = %s WHERE id = %s RETURNING id"
                    if action < 0.8
                    else "DELETE FROM counted WHERE %s <> '' AND id = %s RETURNING id"
                )
                assert rows(client, change, note, row) == [(row,)]
        if action >= 0.8 and known:
            del self.rows[row]
        else:
            self.rows[row] = note
        self.writes += 1


class StreamTask:
    """The task ``stream_cdc`` of one run, which Airflow starts again after what may pass."""

    def __init__(self, move: Move, run_id: str) -> None:
        self._move = replace(move, run_id=run_id)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.results: list[StreamResult] = []
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.results.append(stream(self._move, stop=self._stop))
            except TransientError:
                self._stop.wait(0.2)
            else:
                return

    def join(self) -> str:
        """Wait until it ends by itself, and return why."""
        self._thread.join(30)
        assert not self._thread.is_alive()
        return self.results[-1].reason

    def end(self) -> None:
        self._stop.set()
        self._thread.join(30)
        assert not self._thread.is_alive()


def of_run(move: Move, run_id: str) -> Move:
    return replace(move, run_id=run_id)


def assert_same(stage: Stage, journal: Journal, direction: Direction) -> None:
    """Both sides hold exactly what was acknowledged, as soon as the stream has caught up."""
    sender = stage.source if direction is Direction.FORWARD else stage.target
    with journal.quiet():
        lsn = emit_marker(sender, stage.move.tenant)
        wait_for_position(stage.move.target, "acme", lsn, timeout_seconds=20, direction=direction)
        if direction is Direction.REVERSE:
            wait_for_source(stage)
        assert journal.errors == []
        source, target = dict(rows(stage.source, CONTENT)), dict(rows(stage.target, CONTENT))
        ours = {row: note for row, note in source.items() if note.startswith("note ")}
        assert ours == journal.rows
        assert source == target


def wait_for_source(stage: Stage) -> None:
    """Wait until the source itself says so: a stream without work says it for the source."""
    for _ in range(2000):
        if rows(stage.source, CONTENT) == rows(stage.target, CONTENT):
            return
        threading.Event().wait(0.01)


def go_there(stage: Stage, run_id: str) -> StreamTask:
    """Run all steps of ``migrate_acme``; the rows are there already."""
    move = of_run(stage.move, run_id)
    copied = rows(stage.target, "SELECT * FROM tenantferry.chunks ORDER BY 1, 2, 3, 4")
    assert not preflight(move).already_live
    prepare(move)
    backfill(move)
    task = StreamTask(stage.move, run_id)
    assert validate(move).mismatches == 0
    cutover(move)
    assert rows(stage.target, "SELECT * FROM tenantferry.chunks ORDER BY 1, 2, 3, 4") == copied
    return task


@pytest.mark.timeout(600)
def test_three_times_there_and_back_under_load_loses_nothing_and_copies_nothing_again(
    stage: Stage,
) -> None:
    with (
        Writers([stage.client] * 2) as writers,
        Journal(stage.client) as journal,
        stage.reversing(),
    ):
        writers.wait_for(50)
        cutover(stage.move)
        assert_same(stage, journal, Direction.REVERSE)
        for turn in (1, 2, 3):
            writers.wait_for(50)
            rollback(of_run(stage.move, f"back {turn}"))
            back = StreamTask(stage.move, f"back {turn}")
            writers.wait_for(50)
            assert_same(stage, journal, Direction.FORWARD)
            assert probe(of_run(stage.move, f"back {turn}")).role == "app_owner"

            there = go_there(stage, f"there {turn}")
            assert back.join() == f'run "there {turn}" has the tenant'
            writers.wait_for(50)
            there.join()
            assert_same(stage, journal, Direction.REVERSE)
            assert probe(of_run(stage.move, f"there {turn}")).role == "tenant_acme"

    assert writers.errors == journal.errors == []
    written = [row for (row,) in rows(stage.target, "SELECT id FROM public.written ORDER BY id")]
    assert written == sorted(writers.acknowledged)
    assert journal.writes > 100


def test_the_stream_after_a_rollback_carries_nothing_back_that_came_from_the_target(
    stage: Stage,
) -> None:
    cutover(stage.move)
    with stage.reversing():
        for _ in range(5):
            stage.ask("INSERT INTO counted (note) VALUES ('from the target') RETURNING id")
        rollback(stage.move)
    task = StreamTask(stage.move, "test")
    for _ in range(3):
        stage.ask("INSERT INTO counted (note) VALUES ('from the source') RETURNING id")

    lsn = emit_marker(stage.source, stage.move.tenant)
    wait_for_position(stage.move.target, "acme", lsn, timeout_seconds=20)

    assert require_stream(stage.target, "acme").changes == 3
    assert rows(stage.source, CONTENT) == rows(stage.target, CONTENT)
    task.end()


def test_the_stream_of_a_run_that_lost_the_tenant_ends_successfully_and_does_not_fight(
    stage: Stage,
) -> None:
    cutover(stage.move)
    with stage.reversing():
        rollback(of_run(stage.move, "back"))
    old = StreamTask(stage.move, "back")
    stage.ask("INSERT INTO counted (note) VALUES ('one') RETURNING id")
    lsn = emit_marker(stage.source, stage.move.tenant)
    wait_for_position(stage.move.target, "acme", lsn, timeout_seconds=20)

    prepare(of_run(stage.move, "there"))
    new = StreamTask(stage.move, "there")

    assert old.join() == 'run "there" has the tenant'
    # Cleared again, it still leaves the tenant to the other.
    assert StreamTask(stage.move, "back").join() == 'run "there" has the tenant'
    stage.ask("INSERT INTO counted (note) VALUES ('two') RETURNING id")
    lsn = emit_marker(stage.source, stage.move.tenant)
    wait_for_position(stage.move.target, "acme", lsn, timeout_seconds=20)
    assert rows(stage.source, CONTENT) == rows(stage.target, CONTENT)
    new.end()


def test_the_decision_itself_tells_the_forward_stream_to_stop(stage: Stage) -> None:
    # Told later, it would take back to the target what the reverse stream takes to the source.
    told: list[StreamCommand] = []

    def look(step: str) -> None:
        if step == "flipped":
            told.append(require_stream(stage.target, "acme").command)

    cutover(stage.move, on_step=look)

    assert told == [StreamCommand.STOP]
    assert require_stream(stage.target, "acme").state is StreamState.STOPPED
