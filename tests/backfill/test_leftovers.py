"""What a backfill does with what an earlier try has left behind."""

from __future__ import annotations

import logging
from collections.abc import Callable
from uuid import UUID

import psycopg2
import pytest
from psycopg2.extensions import connection

from round_stage import KillAfter, Rounds, fetch, in_process_that_is_killed, run
from tenantferry.backfill import finished
from tenantferry.backfill.clearing import end_leftover_sessions, session_purpose
from tenantferry.backfill.finished import BackfillResult, find_obstacle
from tenantferry.backfill.running import run_backfill
from tenantferry.backfill.snapshot import drop_slot
from tenantferry.connections import ConnectionParams, open_connection
from tenantferry.control.chunks import read_chunks
from tenantferry.control.streams import (
    StreamRecord,
    mark_copy_again,
    origin_name,
    read_stream,
)
from tenantferry.errors import PermanentError, TransientError
from tenantferry.fleet import Tenant
from tenantferry.schema.catalog import read_tables
from tenantferry.stream.netchange import BrokenStreamError

CreatePair = Callable[[str, str, str], None]
Backfill = Callable[..., BackfillResult]

OTHER_ID = UUID("22222222-2222-2222-2222-222222222222")


def test_run_backfill_starts_over_when_the_slot_is_gone(
    *,
    source_owner: connection,
    source: connection,
    target: connection,
    create_pair: CreatePair,
    backfill: Backfill,
    tenant: Tenant,
) -> None:
    create_pair("items", "id bigint", "id")
    run(source_owner, "INSERT INTO items SELECT generate_series(1, 250)")
    first = backfill()
    run(source_owner, "DELETE FROM items WHERE id <= 50")
    drop_slot(source, tenant.slot)

    second = backfill()

    assert second.consistent_point > first.consistent_point
    assert fetch(target, "SELECT count(*), min(id) FROM public.items") == [(200, 51)]


def test_run_backfill_starts_over_when_the_slot_was_made_again_by_hand(
    *,
    source_owner: connection,
    source: connection,
    create_pair: CreatePair,
    backfill: Backfill,
    tenant: Tenant,
) -> None:
    create_pair("items", "id bigint", "id")
    run(source_owner, "INSERT INTO items VALUES (1)")
    first = backfill()
    drop_slot(source, tenant.slot)
    run(source_owner, "INSERT INTO items VALUES (2)")
    run(source, f"SELECT pg_create_logical_replication_slot('{tenant.slot}', 'pgoutput')")

    second = backfill()

    assert (first.rows, second.rows) == (1, 2)


def test_run_backfill_goes_on_when_it_was_killed_in_round_one(
    *,
    source_owner: connection,
    target: connection,
    create_pair: CreatePair,
    backfill: Backfill,
    tenant: Tenant,
) -> None:
    create_pair("items", "id bigint, pad text", "id")
    run(target, f"INSERT INTO public.items VALUES (1, 'theirs', '{OTHER_ID}')")
    run(source_owner, "INSERT INTO items SELECT n, 'x' FROM generate_series(1, 1000) n")

    def run_and_die() -> None:
        logger = logging.getLogger("tenantferry.backfill")
        logger.setLevel(logging.INFO)
        logger.addHandler(KillAfter(3))
        backfill()

    in_process_that_is_killed(run_and_die)
    done = {c.number: c for c in read_chunks(target, tenant.key) if c.done_at is not None}
    run(source_owner, "UPDATE items SET pad = 'y' WHERE id % 2 = 0")
    result = backfill()

    assert 3 <= len(done) < 10
    after = {chunk.number: chunk for chunk in read_chunks(target, tenant.key)}
    assert {number: after[number] for number in done} == done
    assert (result.rows, result.rounds) == (1000, 2)
    query = "SELECT tenant_id::text, pad, count(*) FROM public.items GROUP BY 1, 2 ORDER BY 1, 2"
    assert fetch(target, query) == [
        (str(tenant.id), "x", 500),
        (str(tenant.id), "y", 500),
        (str(OTHER_ID), "theirs", 1),
    ]


