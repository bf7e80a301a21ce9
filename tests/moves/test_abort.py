from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any
from uuid import UUID

import psycopg2
import pytest
from psycopg2 import sql

from move_stage import Stage, rows
from tenantferry.backfill import clearing
from tenantferry.connections import open_connection
from tenantferry.control.phases import IllegalPhaseError, Phase
from tenantferry.control.registry import ensure_registered
from tenantferry.errors import PermanentError, TenantferryError, TransientError
from tenantferry.local.accounts import free_port
from tenantferry.local.postgres import PostgresServer
from tenantferry.moves import abort as abort_module
from tenantferry.moves.abort import abort
from tenantferry.moves.backfill import backfill
from tenantferry.moves.cutover import cutover
from tenantferry.moves.move import Move
from tenantferry.moves.prepare import prepare
from tenantferry.moves.stream import stream
from tenantferry.moves.validate import validate
from tenantferry.reverse.positions import begin_position
from tenantferry.reverse.slot import drop_reverse_slot, ensure_reverse
from tenantferry.schema.roles import ensure_tenant_role, read_role_settings
from tenantferry.schema.sequences import ensure_tenant_sequences
from tenantferry.traffic import settlement
from tenantferry.traffic.fence import plan_fence, raise_fence
from traffic_clients import Writers

# The stream that the stage hosts is ended by the abort.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")

OTHER_ID = UUID("22222222-2222-2222-2222-222222222222")
STEPS = ["announced", "stopped", "source", "rows", "role", "forgotten", "reverse slot"]
# Runs an abort that kills itself after one step.
SCRIPT = """
import os, pickle, signal, sys
from tenantferry.moves.abort import abort
move, fatal = pickle.load(sys.stdin.buffer)
abort(move, on_step=lambda step: step == fatal and os.kill(os.getpid(), signal.SIGKILL))
"""
# Runs a cutover whose guard dies before it, as when their machine is lost.
LOST_SCRIPT = """
import os, pickle, signal, sys
from tenantferry.moves.cutover import cutover
move, fatal = pickle.load(sys.stdin.buffer)
def lose(step):
    if step == fatal:
        with open(f"/proc/self/task/{os.getpid()}/children") as children:
            for pid in children.read().split():
                os.kill(int(pid), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
cutover(move, on_step=lose)
"""
# What an abort leaves nothing of: each query counts what is the tenant's.
OF_SOURCE = {
    "slots": "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()",
    "publications": "SELECT count(*) FROM pg_publication",
    "schema": "SELECT count(*) FROM pg_namespace WHERE nspname = 'tenantferry'",
}
OF_TARGET = {
    "counted": "SELECT count(*) FROM public.counted WHERE tenant_id::text LIKE '1111%'",
    "written": "SELECT count(*) FROM public.written WHERE tenant_id::text LIKE '1111%'",
    "role": "SELECT count(*) FROM pg_roles WHERE rolname = 'tenant_acme'",
    "schema": "SELECT count(*) FROM pg_namespace WHERE nspname = 't_acme'",
    "reverse slot": "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()",
    "publications": "SELECT count(*) FROM pg_publication",
    "mapping": "SELECT count(*) FROM app.tenant_roles WHERE role_name = 'tenant_acme'",
    "origin": "SELECT count(*) FROM pg_replication_origin WHERE roname = 'tenantferry_acme'",
    **{
        table: f"SELECT count(*) FROM tenantferry.{table} WHERE tenant = 'acme'"
        for table in ("chunks", "rounds", "streams", "validations", "graces", "write_pauses")
    },
    "mismatches": "SELECT count(*) FROM tenantferry.mismatches JOIN tenantferry.validations"
    " ON id = validation_id WHERE tenant = 'acme'",
}
# What the target has of another tenant that can still go back, beside its rows.
OTHER_RECORDS = """
INSERT INTO tenantferry.rounds (tenant, round, consistent_point) VALUES ('globex', 1, '0/1');
INSERT INTO tenantferry.chunks
    (tenant, table_schema, table_name, chunk, key_columns, estimated_rows)
    VALUES ('globex', 'public', 'written', 1, '{id}', 1);
INSERT INTO tenantferry.streams (tenant, direction, position, confirmed)
    VALUES ('globex', 'forward', '0/1', '0/1'), ('globex', 'reverse', '0/1', '0/1');
INSERT INTO tenantferry.write_pauses (tenant, deadline, resumed_at) VALUES ('globex', now(), now());
INSERT INTO tenantferry.graces (tenant, attempt, start_lsn, ends_at)
    SELECT 'globex', max(id), '0/1', now() + interval '1 day' FROM tenantferry.write_pauses;
INSERT INTO tenantferry.archives (tenant, attempt)
    SELECT 'globex', max(id) FROM tenantferry.write_pauses;
WITH made AS (
    INSERT INTO tenantferry.validations
        (tenant, position, started_at, tables, chunks, rows, mismatches)
        VALUES ('globex', '0/1', now(), 1, 1, 1, 1) RETURNING id)
INSERT INTO tenantferry.mismatches (validation_id, number, table_schema, table_name, kind, detail)
    SELECT id, 1, 'public', 'written', 'missing', 'a row' FROM made;
SELECT pg_replication_origin_create('tenantferry_globex');
"""
READ_OTHER_RECORDS = [
    *(
        f"SELECT r::text FROM tenantferry.{table} AS r WHERE tenant = 'globex' ORDER BY 1"
        for table in (
            "tenants", "phase_changes", "chunks", "rounds", "streams", "validations", "graces",
            "write_pauses", "archives",
        )
    ),
    "SELECT m::text FROM tenantferry.mismatches AS m JOIN tenantferry.validations AS v"
    " ON v.id = m.validation_id WHERE v.tenant = 'globex'",
    "SELECT rolcanlogin, rolconfig, rolinherit FROM pg_roles WHERE rolname = 'tenant_globex'",
    "SELECT r::text FROM app.tenant_roles AS r WHERE role_name = 'tenant_globex'",
    "SELECT nspacl::text FROM pg_namespace WHERE nspname = 't_globex'",
    "SELECT s::text FROM pg_sequences AS s WHERE schemaname = 't_globex'",
    "SELECT roident FROM pg_replication_origin WHERE roname = 'tenantferry_globex'",
]  # fmt: skip


