"""What each guard of the rounds is for: without it the comparison finds wrong rows."""

from __future__ import annotations

import threading
from typing import Any

import psycopg2
import pytest
from psycopg2.extensions import connection

from round_stage import Rounds, run
from tenantferry.backfill import copying
from tenantferry.connections import open_connection
from tenantferry.control.chunks import mark_chunk_done
from tenantferry.control.streams import lock_stream
from tenantferry.errors import TransientError
from tenantferry.stream import running
from tenantferry.stream.applier import Applier
from tenantferry.stream.partial import CopiedPart
from tenantferry.stream.staging import Staged


@pytest.fixture
def items(rounds: Rounds) -> Rounds:
    """A table of three chunks of ten rows, of which the first is copied."""
    rounds.pair(
        "items",
        "id bigint, name text, big text",
        source="ALTER TABLE items ALTER big SET STORAGE EXTERNAL",
    )
    rounds.write(
        "INSERT INTO items SELECT id, 'old', repeat(md5(id::text), 200)"
        " FROM generate_series(1, 30) id"
    )
    rounds.copy_round()
    return rounds


def test_without_a_catch_up_copied_chunks_are_older_than_the_others(
    items: Rounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Applier, "_apply_table", lambda *_: None)
    items.write("UPDATE items SET name = 'new' WHERE id = 5")

    with pytest.raises(AssertionError, match=r"chunk 1 of public\.items"):
        items.copy_round()


def test_without_thinning_out_rows_are_there_before_their_chunk_is_copied(
    items: Rounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    def keep_all(_: CopiedPart, __: object, ___: object, staged: Staged) -> Staged:
        return staged

    monkeypatch.setattr(CopiedPart, "thin_out", keep_all)
    items.write("INSERT INTO items VALUES (100, 'new', 'x')")

    with pytest.raises(AssertionError, match=r"chunk 3 of public\.items"):
        items.copy_round()


def test_without_giving_up_the_chunk_a_value_that_is_not_sent_is_lost(
    items: Rounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CopiedPart, "_reopen_entered", lambda *_: None)
    items.write("UPDATE items SET id = -25 WHERE id = 25")

    with pytest.raises(AssertionError, match=r"chunk 1 of public\.items"):
        items.copy_round()


def test_a_round_refuses_to_copy_where_the_stream_is_beyond_its_snapshot(items: Rounds) -> None:
    """Somebody else has moved P: what is copied as of the snapshot would be older."""

    def catch_up_too_far(lsn: int) -> None:
        items.catch_up_to(lsn)
        items.write("UPDATE items SET name = 'new'")
        items.catch_up()

    with pytest.raises(TransientError, match="to its snapshot exactly"):
        items.copy_round(catch_up=catch_up_too_far)

    items.finish()


def test_a_round_ends_a_session_that_would_still_move_the_position(items: Rounds) -> None:

    def catch_up_and_be_followed(lsn: int) -> None:
        items.catch_up_to(lsn)
        zombie = open_connection(items.target_params, purpose="stream acme")
        with zombie.cursor() as cursor:
            lock_stream(cursor, items.tenant.key)
        run(zombie, "UPDATE tenantferry.streams SET position = position + 1000")
        zombies.append(zombie)

    zombies: list[connection] = []
    items.copy_round(catch_up=catch_up_and_be_followed)

    assert len(zombies) == 2
    for zombie in zombies:
        with pytest.raises(psycopg2.OperationalError):
            zombie.commit()
    items.finish()


def commit_chunk_of_a_dead_process(rounds: Rounds, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A process has read chunk 3 under its snapshot and hangs. Another one moves P, and does not
    bring to chunk 3 what was written meanwhile; then the first one commits.

    :raises BaseException: what the first process fails with.
    """
    reached, may_go_on = threading.Event(), threading.Event()
    failures: list[BaseException] = []

    def mark_late(target: Any, tenant: str, *, number: int, **facts: Any) -> bool:
        if number == 3:
            reached.set()
            may_go_on.wait(30)
        return mark_chunk_done(target, tenant, number=number, **facts)

    def copy() -> None:
        try:
            rounds.copy_round()
        except BaseException as failure:  # noqa: BLE001 - the test looks at it
            failures.append(failure)

    monkeypatch.setattr(copying, "mark_chunk_done", mark_late)
    rounds.tenant = rounds.tenant.model_copy(update={"backfill_workers": 2})
    thread = threading.Thread(target=copy)
    thread.start()
    assert reached.wait(30)
    rounds.write("UPDATE items SET name = 'new' WHERE id = 25")
    rounds.catch_up()
    may_go_on.set()
    thread.join()
    if failures:
        raise failures[0]


def test_a_chunk_of_an_earlier_round_is_not_committed_after_the_position_has_moved(
    items: Rounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TransientError, match="taken over by another process"):
        commit_chunk_of_a_dead_process(items, monkeypatch)

    assert items.copied() == {"items": {1, 2}}
    items.finish()


def test_without_taking_chunks_back_one_is_committed_as_it_was_before_the_position(
    items: Rounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "take_back_chunks", lambda *_: None)

    with pytest.raises(AssertionError):  # the round looks where P is
        commit_chunk_of_a_dead_process(items, monkeypatch)

    with pytest.raises(AssertionError, match=r"chunk 3 of public\.items"):
        items.compare(None)
