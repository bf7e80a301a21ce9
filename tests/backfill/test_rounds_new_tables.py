"""
Orders of events around tables that come, or are dropped and made again, while others are copied.

As in test_rounds_orders.py: a round copies one chunk and compares all copied chunks. A table that
is not planned must be empty in the target.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
from psycopg2.extensions import connection

from round_stage import Rounds, die, fetch, in_process_that_is_killed, run
from tenantferry.backfill import rounds as engine
from tenantferry.backfill.finished import find_obstacle
from tenantferry.backfill.workers import copy_chunks
from tenantferry.connections import open_connection
from tenantferry.control.chunks import has_pending_chunks, read_chunks, record_published
from tenantferry.control.streams import mark_copy_again, require_stream
from tenantferry.errors import CopyAgainError, TenantferryError, TransientError
from tenantferry.fleet import Tenant
from tenantferry.schema.catalog import read_tables
from tenantferry.schema.model import Table
from tenantferry.schema.publication import read_entries
from tenantferry.stream import running
from tenantferry.stream.drift import DriftError
from tenantferry.stream.handshake import wait_for_position
from tenantferry.stream.marker import emit_marker
from tenantferry.stream.planned import PlannedTables, read_planned_tables
from tenantferry.stream.relations import Relations
from tenantferry.stream.running import run_stream

OTHER_ID = "22222222-2222-2222-2222-222222222222"
LATER = "id bigint, name text"
MADE_ANEW = (
    "DROP TABLE later",
    f"CREATE TABLE later ({LATER}, PRIMARY KEY (id))",
    "INSERT INTO later SELECT id, 'anew' FROM generate_series(2, 6) id",
)
LATER_NAMES = f"SELECT DISTINCT name FROM public.later WHERE tenant_id <> '{OTHER_ID}'"
COPIED = "SELECT id, xmin::text, ctid::text FROM public.items ORDER BY id"


@pytest.fixture
def items(rounds: Rounds) -> Rounds:
    """A table of two chunks, both copied, of which a row has changed since."""
    rounds.pair("items", "id bigint, name text")
    rounds.write("INSERT INTO items SELECT id, 'old' FROM generate_series(1, 20) id")
    rounds.copy_round()
    rounds.copy_round()
    rounds.write("UPDATE items SET name = 'new' WHERE id = 5")
    return rounds


@pytest.fixture
def later(items: Rounds) -> Rounds:
    """The same, and another table, which is copied, too."""
    items.pair("later", LATER)
    items.write("INSERT INTO later SELECT id, 'old' FROM generate_series(1, 5) id")
    run(items.target, f"INSERT INTO public.later VALUES (1, 'theirs', '{OTHER_ID}')")
    items.copy_round()
    assert items.copied() == {"items": {1, 2}, "later": {1}}
    return items


def test_added_write_publish_copy_catch_up(items: Rounds) -> None:
    items.pair("later", LATER)
    items.write("INSERT INTO later VALUES (1, 'old')", "UPDATE later SET name = 'new'")

    items.copy_round()

    assert items.copied() == {"items": {1, 2}, "later": {1}}
    items.write("UPDATE later SET name = 'newer'", "INSERT INTO later VALUES (2, 'new')")
    items.finish()


def test_added_write_publish_write_commit_copy_catch_up(items: Rounds) -> None:
    """Half of a transaction is not sent. The snapshot waits for its end, and shows all of it."""
    items.pair("later", LATER)
    with closing(open_connection(items.source_params, purpose="writer")) as writer:
        run(writer, "SET ROLE app_owner; INSERT INTO public.later VALUES (1, 'before')")
        items.tables()
        run(writer, "INSERT INTO public.later VALUES (2, 'after')")
        ending = threading.Timer(1, writer.commit)
        ending.start()
        items.copy_round()
        ending.join()

    assert items.copied() == {"items": {1, 2}, "later": {1}}
    items.write("UPDATE later SET name = 'new'")
    items.finish()


def test_added_publish_write_copy_catch_up(items: Rounds) -> None:
    items.pair("later", LATER)
    items.tables()

    items.copy_round(before_snapshot=["INSERT INTO later VALUES (1, 'x')", "DELETE FROM items"])

    items.write("UPDATE later SET id = 3")
    items.finish()


def test_added_publish_snapshot_write_copy_catch_up(items: Rounds) -> None:
    items.pair("later", LATER)
    items.write("INSERT INTO later VALUES (1, 'x'), (2, 'x')")

    items.copy_round(
        while_copying=["UPDATE later SET name = 'y' WHERE id = 1", "DELETE FROM later WHERE id = 2"]
    )

    items.finish()


def test_added_in_many_chunks_catch_up(items: Rounds) -> None:
    """Each of its chunks is copied in a round of its own; those of others stay where they are."""
    items.catch_up()
    before = fetch(items.target, COPIED)
    items.pair("later", LATER)
    items.write("INSERT INTO later SELECT id, 'old' FROM generate_series(1, 30) id")
    items.copy_round()
    assert items.copied() == {"items": {1, 2}, "later": {1}}

    items.write("UPDATE later SET name = 'new' WHERE id IN (5, 15, 25)", "DELETE FROM later"
                " WHERE id IN (6, 16, 26)", "UPDATE later SET id = -1 WHERE id = 27")  # fmt: skip
    items.finish()

    assert fetch(items.target, COPIED) == before


def test_added_unpublished_first_round_publish_copy_catch_up(rounds: Rounds) -> None:
    """A table comes between the publication and the first snapshot: it is left to a later round."""
    rounds.pair("items", "id bigint, name text")
    rounds.tables()
    rounds.pair("later", LATER)
    rounds.write("INSERT INTO later VALUES (1, 'old')")

    rounds.copy_round(publish=False)
    assert rounds.copied() == {"items": {1}}
    rounds.write("UPDATE later SET name = 'not sent'")
    rounds.copy_round()

    assert rounds.copied() == {"items": {1}, "later": {1}}
    rounds.write("UPDATE later SET name = 'new'")
    rounds.finish()


def test_copy_made_anew_publish_copy_catch_up(later: Rounds) -> None:
    """Changes of the dropped table, which are still to come, must not be of the new one's rows."""
    later.write("UPDATE later SET name = 'dropped' WHERE id = 5", *MADE_ANEW)
    later.tables()
    later.write("UPDATE later SET name = 'new' WHERE id = 5")

    later.copy_round()

    later.write("UPDATE later SET name = 'newer' WHERE id = 6", "DELETE FROM later WHERE id = 5")
    later.finish()
    theirs = f"SELECT id, name FROM public.later WHERE tenant_id = '{OTHER_ID}'"
    assert fetch(later.target, theirs) == [(1, "theirs")]


