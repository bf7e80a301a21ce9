"""The target's log shows that a move changes no row of another tenant, or which it changed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

import pytest
from psycopg2 import sql
from psycopg2.extensions import connection
from psycopg2.extensions import cursor as cursor_type

from move_stage import Stage, rows
from tenantferry.backfill import reopening
from tenantferry.connections import ConnectionParams, open_connection
from tenantferry.control.phases import Phase
from tenantferry.control.witnesses import read_signatures, record_seen, sign_writer
from tenantferry.errors import TransientError
from tenantferry.moves.abort import abort
from tenantferry.moves.backfill import backfill
from tenantferry.moves.cutover import cutover
from tenantferry.moves.lag import measure_lag
from tenantferry.moves.move import Move
from tenantferry.moves.prepare import prepare
from tenantferry.moves.stream import stream
from tenantferry.moves.validate import validate
from tenantferry.moves.witnessing import TrespassError
from tenantferry.stream import merging, progress
from tenantferry.stream.progress import Step, TargetProgress
from tenantferry.witness import looking
from tenantferry.witness.looking import Evidence, WitnessLostError, look
from tenantferry.witness.slot import drop_witness, ensure_witness

# The stream of the stage ends where another one begins.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")

OTHER_ID = "22222222-2222-2222-2222-222222222222"
SLOTS = "SELECT slot_name FROM pg_replication_slots WHERE database = current_database()"
# What a stream without a tenant's scope does: its own rows are as they should be all the same.
TRESPASSES = {
    "update": (
        "UPDATE public.written SET id = 70 WHERE id = 7",
        ("written", "UPDATE", 1, f"id=7, tenant_id={OTHER_ID}"),
    ),
    "delete": (
        "",
        (
            "written",
            "DELETE",
            9,
            "; ".join(f"id={n}, tenant_id={OTHER_ID}" for n in range(1, 6)),
        ),
    ),
    "truncate": ("TRUNCATE public.written", ("written", "TRUNCATE", 1, "")),
}


@pytest.fixture
def move(move: Move) -> Move:
    """Nine rows are three chunks, and a witness looks on."""
    tenant = move.tenant.model_copy(update={"chunk_rows": 3, "witness": True})
    return replace(move, tenant=tenant)


@pytest.fixture
def other(stage: Stage) -> Iterator[OtherTenant]:
    """Another tenant, with rows of the same keys, that writes all the time."""
    with OtherTenant(stage.move.target) as other:
        yield other


class OtherTenant:
    """Changes the rows of another tenant in the target, one transaction after the other."""

    def __init__(self, target: ConnectionParams) -> None:
        self._target = target
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._write)
        self.written = 0

    def __enter__(self) -> OtherTenant:
        with closing(open_connection(self._target, purpose="other", autocommit=True)) as session:
            for table in ("counted", "written"):
                rows(
                    session,
                    f"INSERT INTO public.{table} (tenant_id, id)"
                    " SELECT %s, n FROM generate_series(1, 9) AS n",
                    OTHER_ID,
                )
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _write(self) -> None:
        update = "UPDATE public.counted SET note = %s WHERE tenant_id = %s AND id = %s"
        with closing(open_connection(self._target, purpose="other", autocommit=True)) as session:
            while not self._stop.wait(0.005):
                rows(session, update, f"note {self.written}", OTHER_ID, self.written % 9 + 1)
                self.written += 1


@contextmanager
def hosted_stream(stage: Stage) -> Iterator[None]:
    """Start the stream again whenever it ends, as its task does."""
    stop = threading.Event()

    def host() -> None:
        while not stop.is_set():
            try:
                stream(stage.move, stop=stop)
            except TransientError:
                stop.wait(0.1)  # the retry's delay

    thread = threading.Thread(target=host, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(30)
        assert not thread.is_alive()


def find_evidence(stage: Stage) -> Evidence:
    evidence = look(stage.move.target, stage.move.tenant)
    assert evidence is not None
    return evidence


def write_everything(stage: Stage) -> None:
    """Write on the source what a stream has a way of its own for."""
    rows(stage.source, "INSERT INTO public.written SELECT generate_series(1, 9)")
    rows(stage.source, "UPDATE public.counted SET id = id + 100 WHERE id IN (5, 6)")
    rows(stage.source, "DELETE FROM public.counted WHERE id = 7")
    rows(stage.source, "TRUNCATE public.written")
    rows(stage.source, "INSERT INTO public.written SELECT generate_series(5, 7)")


def damage(stage: Stage) -> None:
    rows(
        stage.target,
        "UPDATE public.counted SET note = 'damaged' WHERE id = 1 AND tenant_id = %s",
        str(stage.move.tenant.id),
    )


def trespass(stage: Stage) -> None:
    """Write to another tenant's row as a broken engine would."""
    with closing(open_connection(stage.move.target, purpose="engine")) as session, session:
        with session.cursor() as cursor:
            sign_writer(cursor, "acme")
        rows(session, "UPDATE public.counted SET note = 'stolen' WHERE tenant_id = %s AND id = 5",
             OTHER_ID)  # fmt: skip