def run_and_kill(script: str, move: Move, fatal: str) -> None:
    process = subprocess.run(
        [sys.executable, "-c", script],
        input=pickle.dumps((move, fatal)),
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=60,
        check=False,
    )
    assert process.returncode == -signal.SIGKILL, fatal


def left(stage: Stage) -> dict[str, int]:
    """Return what is still there of the tenant's move, by name."""
    found = {f"source {name}": rows(stage.source, query) for name, query in OF_SOURCE.items()}
    found |= {f"target {name}": rows(stage.target, query) for name, query in OF_TARGET.items()}
    return {name: count for name, [(count,)] in found.items() if count}


def set_phase(stage: Stage, phase: Phase) -> None:
    rows(stage.target, "UPDATE tenantferry.tenants SET phase = %s WHERE tenant = 'acme'", phase)


@pytest.fixture
def other(stage: Stage) -> Iterator[None]:
    """Another tenant, with all that the target may have of one."""
    tenant = stage.move.tenant.model_copy(update={"key": "globex", "id": OTHER_ID})
    with closing(open_connection(stage.move.target, purpose="test")) as target, target:
        ensure_registered(
            target, tenant="globex", tenant_id=OTHER_ID, source_identity="1/globex", run_id=None
        )
        ensure_tenant_role(target, tenant, settings=read_role_settings(stage.source, tenant))
        ensure_tenant_sequences(stage.source, target, tenant)
        rows(target, OTHER_RECORDS)
    _add_rows_of_both(stage)
    yield
    rows(stage.target, "SELECT pg_replication_origin_drop('tenantferry_globex')")


def _add_rows_of_both(stage: Stage) -> None:
    """Give another tenant rows of the same keys, in the pages between those of this one."""
    for start in range(1, 50, 10):
        for owner in (OTHER_ID, stage.move.tenant.id):
            rows(
                stage.target,
                "INSERT INTO public.written (id, tenant_id)"
                " SELECT n, %s FROM generate_series(%s, %s) AS n",
                str(owner), start, start + 9,
            )  # fmt: skip
    rows(
        stage.target,
        "INSERT INTO public.counted (id, note, tenant_id)"
        " SELECT n, 'of another', %s FROM generate_series(1, 9) AS n",
        str(OTHER_ID),
    )