def test_publish_made_anew_snapshot(items: Rounds) -> None:
    """The new table is copied, but not published: once it is, all of it is copied again."""
    items.pair("later", LATER)
    items.copy_round(before_snapshot=MADE_ANEW)
    assert items.copied() == {"items": {1, 2}, "later": {1}}

    items.write("UPDATE later SET name = 'not sent'")
    items.copy_round()

    assert items.copied() == {"items": {1, 2}, "later": {1}}
    items.write("UPDATE later SET name = 'new' WHERE id = 2")
    items.finish()


def test_publish_snapshot_made_anew_copy(items: Rounds) -> None:
    items.pair("later", LATER)

    with pytest.raises(TransientError, match="truncated or rewritten"):
        items.copy_round(while_copying=MADE_ANEW)

    assert items.copied() == {"items": {1, 2}, "later": set()}
    items.copy_round()
    items.finish()


def test_made_anew_publish_catch_up(later: Rounds) -> None:
    """A catch-up that begins behind it applies nothing: it was not sent all changes."""
    later.write("UPDATE later SET name = 'dropped' WHERE id = 5", *MADE_ANEW)
    later.tables()
    later.write("UPDATE later SET name = 'new'")

    with pytest.raises(DriftError, match="not all changes of tables"):
        later.catch_up()

    assert fetch(later.target, LATER_NAMES) == [("old",)]
    later.copy_round()
    later.finish()


def test_made_anew_publish_write_stream(later: Rounds) -> None:
    """A stream that runs meanwhile stops before the first change of the new table."""
    with streaming(later, later.tables()) as failures:
        later.write("UPDATE later SET name = 'dropped'", *MADE_ANEW)
        later.tables()
        later.write("UPDATE later SET name = 'new'")

    [failure] = failures
    assert isinstance(failure, DriftError)
    assert "dropped and made again" in failure.message
    assert ("new",) not in fetch(later.target, LATER_NAMES)
    later.copy_round()
    later.finish()


AWAY = (
    "ALTER PUBLICATION {} DROP TABLE public.later",
    "ALTER PUBLICATION {} ADD TABLE ONLY public.later",
)
INSERTS_ONLY = (
    "ALTER PUBLICATION {} SET (publish = 'insert')",
    "ALTER PUBLICATION {} SET (publish = 'insert, update, delete, truncate')",
)
IN_PART = (
    "ALTER PUBLICATION {} SET TABLE ONLY public.items, ONLY public.later WHERE (id > 3)",
    "ALTER PUBLICATION {} SET TABLE ONLY public.items, ONLY public.later",
)
GAPS = {"a table away": AWAY, "inserts only": INSERTS_ONLY, "some rows": IN_PART}


