"""An abort leaves nothing of the move, and touches nothing of another tenant."""

from __future__ import annotations

import threading
import time
from contextlib import closing
from dataclasses import replace

import psycopg2
import pytest
from psycopg2 import sql

from abort_stage import OTHER_ID, left, read_other_records, read_others
from move_stage import Stage, rows
from tenantferry.backfill import clearing
from tenantferry.connections import open_connection
from tenantferry.control.phases import Phase
from tenantferry.errors import PermanentError, TenantferryError
from tenantferry.local.postgres import PostgresServer
from tenantferry.moves.abort import abort
from tenantferry.moves.backfill import backfill
from tenantferry.moves.cutover import cutover
from tenantferry.moves.lag import measure_lag
from tenantferry.moves.move import Move
from tenantferry.moves.prepare import prepare
from tenantferry.moves.rollback import rollback
from tenantferry.moves.validate import validate
from tenantferry.reverse.positions import begin_position
from tenantferry.reverse.slot import drop_reverse_slot, ensure_reverse

# The stream that the stage hosts is ended by the abort.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


def test_abort_leaves_nothing_but_the_audit_trail(stage: Stage) -> None:
    acl = stage.acl()
    assert {"source slots", "target role", "target validations"} <= left(stage).keys()

    summary = abort(stage.move)

    assert (summary.rows, summary.tables, summary.role_kept) == (9, 1, "")
    assert left(stage) == {}
    assert stage.phase() == Phase.REGISTERED
    assert [to for (to,) in rows(
        stage.target, "SELECT to_phase FROM tenantferry.phase_changes ORDER BY id"
    )][-2:] == ["aborting", "registered"]  # fmt: skip
    assert stage.acl() == acl
    assert stage.ask("INSERT INTO counted (note) VALUES ('goes on') RETURNING id") == [(10,)]


def test_an_aborted_tenant_can_be_moved_anew(stage: Stage) -> None:
    abort(stage.move)
    again = replace(stage.move, run_id="another run")

    prepare(again)
    assert backfill(again).rows == 9
    moved = Stage(again, stage.pooler, stage.source, stage.target)
    with moved.streaming(run_id="another run"):
        assert validate(again).mismatches == 0
        cutover(again)

    assert stage.ask("SELECT current_user::text") == [("tenant_acme",)]


def test_abort_of_a_tenant_that_is_only_prepared_leaves_nothing(stage: Stage) -> None:
    abort(stage.move)
    prepare(stage.move)
    assert stage.phase() == Phase.PREPARED
    assert "target role" in left(stage)

    summary = abort(stage.move)

    assert (summary.rows, summary.tables, summary.role_kept) == (0, 0, "")
    assert left(stage) == {}
    assert stage.phase() == Phase.REGISTERED
    assert stage.ask("INSERT INTO counted (note) VALUES ('goes on') RETURNING id") == [(10,)]


def test_abort_of_a_tenant_that_was_rolled_back_leaves_nothing(live: Stage) -> None:
    live.ask("INSERT INTO counted (note) VALUES ('at the target') RETURNING id")
    rollback(live.move)
    assert live.phase() == Phase.STREAMING
    assert {"source slots", "source schema"} <= left(live).keys()

    with live.streaming():
        # A stream that begins just then would end the abort's session, and the retry would go on.
        measure_lag(live.move)
        summary = abort(live.move)

    assert (summary.rows, summary.tables, summary.role_kept) == (10, 1, "")
    assert left(live) == {}
    assert live.phase() == Phase.REGISTERED
    assert live.ask("SELECT note FROM counted WHERE id = 10") == [("at the target",)]


def test_abort_of_an_aborted_tenant_finds_nothing_left(stage: Stage) -> None:
    abort(stage.move)

    summary = abort(stage.move)

    assert (summary.rows, summary.tables) == (0, 0)
    assert stage.phase() == Phase.REGISTERED


def test_abort_does_not_touch_anything_of_another_tenant(
    stage: Stage, other: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clearing, "BATCH_ROWS", 7)
    before, records = read_others(stage), read_other_records(stage)

    summary = abort(stage.move)

    assert summary.rows == 59
    assert read_others(stage) == before
    assert read_other_records(stage) == records


@pytest.mark.parametrize("forgotten", ["find", "delete", "both"])
def test_abort_deletes_nothing_of_others_when_its_statements_lose_their_scope(
    stage: Stage, other: None, monkeypatch: pytest.MonkeyPatch, forgotten: str
) -> None:
    before = read_others(stage)
    if forgotten != "delete":
        everything = sql.SQL("SELECT ctid::text FROM {table}")
        monkeypatch.setattr(clearing, "_FIND", everything)
    if forgotten != "find":
        unscoped = sql.SQL("ctid = ANY ({places}::pg_catalog.tid[])")
        monkeypatch.setattr(clearing, "_SCOPE", unscoped)

    if forgotten == "both":
        with pytest.raises(PermanentError, match="would delete those of others"):
            abort(stage.move)
    else:
        abort(stage.move)

    # A rolled back deletion leaves its number in xmax.
    assert [row[:3] + row[4:] for row in read_others(stage)] == [
        row[:3] + row[4:] for row in before
    ]