def wait_until_blocked(stage: Stage, session: connection) -> None:
    blocked = "SELECT cardinality(pg_blocking_pids(%s)) > 0"
    deadline = time.monotonic() + 30
    while rows(stage.target, blocked, session.info.backend_pid) != [(True,)]:
        assert time.monotonic() < deadline


def read_violations(stage: Stage) -> list[tuple[Any, ...]]:
    return rows(
        stage.target,
        "SELECT table_name, change, rows, array_to_string(keys, '; ') FROM tenantferry.violations"
        " ORDER BY id",
    )


def test_a_whole_move_changes_no_row_of_a_tenant_that_writes_meanwhile(
    stage: Stage, other: OtherTenant
) -> None:
    at_first = find_evidence(stage).witness.transactions
    seen: list[Evidence] = []

    write_everything(stage)
    with hosted_stream(stage):
        validate(stage.move)
        damage(stage)
        repaired = validate(stage.move, repair=True)
    abort(
        stage.move,
        on_step=lambda step: seen.append(find_evidence(stage)) if step == "rows" else None,
    )

    assert repaired.mismatches == 0
    assert repaired.witnessed is not None
    assert repaired.witnessed.endswith(": 0 rows of others")
    (evidence,) = seen
    assert evidence.violations == ()
    # Three chunks and one of an empty table, five transactions, one chunk twice, two tables' rows.
    assert at_first >= 4
    assert evidence.witness.transactions >= at_first + 5
    assert other.written > 0
    assert rows(stage.target, SLOTS) == []