@pytest.mark.parametrize("gap", GAPS.values(), ids=GAPS)
def test_copy_unpublish_write_publish_copy_catch_up(later: Rounds, gap: tuple[str, str]) -> None:
    """What was not sent for a while is copied again, whoever changed the publication."""
    leave_gap(later, gap)

    with pytest.raises(DriftError, match="not all changes of tables"):
        later.catch_up()
    later.copy_round()
    later.finish()


def test_copy_publication_dropped_write_publish_catch_up(later: Rounds) -> None:
    """Before PostgreSQL 18 nobody can read what was written meanwhile: all is copied again."""
    run(later.source, f"DROP PUBLICATION {later.tenant.publication}")
    later.write("UPDATE later SET name = 'not sent' WHERE id = 2")
    later.tables()

    with pytest.raises(CopyAgainError, match="while its publication was not there") as lost:
        later.catch_up()

    assert '"preflight"' in lost.value.hint
    mark_copy_again(later.target, later.tenant.key, needed=True)
    later.run_backfill()
    later.finish()


def leave_gap(rounds: Rounds, gap: tuple[str, str]) -> None:
    """Change a row while the publication does not publish that."""
    run(rounds.source, gap[0].format(rounds.tenant.publication))
    rounds.write("UPDATE later SET name = 'not sent' WHERE id = 2")
    run(rounds.source, gap[1].format(rounds.tenant.publication))


@pytest.mark.parametrize("is_published", [True, False])
def test_copy_write_renamed_write_renamed_back_catch_up(
    later: Rounds, *, is_published: bool
) -> None:
    """What was written under the old name, or under the new one, is not passed over meanwhile."""
    later.write("UPDATE later SET name = 'new' WHERE id = 5", "ALTER TABLE later RENAME TO renamed")
    later.write("UPDATE renamed SET name = 'renamed' WHERE id = 3")
    if is_published:
        later.tables()
    with pytest.raises(DriftError, match="was renamed"):
        later.catch_up()
    assert 'renamed, or have another key: "public.later"' in find_obstacle_of(later)

    later.write("ALTER TABLE renamed RENAME TO later")
    later.write("UPDATE later SET name = 'newest' WHERE id = 4")

    later.finish()


def test_copy_swapped_write_swapped_back_dropped_catch_up(later: Rounds) -> None:
    """What was written to another table that had the name for a while is not its own."""
    later.pair("spare", LATER)
    later.write("INSERT INTO spare VALUES (1, 'spare')")
    later.copy_round()
    later.write(
        "ALTER TABLE later RENAME TO old; ALTER TABLE spare RENAME TO later",
        "UPDATE later SET name = 'of the spare one'",
        "ALTER TABLE later RENAME TO spare; ALTER TABLE old RENAME TO later",
        "DROP TABLE spare",
        "UPDATE later SET name = 'new' WHERE id = 1",
    )

    later.finish()


def test_copy_replaced_publish_write_undone_catch_up(later: Rounds) -> None:
    """A migration puts a new table under the name, and is undone."""
    later.write("ALTER TABLE later RENAME TO old")
    later.write(f"CREATE TABLE later ({LATER}, PRIMARY KEY (id))")
    later.tables()
    later.write(
        "INSERT INTO later VALUES (1, 'of the new one')",
        "DROP TABLE later",
        "ALTER TABLE old RENAME TO later",
        "UPDATE later SET name = 'new' WHERE id = 2",
    )

    later.tables()
    later.finish()


def find_obstacle_of(rounds: Rounds) -> str:
    tables = read_tables(rounds.source, rounds.tenant)
    return find_obstacle(rounds.source, rounds.target, rounds.tenant, tables) or ""


def test_copy_write_attached_catch_up(later: Rounds) -> None:
    """Its changes become those of another table: none of them is passed over."""
    later.write("UPDATE later SET name = 'new' WHERE id = 5")
    later.write(
        "CREATE TABLE roots (id bigint, name text) PARTITION BY RANGE (id)",
        "ALTER TABLE roots ATTACH PARTITION later DEFAULT",
        "ALTER TABLE later REPLICA IDENTITY FULL",
        "ALTER TABLE roots REPLICA IDENTITY FULL",
    )
    later.tables()
    with pytest.raises(DriftError, match="was renamed, or does not move any more"):
        later.catch_up()
    run(later.target, "CREATE TABLE public.roots (LIKE public.later)")
    later.copy_round()

    assert later.copied() == {"items": {1, 2}, "roots": {1}}
    later.write("UPDATE roots SET name = 'newest' WHERE id = 5")
    later.finish()


