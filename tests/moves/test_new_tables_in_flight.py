"""Tables that come while their tenant is on its way are copied, and the others are not."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace

import pytest

from move_process import run_script
from move_stage import Stage, rows, with_tenant, written
from tenantferry.connections import open_client_connection
from tenantferry.control.chunks import record_published
from tenantferry.control.phases import Phase
from tenantferry.errors import PermanentError, TransientError
from tenantferry.fleet import TableKind
from tenantferry.moves.backfill import backfill
from tenantferry.moves.cutover import cutover
from tenantferry.moves.lag import measure_lag
from tenantferry.moves.move import Move
from tenantferry.moves.preflight import preflight
from tenantferry.moves.prepare import prepare
from tenantferry.moves.stream import stream
from tenantferry.moves.validate import MismatchError, validate
from tenantferry.schema.publication import read_entries
from tenantferry.stream.drift import DriftError
from traffic_clients import Writers

# The stream of the stage ends where a round begins.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")

VERSIONS = "SELECT id, xmin::text, ctid::text FROM public.counted ORDER BY id"
CREATE = "CREATE TABLE public.later (id bigint PRIMARY KEY, note text)"
FILL = "INSERT INTO public.later SELECT -n, 'old' FROM generate_series(1, 20) n"
# Runs a backfill that ends itself when it has copied a chunk.
KILLED_SCRIPT = """
import os, pickle, signal, sys
from tenantferry.failpoints import Point, listening
from tenantferry.fleet import TableKind
from tenantferry.moves.backfill import backfill
(move,) = pickle.load(sys.stdin.buffer)
with listening(lambda at: at is Point.CHUNK_COMMITTED and os.kill(os.getpid(), signal.SIGKILL)):
    backfill(move)