class EndSessions(logging.Handler):
    """Ends every session of the backfill in the target once a chunk is copied."""

    def __init__(self, target: connection, tenant: Tenant) -> None:
        super().__init__()
        self.target, self.tenant = target, tenant

    def emit(self, record: logging.LogRecord) -> None:
        if "copied chunk" in record.msg:
            end_leftover_sessions(self.target, self.tenant)


def test_run_backfill_can_be_retried_when_the_target_ends_its_sessions(
    *,
    source_owner: connection,
    target: connection,
    create_pair: CreatePair,
    backfill: Backfill,
    tenant: Tenant,
) -> None:
    create_pair("items", "id bigint", "id")
    run(source_owner, "INSERT INTO items SELECT generate_series(1, 1000)")
    logger = logging.getLogger("tenantferry.backfill.copying")
    logger.setLevel(logging.INFO)
    handler = EndSessions(target, tenant)
    logger.addHandler(handler)
    try:
        with pytest.raises(TransientError):
            backfill()
    finally:
        logger.removeHandler(handler)

    assert backfill().rows == 1000


def test_run_backfill_waits_for_the_chunk_that_a_dead_attempt_is_committing(
    *,
    source_owner: connection,
    source: connection,
    target: connection,
    target_params: ConnectionParams,
    create_pair: CreatePair,
    backfill: Backfill,
    tenant: Tenant,
) -> None:
    """A dead attempt has marked its chunk and is about to commit; it ends before we delete."""
    create_pair("items", "id bigint", "id")
    run(source_owner, "INSERT INTO items SELECT generate_series(1, 10)")
    backfill()
    run(target, "UPDATE tenantferry.chunks SET done_at = NULL; DELETE FROM public.items")
    zombie = open_connection(target_params, purpose=session_purpose(tenant))
    run(zombie, "UPDATE tenantferry.chunks SET done_at = now()")
    run(zombie, f"INSERT INTO public.items VALUES (99, '{tenant.id}')")

    result = backfill()

    with pytest.raises(psycopg2.OperationalError):
        zombie.commit()
    assert result.rows == 10
    assert fetch(target, "SELECT count(*) FROM public.items") == [(10,)]


@pytest.fixture
def begun(rounds: Rounds) -> Rounds:
    """A tenant of which one chunk of three is copied; the next try may copy all."""
    rounds.pair("items", "id bigint, name text")
    rounds.write("INSERT INTO items SELECT id, 'old' FROM generate_series(1, 30) id")
    rounds.copy_round()
    rounds.write("UPDATE items SET name = 'new' WHERE id % 2 = 0")
    return rounds


def lose_slot(begun: Rounds) -> None:
    drop_slot(begun.source, begun.tenant.slot)


def remake_slot(begun: Rounds) -> None:
    drop_slot(begun.source, begun.tenant.slot)
    run(
        begun.source,
        "SELECT pg_create_logical_replication_slot(%s, 'pgoutput')",
        begun.tenant.slot,
    )


def consume_slot(begun: Rounds) -> None:
    run(
        begun.source,
        "SELECT pg_replication_slot_advance(%s, pg_current_wal_lsn())",
        begun.tenant.slot,
    )


def find_rows_missing(begun: Rounds) -> None:
    mark_copy_again(begun.target, begun.tenant.key, needed=True)


def rename_table(begun: Rounds) -> None:
    begun.write("ALTER TABLE items RENAME TO articles")
    run(begun.target, "CREATE TABLE public.articles (LIKE public.items INCLUDING ALL)")


def change_key(begun: Rounds) -> None:
    begun.write(
        "ALTER TABLE items ALTER name SET NOT NULL; ALTER TABLE items DROP CONSTRAINT items_pkey;"
        " ALTER TABLE items ADD PRIMARY KEY (id, name)"
    )


def lose_origin(begun: Rounds) -> None:
    run(
        begun.target,
        "SELECT pg_replication_origin_drop(%s)",
        origin_name(begun.tenant.key),
    )