def read_others(stage: Stage) -> list[tuple[Any, ...]]:
    """Return every version of every row of the other tenant, with its place and its transaction."""
    return [
        row
        for table in ("written", "counted")
        for row in rows(
            stage.target,
            f"SELECT '{table}', ctid::text, xmin::text, xmax::text, r::text"
            f" FROM public.{table} AS r WHERE tenant_id = %s ORDER BY ctid",
            str(OTHER_ID),
        )
    ]


def read_other_records(stage: Stage) -> list[list[tuple[Any, ...]]]:
    """Return what the target has of the other tenant beside its rows; something of each kind."""
    found = [rows(stage.target, query) for query in READ_OTHER_RECORDS]
    assert all(found)
    return found


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


def test_abort_killed_at_any_step_goes_on_where_it_was(stage: Stage, other: None) -> None:
    before, records = read_others(stage), read_other_records(stage)
    for step in STEPS:
        run_and_kill(SCRIPT, stage.move, step)
        if step in ("forgotten", "reverse slot"):
            assert stage.phase() == Phase.REGISTERED
        else:
            assert stage.phase() == Phase.ABORTING, step
            with pytest.raises(IllegalPhaseError):
                stream(stage.move, stop=threading.Event())

    abort(stage.move)

    assert left(stage) == {}
    assert read_others(stage) == before
    assert read_other_records(stage) == records


@pytest.mark.parametrize(
    "step",
    [
        prepare,
        backfill,
        validate,
        cutover,
        lambda move: stream(move, stop=threading.Event()),
    ],
    ids=["prepare", "backfill", "validate", "cutover", "stream"],
)
def test_no_other_step_goes_on_while_a_tenant_is_aborted(stage: Stage, step: Any) -> None:
    run_and_kill(SCRIPT, stage.move, "announced")
    before = left(stage)

    with pytest.raises(IllegalPhaseError):
        step(stage.move)

    assert stage.phase() == Phase.ABORTING
    assert left(stage) == before


def test_abort_says_what_is_left_when_the_source_is_away_and_goes_on_later(stage: Stage) -> None:
    away = replace(stage.move, source=replace(stage.move.source, port=free_port()))

    with pytest.raises(TransientError, match="out of its source") as caught:
        abort(away)

    assert 'slot "tenantferry_acme"' in caught.value.detail
    assert stage.phase() == Phase.ABORTING
    assert {name for name in left(stage) if name.startswith("source")} == {
        "source slots", "source publications",
    }  # fmt: skip
    assert "target counted" not in left(stage)
    abort(stage.move)
    assert left(stage) == {}


def test_abort_needs_no_pooler(stage: Stage) -> None:
    stage.pooler.stop()

    abort(stage.move)

    assert left(stage) == {}
    assert stage.phase() == Phase.REGISTERED


def test_abort_removes_the_alias_of_a_rehearsal_that_was_killed(stage: Stage) -> None:
    stage.pooler.set_alias(
        "tenantferry_acme", host="h", port=1, database="d", user="tenant_acme", password="p"
    )

    abort(stage.move)

    assert "tenantferry_acme" not in stage.pooler.aliases_file.read_text("utf-8")


def test_abort_does_not_clear_a_source_that_is_another_tenants(
    stage: Stage, source_server: PostgresServer
) -> None:
    name = f"{stage.move.source.database}_other"
    source_server.psql("-c", f"CREATE DATABASE {name} OWNER app_owner")
    wrong = replace(stage.move, source=stage.move.source.with_database(name))

    try:
        with pytest.raises(PermanentError, match="out of its source") as caught:
            abort(wrong)
    finally:
        source_server.psql("-c", f"DROP DATABASE {name} WITH (FORCE)")

    assert "not the one that it was prepared from" in caught.value.detail
    assert "source slots" in left(stage)


def test_abort_refuses_an_id_that_is_not_the_registered_one(stage: Stage, other: None) -> None:
    before, there = read_others(stage), left(stage)
    tenant = stage.move.tenant.model_copy(update={"id": OTHER_ID})

    with pytest.raises(PermanentError, match="registered with another id"):
        abort(replace(stage.move, tenant=tenant))

    assert (read_others(stage), left(stage)) == (before, there)