"""


@pytest.fixture
def move(move: Move) -> Move:
    """A few rows are several chunks."""
    return replace(move, tenant=move.tenant.model_copy(update={"chunk_rows": 3}))


class LaterWriter:
    """
    A client that never stops writing to the table that came.

    :ivar expected: what it has written, by key.
    """

    def __init__(self) -> None:
        self.expected: dict[int, str] = {}
        self.steps = 0
        self.failures: list[BaseException] = []

    @contextmanager
    def writing(self, stage: Stage) -> Iterator[None]:
        """Write beside the block."""
        stop = threading.Event()

        def write() -> None:
            try:
                with closing(open_client_connection(stage.client, purpose="later")) as client:
                    while not stop.wait(0.005):
                        self.steps += 1
                        for query, key, note in self._step(self.steps):
                            with client:
                                rows(client, query, *([] if note is None else [note]), key)
                            if note is None:
                                self.expected.pop(key, None)
                            else:
                                self.expected[key] = note
            except BaseException as failure:  # noqa: BLE001 - the test looks at it
                self.failures.append(failure)

        thread = threading.Thread(target=write)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(30)
        assert not thread.is_alive()
        assert self.failures == []

    def wait_for(self, more: int) -> None:
        """Wait for so many further steps."""
        wanted = self.steps + more
        waited = threading.Event()
        for _ in range(3000):
            if self.steps >= wanted or self.failures:
                return
            waited.wait(0.01)
        raise AssertionError(f"the client took {self.steps} of {wanted} steps")

    @staticmethod
    def _step(number: int) -> Iterator[tuple[str, int, str | None]]:
        yield "INSERT INTO public.later (note, id) VALUES (%s, %s)", number, f"new {number}"
        # -9 to -1 are there from the beginning; what is deleted is even.
        if number % 2:
            update = "UPDATE public.later SET note = %s WHERE id = %s"
            yield update, number - 10, f"changed {number}"
        if not number % 4:
            yield "DELETE FROM public.later WHERE id = %s", number, None


def read_later(stage: Stage) -> dict[int, str]:
    found = rows(stage.target, "SELECT id, note FROM public.later")
    return dict(found)


@pytest.mark.parametrize("is_killed", [False, True], ids=["at once", "killed in between"])
@pytest.mark.parametrize("how", ["came", "made again"])
def test_a_table_that_comes_under_writes_is_copied_and_the_others_are_not(
    stage: Stage, *, how: str, is_killed: bool
) -> None:
    before = rows(stage.target, VERSIONS)
    stage.ask(CREATE)
    stage.ask(FILL)
    if how == "made again":
        prepare(stage.move)
        backfill(stage.move)
        stage.ask("DROP TABLE public.later")
        stage.ask(CREATE)
        stage.ask(FILL)
    later = LaterWriter()
    later.expected = {-n: "old" for n in range(1, 21)}

    with (
        Writers([stage.client] * 2) as writers,
        stage.streaming_again(DriftError),
        later.writing(stage),
    ):
        later.wait_for(20)
        with pytest.raises(PermanentError, match="lacks tables of the source") as told:
            validate(stage.move)
        preflight(stage.move)
        prepare(stage.move)
        later.wait_for(20)
        if is_killed:
            assert run_script(KILLED_SCRIPT, stage.move).wait(60) < 0
            assert stage.phase() == Phase.BACKFILLING
            later.wait_for(20)
        copied = backfill(stage.move)
        later.wait_for(20)
        measure_lag(stage.move)
        result = validate(stage.move)
        later.wait_for(20)
        cutover(stage.move)
        later.wait_for(20)
        writers.wait_for(20)

    assert '"preflight"' in told.value.hint
    assert copied.tables == 3
    assert (result.mismatches, result.tables) == (0, 3)
    assert stage.phase() == Phase.LIVE
    assert writers.errors == []
    assert sorted(writers.acknowledged) == written(stage, "target")
    assert read_later(stage) == later.expected
    assert rows(stage.target, VERSIONS) == before


def test_a_backfill_leaves_a_table_alone_that_is_not_published_yet(stage: Stage) -> None:
    before = rows(stage.target, VERSIONS)
    stage.ask(CREATE)
    stage.ask(FILL)

    copied = backfill(stage.move)

    assert copied.tables == 2
    assert stage.phase() == Phase.VALIDATED
    assert rows(stage.target, VERSIONS) == before
    with pytest.raises(PermanentError, match="lacks tables of the source"):
        validate(stage.move)


def leave_out(stage: Stage, *meanwhile: str) -> None:
    """Take a table out of the publication for a while, as a person can."""
    publication = stage.move.tenant.publication
    rows(stage.source, f"ALTER PUBLICATION {publication} DROP TABLE public.counted")
    for statement in meanwhile:
        stage.ask(statement)
    rows(stage.source, f"ALTER PUBLICATION {publication} ADD TABLE ONLY public.counted")


def test_a_table_that_was_not_published_for_a_while_is_copied_again(stage: Stage) -> None:
    stage.ask("INSERT INTO public.written VALUES (1)")
    measure_lag(stage.move)
    before = rows(stage.target, "SELECT xmin::text, ctid::text FROM public.written")

    leave_out(stage, "UPDATE public.counted SET note = 'not sent'")
    for step in (validate, cutover):
        with pytest.raises(PermanentError, match="not copied yet") as refused:
            step(stage.move)
        assert "public.counted" in refused.value.detail
        assert '"preflight"' in refused.value.hint

    prepare(stage.move)
    copied = backfill(stage.move)
    with stage.streaming_again():
        result = validate(stage.move)
        cutover(stage.move)
    assert copied.tables == 2
    assert (result.mismatches, result.rows) == (0, 10)
    assert stage.phase() == Phase.LIVE
    assert rows(stage.target, "SELECT DISTINCT note FROM public.counted") == [("not sent",)]
    assert rows(stage.target, "SELECT xmin::text, ctid::text FROM public.written") == before


def test_without_entries_a_cutover_compares_what_was_not_published_for_a_while(
    stage: Stage,
) -> None:
    leave_out(stage, "UPDATE public.counted SET note = 'not sent' WHERE id = 3")
    record_published(stage.target, "acme", read_entries(stage.source, stage.move.tenant))

    with pytest.raises(MismatchError):
        cutover(stage.move)

    assert stage.phase() == Phase.STREAMING


def test_a_stream_that_meets_what_was_not_sent_has_only_that_table_copied_again(
    stage: Stage,
) -> None:
    stage.ask("INSERT INTO public.written VALUES (1)")
    measure_lag(stage.move)
    before = rows(stage.target, "SELECT xmin::text, ctid::text FROM public.written")

    leave_out(stage, "INSERT INTO counted (note) VALUES ('not sent')")
    stage.ask("UPDATE counted SET note = 'sent' WHERE note = 'not sent'")
    with pytest.raises(DriftError, match=r"not all changes[^:]*\n.*public\.counted"):
        stream(stage.move, stop=threading.Event())

    assert rows(stage.target, "SELECT copy_again FROM tenantferry.streams") == [(False,)]
    prepare(stage.move)
    backfill(stage.move)
    with stage.streaming_again():
        assert validate(stage.move).mismatches == 0
    assert rows(stage.target, "SELECT xmin::text, ctid::text FROM public.written") == before


def test_cutover_compares_a_table_that_was_a_partition_for_a_while(stage: Stage) -> None:
    """Its changes were sent as those of a table that nobody copies."""
    prepare(stage.move)
    stage.ask(
        "CREATE TABLE public.root (id integer NOT NULL, note text, PRIMARY KEY (id))"
        " PARTITION BY RANGE (id)"
    )
    prepare(stage.move)
    stage.ask("ALTER TABLE public.root ATTACH PARTITION public.counted DEFAULT")
    stage.ask("UPDATE public.counted SET note = 'sent as of root' WHERE id = 3")
    stage.ask("ALTER TABLE public.root DETACH PARTITION public.counted")
    stage.ask("DROP TABLE public.root")
    measure_lag(stage.move)

    with pytest.raises(MismatchError):
        cutover(stage.move)

    assert stage.phase() == Phase.STREAMING


def test_a_table_that_does_not_move_any_more_stops_no_stream_for_ever(stage: Stage) -> None:
    stage.ask(CREATE)
    prepare(stage.move)
    backfill(stage.move)
    stage.ask(FILL)
    move = with_tenant(stage.move, tables={"public.later": TableKind.SKIP})
    prepare(move)
    with pytest.raises(DriftError, match="does not move any more") as told:
        stream(move, stop=threading.Event())
    assert '"preflight"' in told.value.hint

    preflight(move)
    prepare(move)
    copied = backfill(move)
    stage.move = move
    with stage.streaming_again():
        assert validate(move).mismatches == 0
    assert copied.tables == 2


def test_a_retry_after_a_table_was_declared_not_to_move_copies_no_other(stage: Stage) -> None:
    before = rows(stage.target, VERSIONS)
    move = with_tenant(stage.move, tables={"public.written": TableKind.SKIP})

    copied = backfill(move)

    assert copied.tables == 1
    assert rows(stage.target, VERSIONS) == before


def test_of_a_table_that_comes_while_another_one_goes_only_itself_is_copied(stage: Stage) -> None:
    stage.ask("INSERT INTO public.written VALUES (1)")
    measure_lag(stage.move)
    before = rows(stage.target, VERSIONS)
    stage.ask("DROP TABLE public.written")
    stage.ask(CREATE)
    stage.ask(FILL)

    preflight(stage.move)
    prepare(stage.move)
    copied = backfill(stage.move)

    assert (copied.tables, copied.rounds) == (2, 2)
    with stage.streaming_again():
        with pytest.raises(PermanentError, match="does not have any more"):
            validate(stage.move)
        rows(stage.target, "DELETE FROM public.written")
        assert validate(stage.move).mismatches == 0
    assert rows(stage.target, VERSIONS) == before


def test_cutover_undoes_itself_where_a_table_was_not_published_for_a_moment(stage: Stage) -> None:
    def act(step: str) -> None:
        if step == "prepared":
            leave_out(stage, "UPDATE public.counted SET note = 'not sent' WHERE id = 3")

    with pytest.raises(TransientError, match=r"changed since it was validated\n.*public.counted"):
        cutover(stage.move, on_step=act)

    assert stage.phase() == Phase.VALIDATED
    assert stage.ask("INSERT INTO counted (note) VALUES ('open') RETURNING 1") == [(1,)]


def test_a_migration_of_several_tables_costs_the_copy_of_the_new_one_only(stage: Stage) -> None:
    """What was written to the others before it is applied before they are altered in the target."""
    stop = threading.Event()
    stop.set()
    stream(stage.move, stop=stop)  # takes over from that of the stage, and ends
    stage.ask("UPDATE counted SET note = 'old shape' WHERE id = 3")
    stage.ask("DROP TABLE public.written")
    stage.ask("CREATE TABLE public.written (id bigint PRIMARY KEY)")
    stage.ask("ALTER TABLE public.counted ADD COLUMN more text")
    stage.ask("UPDATE counted SET more = 'new shape' WHERE id = 4")

    with pytest.raises(DriftError, match=r'"public\.counted" has changed'):
        stream(stage.move, stop=threading.Event())
    assert rows(stage.target, "SELECT note FROM public.counted WHERE id = 3") == [("old shape",)]
    rows(stage.target, "ALTER TABLE public.counted ADD COLUMN more text")
    with pytest.raises(DriftError, match="not all changes"):
        stream(stage.move, stop=threading.Event())
    before = rows(stage.target, VERSIONS)
    preflight(stage.move)
    prepare(stage.move)
    backfill(stage.move)

    with stage.streaming_again():
        assert validate(stage.move).mismatches == 0
    assert rows(stage.target, VERSIONS) == before


def test_a_table_that_was_copied_and_dropped_is_not_taken_for_a_partition(stage: Stage) -> None:
    stage.ask("CREATE TABLE public.root (id int PRIMARY KEY) PARTITION BY RANGE (id)")
    stage.ask("CREATE TABLE public.leaf PARTITION OF public.root DEFAULT")
    stage.ask("ALTER TABLE public.root REPLICA IDENTITY FULL")
    stage.ask("ALTER TABLE public.leaf REPLICA IDENTITY FULL")
    stage.ask(CREATE)
    prepare(stage.move)
    backfill(stage.move)
    stage.ask(FILL)
    stage.ask("DROP TABLE public.later")
    preflight(stage.move)
    prepare(stage.move)
    backfill(stage.move)
    stage.ask("INSERT INTO root VALUES (1)")

    with stage.streaming_again():
        measure_lag(stage.move)
        assert validate(stage.move).mismatches == 0
    assert rows(stage.target, "SELECT id FROM public.root") == [(1,)]