def test_abort_fires_no_trigger_and_no_foreign_key(stage: Stage) -> None:
    rows(
        stage.target,
        "CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'fired'; END $$;"
        "CREATE TRIGGER refuse BEFORE DELETE ON public.counted"
        " FOR EACH ROW EXECUTE FUNCTION public.refuse();"
        "ALTER TABLE public.written ADD counted integer,"
        " ADD FOREIGN KEY (tenant_id, counted) REFERENCES public.counted (tenant_id, id)",
    )
    rows(
        stage.target,
        "INSERT INTO public.written (id, counted, tenant_id) VALUES (1, 1, %s)",
        str(stage.move.tenant.id),
    )

    assert abort(stage.move).rows == 10


def test_abort_lets_another_tenant_write_without_waiting(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clearing, "BATCH_ROWS", 500)
    rows(
        stage.target,
        "INSERT INTO public.written (id, tenant_id) SELECT n, %s FROM generate_series(1, 30000) n",
        str(stage.move.tenant.id),
    )
    stop, longest, failures = threading.Event(), [0.0], []

    def write() -> None:
        settings = {"lock_timeout": "1s"}
        with closing(
            open_connection(stage.move.target, purpose="other", autocommit=True, settings=settings)
        ) as session:
            number = 0
            while not stop.is_set():
                number += 1
                began = time.monotonic()
                try:
                    rows(
                        session,
                        "INSERT INTO public.written (id, tenant_id) VALUES (%s, %s);"
                        " UPDATE public.counted SET note = note || '.' WHERE tenant_id = %s",
                        number, str(OTHER_ID), str(OTHER_ID),
                    )  # fmt: skip
                except psycopg2.Error as error:
                    failures.append(str(error))
                longest[0] = max(longest[0], time.monotonic() - began)

    rows(
        stage.target,
        "INSERT INTO public.counted (id, tenant_id) VALUES (1, %s)",
        str(OTHER_ID),
    )
    writer = threading.Thread(target=write)
    writer.start()
    summary = abort(stage.move)
    stop.set()
    writer.join(30)

    assert summary.rows == 30_009
    assert failures == []
    assert longest[0] < 1.0  # seconds; an abort takes several
    [(written,)] = rows(
        stage.target, "SELECT count(*) FROM public.written WHERE tenant_id = %s", str(OTHER_ID)
    )
    assert written > 10


def test_abort_needs_no_pooler(stage: Stage) -> None:
    stage.pooler.stop()

    abort(stage.move)

    assert left(stage) == {}
    assert stage.phase() == Phase.REGISTERED


def test_abort_keeps_the_reverse_slot_of_a_tenant_that_can_go_back(
    stage: Stage, other: None
) -> None:
    ensure_reverse(stage.move.target)
    # Its rows were there before they were followed.
    rows(stage.target, "UPDATE tenantferry.graces SET lost_at = NULL")

    abort(stage.move)

    assert left(stage) == {"target reverse slot": 1, "target publications": 1}
    rows(stage.target, "DELETE FROM tenantferry.graces")
    assert drop_reverse_slot(stage.move.target)


def test_abort_ends_a_copy_that_would_still_take_hours(move: Move, stage: Stage) -> None:
    abort(move)
    prepare(move)
    failures: list[Exception] = []

    def copy() -> None:
        try:
            backfill(move)
        except (TenantferryError, psycopg2.Error) as error:
            failures.append(error)

    # Rows that are loaded wait for a lock that is not given back.
    rows(
        stage.target,
        "CREATE FUNCTION public.wait() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM pg_advisory_xact_lock_shared(4711); RETURN NEW; END $$;"
        "CREATE TRIGGER wait BEFORE INSERT ON public.counted"
        " FOR EACH ROW EXECUTE FUNCTION public.wait();"
        "ALTER TABLE public.counted ENABLE ALWAYS TRIGGER wait;"
        "SELECT pg_advisory_lock(4711)",
    )
    waiting = "SELECT pid FROM pg_locks WHERE objid = 4711 AND NOT granted"
    copying = threading.Thread(target=copy)
    copying.start()
    deadline = time.monotonic() + 30
    while not rows(stage.target, waiting):
        assert copying.is_alive() and time.monotonic() < deadline
    abort(move)
    copying.join(30)

    assert len(failures) == 1
    assert left(stage) == {}


def test_abort_drops_the_position_of_a_reverse_stream(stage: Stage) -> None:
    class Grace:
        id, tenant, start_lsn = 1, "acme", 1

    begin_position(stage.source, Grace())  # type: ignore[arg-type]
    assert "source schema" in left(stage)

    abort(stage.move)

    assert left(stage) == {}


def test_abort_keeps_a_role_that_a_person_gave_something_and_says_why(
    stage: Stage, target_server: PostgresServer
) -> None:
    target_server.psql(
        "-c", "GRANT CREATE ON SCHEMA public TO tenant_acme",
        database=stage.move.target.database,
    )  # fmt: skip

    summary = abort(stage.move)

    assert "schema public" in summary.role_kept
    assert left(stage) == {"target role": 1}
    assert stage.phase() == Phase.REGISTERED