def test_publish_dropped_copy(items: Rounds) -> None:
    """A table goes before it is copied: nothing of it is planned any more."""
    items.pair("later", LATER)
    items.pair("stays", LATER)
    with pytest.raises(TransientError):
        items.copy_round(while_copying=["TRUNCATE later, stays"])

    items.write("DROP TABLE later")
    items.copy_round()

    assert items.copied() == {"items": {1, 2}, "stays": {1}}
    items.finish()


@contextmanager
def streaming(rounds: Rounds, tables: tuple[Table, ...]) -> Iterator[list[Exception]]:
    """
    Stream tables beside the block, until somebody else takes over or it fails.

    :return: with what it ended.
    """
    stop = threading.Event()
    ends: list[Exception] = []

    def stream() -> None:
        try:
            run_stream(rounds.source_params, rounds.target_params, rounds.tenant, tables, stop=stop)
        except TenantferryError as error:
            ends.append(error)

    thread = threading.Thread(target=stream, daemon=True)
    thread.start()
    wait_until_applied(rounds)
    yield ends
    thread.join(30)
    stop.set()
    assert not thread.is_alive()


def wait_until_applied(rounds: Rounds) -> None:
    lsn = emit_marker(rounds.source, rounds.tenant)
    wait_for_position(rounds.target_params, rounds.tenant.key, lsn, timeout_seconds=30)


@pytest.mark.parametrize("knows_it", [True, False], ids=["started after it", "started before"])
def test_added_publish_write_stream_copy_catch_up(items: Rounds, *, knows_it: bool) -> None:
    """A stream leaves the table out, whether it knows it or not, and ends where a round begins."""
    tables = items.tables()
    items.pair("later", LATER)
    items.write("INSERT INTO later VALUES (1, 'old')")
    if knows_it:
        tables = items.tables()

    with streaming(items, tables):
        items.tables()
        items.write(
            "INSERT INTO later VALUES (2, 'new')",
            "UPDATE later SET name = 'new'",
            "UPDATE items SET name = 'newer' WHERE id = 5",
        )
        wait_until_applied(items)
        assert fetch(items.target, "SELECT FROM public.later") == []
        items.copy_round()

    items.write("UPDATE later SET name = 'newer'")
    items.finish()


def test_a_stream_does_not_begin_without_a_table_that_was_copied_meanwhile(items: Rounds) -> None:
    """It has read its tables, then somebody copied another one: it would leave out its changes."""
    tables = read_tables(items.source, items.tenant)
    items.pair("later", LATER)
    items.copy_round()
    items.write("INSERT INTO later VALUES (1, 'new')")
    position = require_stream(items.target, "acme").position

    with pytest.raises(TransientError, match="came while its stream was started"):
        run_stream(
            items.source_params, items.target_params, items.tenant, tables, stop=threading.Event()
        )

    assert require_stream(items.target, "acme").position == position
    items.finish()