def set_back_origin(begun: Rounds) -> None:
    run(
        begun.target,
        "SELECT pg_replication_origin_advance(%s, '0/1')",
        origin_name(begun.tenant.key),
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param(lose_slot, "is gone or was invalidated", id="slot_lost"),
        pytest.param(remake_slot, "by somebody else", id="slot_made_again"),
        pytest.param(consume_slot, "by somebody else", id="slot_consumed"),
        pytest.param(find_rows_missing, "known to lack rows", id="copy_again"),
        pytest.param(
            rename_table,
            'were renamed, or have another key: "public.items"',
            id="table_renamed",
        ),
        pytest.param(change_key, 'another key: "public.items"', id="key_changed"),
        pytest.param(lose_origin, "positions disagree", id="origin_lost"),
        pytest.param(set_back_origin, "positions disagree", id="origin_behind"),
    ],
)
def test_run_backfill_starts_over_and_says_why(
    change: Callable[[Rounds], None],
    reason: str,
    begun: Rounds,
    caplog: pytest.LogCaptureFixture,
) -> None:
    change(begun)
    caplog.set_level(logging.INFO, logger="tenantferry.backfill")

    result = begun.run_backfill(round_budget_seconds=600.0)

    assert result.rounds == 1
    [told] = [r.getMessage() for r in caplog.records if "starts from nothing" in r.msg]
    assert reason in told
    begun.finish()


def test_run_backfill_goes_on_where_nothing_speaks_against_it(
    begun: Rounds, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="tenantferry.backfill")

    result = begun.run_backfill(round_budget_seconds=600.0)

    assert result.rounds == 2
    assert "starts from nothing" not in caplog.text
    begun.finish()


def test_run_backfill_starts_over_when_somebody_wrote_to_its_rows(begun: Rounds) -> None:
    """The catch-up counts rows, so it is noticed; clearing the task copies the tenant again."""
    run(begun.target, "DELETE FROM public.items WHERE id = 4")

    with pytest.raises(BrokenStreamError):
        begun.run_backfill()

    assert begun.run_backfill(round_budget_seconds=600.0).rounds == 1
    begun.finish()


def test_run_backfill_asks_for_a_retry_when_the_slot_is_lost_between_two_rounds(
    begun: Rounds,
) -> None:
    def catch_up_and_lose_the_slot(lsn: int) -> None:
        begun.catch_up_to(lsn)
        calls.append(lsn)
        if len(calls) == 2:
            drop_slot(begun.source, begun.tenant.slot)

    calls: list[int] = []
    with pytest.raises(TransientError, match="could not go on"):
        begun.run_backfill(catch_up=catch_up_and_lose_the_slot)

    assert begun.run_backfill(round_budget_seconds=600.0).rounds == 1
    begun.finish()


def test_a_slot_that_a_stream_confirms_just_now_is_not_taken_for_another_one(
    begun: Rounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_and_go_on(target: connection, tenant: str) -> StreamRecord | None:
        found = read_stream(target, tenant)
        run(target, "UPDATE tenantferry.streams SET confirmed = confirmed + (1 << 30)::numeric")
        consume_slot(begun)
        return found

    begun.write("INSERT INTO items VALUES (901, 'log that is confirmed')")
    monkeypatch.setattr(finished, "read_stream", read_and_go_on)
    tables = read_tables(begun.source, begun.tenant)

    assert find_obstacle(begun.source, begun.target, begun.tenant, tables) is None


@pytest.mark.parametrize("others", [[], ["others"]], ids=["nothing", "only what stays"])
def test_run_backfill_begins_nothing_where_nothing_is_published(
    rounds: Rounds, others: list[str]
) -> None:
    for name in others:
        rounds.pair(name, "id bigint")
        rounds.tables()
    rounds.pair("items", "id bigint")
    moving = [t for t in read_tables(rounds.source, rounds.tenant) if t.name not in others]

    with pytest.raises(PermanentError, match=r"no table .* is published") as refused:
        run_backfill(
            rounds.source_params,
            rounds.target_params,
            rounds.tenant,
            moving,
            catch_up=rounds.catch_up_to,
            report=rounds.reports.append,
        )

    assert '"preflight"' in refused.value.hint
    assert fetch(rounds.source, "SELECT slot_name FROM pg_replication_slots") == []
