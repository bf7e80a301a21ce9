"""
The model can fail: without one guard it finds rows that are not those of the source at P.

Each guard has a case of its own, which is exact with it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from psycopg2 import sql
from psycopg2.extensions import connection

import model_stage
from model_client import execute
from model_playing import Budget, play
from model_script import Script, parse_script
from model_stage import Stage
from tenantferry.control.chunks import record_published
from tenantferry.errors import TransientError
from tenantferry.fleet import Tenant
from tenantferry.lsn import format_lsn
from tenantferry.schema.model import Table
from tenantferry.schema.publication import ensure_publication, read_entries
from tenantferry.stream import merging, running
from tenantferry.stream.applier import Applier
from tenantferry.stream.loop import Loop
from tenantferry.stream.netchange import KeyedChanges, Row
from tenantferry.stream.partial import CopiedPart
from tenantferry.stream.pgoutput import NULL, UNCHANGED
from tenantferry.stream.progress import TargetProgress
from tenantferry.stream.reading import Reader
from tenantferry.stream.staging import Staged
from tenantferry.stream.walsender import Walsender

SLOT = "tenantferry_acme"
_TABLES = """\
--> case chunk_rows=3 workers=1 batch_bytes=1048576
--> tables
CREATE TABLE accounts (id integer PRIMARY KEY, name text, big text);
ALTER TABLE accounts ALTER big SET STORAGE EXTERNAL;
CREATE TABLE events (kind integer);
ALTER TABLE events REPLICA IDENTITY FULL;
--> rows
INSERT INTO accounts SELECT n, 'old', repeat(md5(n::text), 100) FROM generate_series(1, 6) AS n;
INSERT INTO events VALUES (1), (1);
"""
_COPIED = "--> round chunks=9 rounds=9\n"
_WRITTEN = "--> write\nINSERT INTO events VALUES (1), (2);\n"


def case(steps: str) -> Script:
    return parse_script(_TABLES + steps)


CHANGE_OF_WHAT_IS_NOT_COPIED = """\
--> round chunks=1 rounds=1
--> write
INSERT INTO accounts VALUES (7, 'new', 'x');
--> stream
"""
ROW_COMES_IN_WITHOUT_ALL_VALUES = """\
--> round chunks=1 rounds=1
--> write
UPDATE accounts SET id = -1 WHERE id = 6;
--> stream
"""
APPLIED = f"{_COPIED}{_WRITTEN}--> stream\n"
KILLED_BEFORE_THE_POSITION = (
    f"{_COPIED}{_WRITTEN}--> stream killed_at=changes_written nth=1\n--> stream\n"
)
KILLED_BEHIND_THE_POSITION = (
    f"{_COPIED}{_WRITTEN}--> stream killed_at=position_written nth=1\n--> stream\n"
)
TRUNCATED = f"{_COPIED}--> write\nTRUNCATE events;\n--> stream\n"
LARGE_VALUE_IS_NOT_SENT = (
    f"{_COPIED}--> write\nUPDATE accounts SET name = 'new' WHERE id = 2;\n--> stream\n"
)
COMES_WHILE_OTHERS_ARE_COPIED = f"""\
--> publish tables=accounts
--> round chunks=1 rounds=1
{_WRITTEN}--> publish tables=accounts,events
--> write
INSERT INTO events VALUES (3);
--> stream
--> round chunks=1 rounds=1
"""
AWAY_FOR_A_WHILE = f"""\
{_COPIED}--> publish tables=accounts
{_WRITTEN}--> publish tables=accounts,events
--> stream
"""
COMMITTED_AT_THE_FIRST_SNAPSHOT = """\
--> round chunks=1 rounds=1
--> across_first
UPDATE accounts SET name = 'first' WHERE id = 1;
--> across_second
UPDATE accounts SET name = 'second' WHERE id = 2;
--> across_third
UPDATE accounts SET name = 'third' WHERE id = 3;
"""
COMMITTED_AT_A_LATER_SNAPSHOT = f"--> round chunks=1 rounds=1\n{COMMITTED_AT_THE_FIRST_SNAPSHOT}"


def test_with_every_guard_all_cases_are_exact(stage: Stage) -> None:
    stage.play(
        case(
            COMMITTED_AT_THE_FIRST_SNAPSHOT
            + CHANGE_OF_WHAT_IS_NOT_COPIED
            + ROW_COMES_IN_WITHOUT_ALL_VALUES
            + COMMITTED_AT_A_LATER_SNAPSHOT
            + KILLED_BEFORE_THE_POSITION
            + KILLED_BEHIND_THE_POSITION
            + TRUNCATED
            + LARGE_VALUE_IS_NOT_SENT
            + AWAY_FOR_A_WHILE
        )
    )
    stage.play(case(COMES_WHILE_OTHERS_ARE_COPIED))

    assert stage.deaths == 2


def test_without_thinning_out_rows_come_before_their_chunk(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def keep_all(_: CopiedPart, __: object, ___: object, staged: Staged) -> Staged:
        return staged

    monkeypatch.setattr(CopiedPart, "thin_out", keep_all)

    with pytest.raises(AssertionError, match=r"chunk 2 of public\.accounts"):
        stage.play(case(CHANGE_OF_WHAT_IS_NOT_COPIED))


def test_without_giving_up_the_chunk_that_a_row_enters_its_large_value_is_lost(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CopiedPart, "_reopen_entered", lambda *_: None)

    with pytest.raises(AssertionError, match=r"chunk 1 of public\.accounts"):
        stage.play(case(ROW_COMES_IN_WITHOUT_ALL_VALUES))


def test_a_batch_that_is_applied_twice_is_found(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply = Applier.apply

    def apply_twice(self: Applier, batch: Any) -> None:
        apply(self, batch)
        apply(self, batch)

    monkeypatch.setattr(Applier, "apply", apply_twice)

    with pytest.raises(AssertionError, match=r"chunk 1 of public\.events"):
        stage.play(case(APPLIED))


def test_a_position_that_is_stored_behind_its_rows_is_found(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = TargetProgress.record

    def commit_and_record(self: TargetProgress, cursor: Any, step: Any) -> None:
        cursor.connection.commit()
        record(self, cursor, step)

    monkeypatch.setattr(TargetProgress, "record", commit_and_record)

    with pytest.raises(AssertionError, match=r"chunk 1 of public\.events"):
        stage.play(case(KILLED_BEHIND_THE_POSITION))


def test_a_slot_that_is_confirmed_before_its_changes_are_flushed_is_found(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit = Loop._submit
    is_confirmed = (
        "SELECT 1 FROM pg_replication_slots"
        " WHERE slot_name = %s AND confirmed_flush_lsn >= %s::pg_lsn"
    )

    def confirm_and_submit(self: Loop) -> None:
        reader = self._reader
        if not (self._worker.is_busy or reader.batch.is_empty or reader.in_transaction):
            self._confirm_beyond(reader.batch.position)
            lsn = format_lsn(reader.batch.position)
            while not execute(self._heartbeat._sender, is_confirmed, SLOT, lsn):
                threading.Event().wait(0.01)
        submit(self)

    monkeypatch.setattr(Loop, "_submit", confirm_and_submit)

    with pytest.raises(AssertionError, match=r"chunk 1 of public\.events"):
        stage.play(case(KILLED_BEFORE_THE_POSITION))


def test_a_truncate_of_everybody_is_found(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "_in_scope", lambda *_: sql.SQL("true"))

    with pytest.raises(AssertionError, match="rows of another tenant"):
        stage.play(case(TRUNCATED))


def test_a_null_for_a_value_that_was_not_sent_is_found(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    updates = KeyedChanges.updates

    def with_nulls(self: KeyedChanges) -> Iterator[Row]:
        for row in updates(self):
            row.fields = [NULL if field is UNCHANGED else field for field in row.fields]
            yield row

    monkeypatch.setattr(KeyedChanges, "updates", with_nulls)

    with pytest.raises(AssertionError, match=r"chunk 1 of public\.accounts"):
        stage.play(case(LARGE_VALUE_IS_NOT_SENT))


def test_a_table_that_was_away_for_a_while_is_found(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ensure_and_forget(source: connection, tenant: Tenant, tables: list[Table]) -> bool:
        changed = ensure_publication(source, tenant, tables)
        with stage.sessions() as (_, target):
            record_published(target, tenant.key, read_entries(source, tenant))
        return changed

    monkeypatch.setattr(model_stage, "ensure_publication", ensure_and_forget)

    with pytest.raises(AssertionError, match=r"chunk 1 of public\.events"):
        stage.play(case(AWAY_FOR_A_WHILE))


def test_a_case_that_fails_prints_and_leaves_a_script_that_fails_again(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(merging, "_in_scope", lambda *_: sql.SQL("true"))
    failed = tmp_path / "model" / "failed.sql"

    with pytest.raises(AssertionError, match="rows of another tenant") as raised:
        play(stage, case(TRUNCATED), Budget(60), failed=failed)

    [note] = raised.value.__notes__
    left = failed.read_text("utf-8")
    assert note == f"{left}-- This is in a file: make replay SCRIPT={failed}"
    assert parse_script(note) == parse_script(left) == case(TRUNCATED)
    with pytest.raises(AssertionError, match="rows of another tenant"):
        stage.play(parse_script(note))


def play_until_caught(stage: Stage, steps: str) -> None:
    """Play again: the server itself may write to its log before the third transaction commits."""
    for _ in range(5):
        stage.play(case(steps))


def test_a_snapshot_that_is_thought_to_hold_its_own_lsn_is_found(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The transaction with ``commit_lsn = S`` is neither copied nor streamed."""

    def after(*args: Any, position: int, **options: Any) -> Walsender:
        return Walsender(*args, position=position + 1, **options)

    monkeypatch.setattr(running, "Walsender", after)

    with pytest.raises(AssertionError, match=r"chunk 1 of public\.accounts"):
        play_until_caught(stage, COMMITTED_AT_THE_FIRST_SNAPSHOT)


def test_a_stream_that_goes_on_to_the_lsn_itself_is_found(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The transaction with ``commit_lsn = S`` is applied, but not in the snapshot."""

    def is_beyond(self: Reader, begin: Any) -> bool:
        return self.limit is not None and begin.final_lsn > self.limit

    monkeypatch.setattr(Reader, "_is_beyond", is_beyond)

    with pytest.raises(TransientError, match="to its snapshot exactly"):
        play_until_caught(stage, COMMITTED_AT_A_LATER_SNAPSHOT)