def test_the_stream_signs_from_the_moment_that_its_witness_begins_and_not_before(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    signed: list[str] = []

    def sign(cursor: cursor_type, tenant: str) -> None:
        signed.append(tenant)
        sign_writer(cursor, tenant)

    def write(key: int) -> None:
        rows(stage.source, f"INSERT INTO public.written VALUES ({key})")
        measure_lag(stage.move)

    monkeypatch.setattr(progress, "sign_writer", sign)
    drop_witness(stage.move.target, stage.move.tenant)
    measure_lag(stage.move)
    signed.clear()

    write(1)
    before = list(signed)
    ensure_witness(stage.move.target, stage.move.tenant)
    for key in (2, 3):
        write(key)

    assert before == []
    assert find_evidence(stage).witness.transactions >= 2


@pytest.mark.parametrize("how", TRESPASSES)
def test_what_a_broken_stream_does_to_others_fails_the_validation(
    stage: Stage, other: OtherTenant, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    statement, violation = TRESPASSES[how]
    record = TargetProgress.record
    todo = [statement] if statement else []

    def record_and_trespass(self: TargetProgress, cursor: cursor_type, step: Step) -> None:
        if todo and step.changes:
            cursor.execute(todo.pop())
        record(self, cursor, step)

    monkeypatch.setattr(TargetProgress, "record", record_and_trespass)
    if not statement:
        monkeypatch.setattr(merging, "_DELETE_ALL", sql.SQL("DELETE FROM {table} AS rows"))
    rows(stage.source, "TRUNCATE public.written")

    with pytest.raises(TrespassError, match="changed rows of other tenants") as caught:
        validate(stage.move)

    assert read_violations(stage) == [violation]
    assert violation[3] in caught.value.detail
    assert stage.phase() == Phase.STREAMING
    assert rows(stage.target, "SELECT copy_again FROM tenantferry.streams") == [(False,)]


def test_what_a_broken_repair_does_to_others_fails_the_validation(
    stage: Stage, other: OtherTenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        reopening, "_DELETE", sql.SQL("DELETE FROM {table} AS rows WHERE {in_chunk}")
    )
    damage(stage)

    with hosted_stream(stage), pytest.raises(TrespassError, match="DELETE of 3"):
        validate(stage.move, repair=True)

    [(table, change, count, keys)] = read_violations(stage)
    assert (table, change, count) == ("counted", "DELETE", 3)
    assert [f"id={n}" in keys for n in (1, 2, 3)] == [True] * 3


@pytest.mark.parametrize("place", ["record_seen", "_give_up"], ids=["before", "after"])
def test_a_look_that_died_is_repeated(
    stage: Stage, other: OtherTenant, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    trespass(stage)

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(looking, place, die)
        look(stage.move.target, stage.move.tenant)
    evidence = find_evidence(stage)

    assert read_violations(stage) == [("counted", "UPDATE", 1, f"id=5, tenant_id={OTHER_ID}")]
    assert len(evidence.violations) == 1


@pytest.mark.parametrize(
    "loss",
    [
        "SELECT pg_replication_slot_advance('tfwitness_acme', pg_current_wal_flush_lsn())",
        "SELECT pg_drop_replication_slot('tfwitness_acme')",
        "INSERT INTO tenantferry.signatures (tenant, xid) VALUES ('acme', 1)",
    ],
    ids=["consumed", "dropped", "not in the log"],
)
def test_a_witness_that_has_missed_something_vouches_for_nothing(stage: Stage, loss: str) -> None:
    find_evidence(stage)
    rows(stage.target, "SELECT pg_logical_emit_message(true, 'test', '')")
    rows(stage.target, loss)

    for _ in range(2):
        with pytest.raises(WitnessLostError, match="cannot be told"):
            validate(stage.move)
    prepare(stage.move)
    result = validate(stage.move)

    assert result.witnessed is not None


def test_a_signature_that_others_cannot_see_yet_is_waited_for(stage: Stage) -> None:
    """A commit is decoded before it is visible: here one that waits for a standby."""
    find_evidence(stage)
    with (
        closing(open_connection(stage.move.target, purpose="engine")) as session,
        closing(open_connection(stage.move.target, purpose="test")) as recorder,
    ):
        with session.cursor() as cursor:
            sign_writer(cursor, "acme")
            cursor.execute("SELECT pg_current_xact_id()::text::bigint & 4294967295")
            ((xid,),) = cursor.fetchall()
        lsn = find_evidence(stage).witness.checked_to
        thread = threading.Thread(
            target=lambda: record_seen(recorder, "acme", checked_to=lsn, xids={xid}, violations=[])
        )
        thread.start()
        wait_until_blocked(stage, recorder)
        session.commit()
        thread.join(30)
        recorder.commit()

        assert xid not in read_signatures(recorder, "acme")


def test_a_move_that_nobody_signs_changes_no_row_of_others_either(stage: Stage, move: Move) -> None:
    """Not the witness says so, but a slot that holds everything; nobody else writes meanwhile."""
    with OtherTenant(stage.move.target):
        pass
    abort(stage.move)
    rows(stage.target, "SELECT pg_create_logical_replication_slot('everything', 'test_decoding')")

    prepare(move)
    backfill(move)
    with hosted_stream(stage):
        write_everything(stage)
        damage(stage)
        validate(move, repair=True)
    abort(move)

    log = [
        text
        for (text,) in rows(
            stage.target, "SELECT data FROM pg_logical_slot_get_changes('everything', NULL, NULL)"
        )
        if text.startswith("table public.")
    ]
    own = [text for text in log if str(move.tenant.id) in text]
    assert {text.split()[2] for text in own} == {"INSERT:", "UPDATE:", "DELETE:"}
    assert [text for text in log if text not in own] == []


def test_the_witness_ends_with_the_move(stage: Stage, other: OtherTenant) -> None:
    assert ("tfwitness_acme",) in rows(stage.target, SLOTS)

    cutover(stage.move)

    assert rows(stage.target, SLOTS) == [("tenantferry_reverse",)]
    assert rows(stage.target, "SELECT pubname FROM pg_publication") == [("tenantferry_reverse",)]
    assert rows(stage.target, "SELECT count(*) FROM tenantferry.witnesses") == [(0,)]


def test_a_cutover_tells_what_the_move_did_to_others_at_last(
    stage: Stage, other: OtherTenant
) -> None:
    trespass(stage)

    with pytest.raises(TrespassError):
        cutover(stage.move)

    assert stage.phase() == Phase.LIVE
    assert rows(stage.target, SLOTS) == [("tenantferry_reverse",)]
    cutover(stage.move)


def test_an_abort_waits_for_a_person_where_others_were_changed(
    stage: Stage, other: OtherTenant
) -> None:
    trespass(stage)

    with pytest.raises(TrespassError, match="id=5"):
        abort(stage.move)
    assert stage.phase() == Phase.ABORTING
    rows(stage.target, "DELETE FROM tenantferry.violations")
    abort(stage.move)

    assert stage.phase() == Phase.REGISTERED


def test_prepare_drops_a_witness_that_is_not_wanted_any_more(stage: Stage, move: Move) -> None:
    prepare(replace(move, tenant=move.tenant.model_copy(update={"witness": False})))

    assert rows(stage.target, SLOTS) == []
    assert look(move.target, move.tenant) is None
    with pytest.raises(WitnessLostError, match="no witness"):
        validate(move)