@pytest.mark.parametrize("phase", [Phase.LIVE, Phase.RETIRING, Phase.RETIRED], ids=str)
def test_abort_refuses_a_tenant_whose_clients_are_at_the_target(stage: Stage, phase: Phase) -> None:
    there = left(stage)
    set_phase(stage, phase)

    with pytest.raises(IllegalPhaseError, match="cannot be aborted") as caught:
        abort(stage.move)

    assert "rollback_tenant" in caught.value.hint
    assert stage.phase() == phase
    assert left(stage) == there


def test_abort_refuses_a_tenant_that_was_cut_over(stage: Stage) -> None:
    cutover(stage.move)
    stage.ask("INSERT INTO counted (note) VALUES ('only here')")

    with pytest.raises(IllegalPhaseError, match='in phase "live"'):
        abort(stage.move)

    assert stage.ask("SELECT count(*) FROM counted") == [(10,)]


def test_abort_of_a_tenant_that_nobody_prepared_says_so(move: Move) -> None:
    with pytest.raises(PermanentError, match="cannot be aborted") as caught:
        abort(move)

    assert "never prepared" in caught.value.detail


def test_abort_first_lets_clients_go_that_a_lost_cutover_keeps_waiting(stage: Stage) -> None:
    acl = stage.acl()
    with Writers([stage.client] * 2) as writers:
        writers.wait_for(20)
        run_and_kill(LOST_SCRIPT, stage.move, "fenced")
        assert stage.phase() == Phase.CUTTING_OVER
        abort(stage.move)
        writers.wait_for(20)

    assert writers.errors == []
    assert stage.acl() == acl
    assert left(stage) == {}


def test_abort_leaves_no_reverse_slot_of_a_cutover_that_was_undone(stage: Stage) -> None:
    def fail(step: str) -> None:
        if step == "fenced":
            raise TransientError("test")

    with pytest.raises(TransientError):
        cutover(stage.move, on_step=fail)
    assert left(stage)["target reverse slot"] == 1

    abort(stage.move)

    assert left(stage) == {}


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


def test_abort_says_what_it_waits_for_when_somebody_holds_the_tenants_row(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(abort_module, "_LOCK_TIMEOUT", "200ms")
    with closing(open_connection(stage.move.target, purpose="hung")) as hung:
        rows(hung, "SELECT FROM tenantferry.tenants FOR UPDATE")

        with pytest.raises(TransientError, match="could not announce"):
            abort(stage.move)

    assert stage.phase() == Phase.VALIDATED


def test_settling_says_what_it_waits_for_when_somebody_holds_the_attempt(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settlement, "_LOCK_TIMEOUT", "200ms")
    run_and_kill(LOST_SCRIPT, stage.move, "fenced")
    with closing(open_connection(stage.move.target, purpose="hung")) as hung:
        rows(hung, "SELECT FROM tenantferry.write_pauses FOR UPDATE")

        with pytest.raises(TransientError, match="could not settle") as caught:
            validate(stage.move)

    assert "write_pauses" in caught.value.detail
    abort(stage.move)
    assert left(stage) == {}


def test_abort_lowers_a_fence_that_an_undone_cutover_left_up(stage: Stage) -> None:
    acl = stage.acl()
    fence = plan_fence(stage.source)

    def fail(step: str) -> None:
        if step == "fenced":
            raise TransientError("test")

    with pytest.raises(TransientError):
        cutover(stage.move, on_step=fail)
    raise_fence(stage.source, fence, timeout_seconds=5)

    abort(stage.move)

    assert stage.acl() == acl


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


def test_abort_keeps_what_others_put_into_the_tenants_schema(stage: Stage) -> None:
    rows(stage.target, "CREATE TABLE t_acme.notes (id int)")

    with pytest.raises(PermanentError, match="cannot be dropped") as caught:
        abort(stage.move)

    assert "t_acme.notes" in caught.value.detail
    rows(stage.target, "DROP TABLE t_acme.notes")
    abort(stage.move)
    assert left(stage) == {}