def test_a_stream_does_not_begin_without_a_table_that_is_copied_while_it_looks(
    items: Rounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that was given a chunk needs no lock to commit it."""
    tables = read_tables(items.source, items.tenant)
    items.pair("later", LATER)
    items.write("INSERT INTO later VALUES (1, 'old')")
    is_copying, may_copy = threading.Event(), threading.Event()

    def wait_and_copy(*args: Any, **options: Any) -> int:
        is_copying.set()
        assert may_copy.wait(30)
        return copy_chunks(*args, **options)

    def look_and_wait(*args: Any) -> PlannedTables:
        assert is_copying.wait(30)
        try:
            return read_planned_tables(*args)
        finally:
            may_copy.set()
            while has_pending_chunks(items.target, "acme"):
                threading.Event().wait(0.01)

    monkeypatch.setattr(engine, "copy_chunks", wait_and_copy)
    copying = threading.Thread(target=items.copy_round)
    copying.start()
    assert is_copying.wait(30)
    monkeypatch.setattr(running, "read_planned_tables", look_and_wait)

    with pytest.raises(TransientError, match="came while its stream was started"):
        run_stream(
            items.source_params, items.target_params, items.tenant, tables, stop=threading.Event()
        )

    copying.join(30)
    monkeypatch.undo()
    assert items.copied() == {"items": {1, 2}, "later": {1}}
    items.write("UPDATE later SET name = 'new'")
    items.finish()


@pytest.mark.parametrize("step", ["forget_tables", "delete_rows", "plan_chunks", "store_chunks"])
def test_made_anew_publish_killed_before_it_is_planned(
    later: Rounds, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    later.write(*MADE_ANEW)
    later.tables()

    def run_and_die() -> None:
        monkeypatch.setattr(f"tenantferry.backfill.admitting.{step}", die)
        later.run_backfill()

    in_process_that_is_killed(run_and_die)
    later.write("UPDATE later SET name = 'new' WHERE id = 2")
    result = later.run_backfill()

    assert result.rounds == 4
    later.finish()


def test_added_publish_killed_while_it_is_copied(
    items: Rounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    items.pair("later", LATER)
    items.write("INSERT INTO later SELECT id, 'old' FROM generate_series(1, 30) id")
    before = [c for c in read_chunks(items.target, "acme") if c.table == "items"]

    def run_and_die() -> None:
        monkeypatch.setattr(engine, "copy_chunks", die)
        items.run_backfill()

    in_process_that_is_killed(run_and_die)
    items.write("UPDATE later SET name = 'new' WHERE id % 2 = 0")
    items.run_backfill()

    assert [c for c in read_chunks(items.target, "acme") if c.table == "items"] == before
    items.finish()


def test_added_publish_killed_altered_copy(items: Rounds, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a table of which nothing is copied, no change of any shape concerns us."""
    items.pair("later", LATER)
    items.write("INSERT INTO later VALUES (1, 'old')")
    before = [c for c in read_chunks(items.target, "acme") if c.table == "items"]

    def run_and_die() -> None:
        monkeypatch.setattr(engine, "copy_chunks", die)
        items.run_backfill()

    in_process_that_is_killed(run_and_die)
    items.write(
        "UPDATE later SET name = 'new'",
        "ALTER TABLE later ADD COLUMN more text",
        "ALTER TABLE later DROP CONSTRAINT later_pkey, ADD PRIMARY KEY (name)",
    )
    run(items.target, "ALTER TABLE public.later ADD COLUMN more text")
    run(items.target, "ALTER TABLE public.later ADD UNIQUE (tenant_id, name)")
    items.run_backfill()

    assert [c for c in read_chunks(items.target, "acme") if c.table == "items"] == before
    items.write("UPDATE later SET name = 'newer'")
    items.finish()


def test_without_a_look_at_what_is_copied_a_stream_loses_changes(
    items: Rounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = read_tables(items.source, items.tenant)
    items.pair("later", LATER)
    items.copy_round()
    items.write("INSERT INTO later VALUES (1, 'new')")
    with monkeypatch.context() as patch:
        patch.setattr(running, "read_planned_tables", know_only(tables))
        patch.setattr(Relations, "_read_name", lambda *_: None)
        with streaming(items, tables):
            # Whoever takes over ends it.
            items.catch_up()

    with pytest.raises(AssertionError, match=r"chunk 1 of public\.later"):
        items.finish()


def know_only(tables: Collection[Table]) -> Callable[..., PlannedTables]:
    """Return a reader of planned tables that looks for none that the stream does not know."""

    def read(source: connection, target: connection, tenant: Tenant, _: object) -> PlannedTables:
        known = [*tables, *read_tables(source, tenant)]
        return read_planned_tables(source, target, tenant, known)

    return read


@pytest.mark.parametrize("gap", GAPS.values(), ids=GAPS)
def test_without_entries_what_was_not_sent_is_lost(later: Rounds, gap: tuple[str, str]) -> None:
    leave_gap(later, gap)
    forget_entries(later)

    with pytest.raises(AssertionError, match=r"chunk 1 of public\.later"):
        later.finish()


def test_without_entries_a_table_made_anew_is_taken_for_the_dropped_one(later: Rounds) -> None:
    later.write(*MADE_ANEW, "DELETE FROM later WHERE id = 3")
    later.tables()
    forget_entries(later)

    with pytest.raises(AssertionError, match=r"chunk 1 of public\.later"):
        later.finish()


def forget_entries(rounds: Rounds) -> None:
    """Take what is copied for what is published now, by its name."""
    record_published(rounds.target, rounds.tenant.key, read_entries(rounds.source, rounds.tenant))


def test_without_a_look_at_the_name_what_was_written_under_the_old_one_is_lost(
    later: Rounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    later.write("UPDATE later SET name = 'new' WHERE id = 5", "ALTER TABLE later RENAME TO renamed")
    with monkeypatch.context() as patch:
        patch.setattr(Relations, "_read_name", lambda *_: None)
        later.catch_up()
    later.write("ALTER TABLE renamed RENAME TO later")

    with pytest.raises(AssertionError, match=r"chunk 1 of public\.later"):
        later.finish()
