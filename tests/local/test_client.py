from __future__ import annotations

import random
import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING

import psycopg2
import pytest

from tenantferry.local.auditor import audit
from tenantferry.local.client import Schedule, Session, run_worker
from tenantferry.local.journal import Journal, Kind, Outcome, Write, read_journal
from tenantferry.local.measurements import Measurements
from tenantferry.local.workload import Memory, Request, UnexpectedAnswerError

if TYPE_CHECKING:
    from tests.local.conftest import Application


def test_client_writes_every_table_and_the_audit_is_green(shop: Application) -> None:
    summary = shop.run_client(acknowledged_writes=400)

    with closing(shop.connect()) as reader:
        result = audit(reader, shop.journal)
    assert summary.failures == ()
    assert summary.failed == 0
    assert summary.requests > 0
    assert summary.p99_latency_ms is not None
    assert result.lost_writes == 0
    assert result.acknowledged_writes == summary.acknowledged_writes >= 400
    written = {write.table for entry in read_journal(shop.journal) for write in entry.writes}
    assert written >= {"customers", "invoices", "invoice_items", "payments", "users"}


def test_audit_of_a_real_client_fails_when_its_writes_are_undone(shop: Application) -> None:
    shop.run_client(acknowledged_writes=100)
    updated = next(
        write.key["id"]
        for entry in read_journal(shop.journal)
        for write in entry.writes
        if write.table == "customers" and "balance" in write.values
    )

    shop.execute("UPDATE public.customers SET balance = balance - 1 WHERE id = %s", updated)

    with closing(shop.connect()) as reader:
        result = audit(reader, shop.journal)
    assert result.lost_writes == 1
    assert "customers" in result.differences[0]


def test_client_counts_a_failed_request_when_its_connection_is_ended(
    shop: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in shop.environment.items():
        monkeypatch.setenv(name, value)

    def select_one(cursor: psycopg2.extensions.cursor) -> list[Write]:
        cursor.execute("SELECT 1")
        return []

    select = Request("select", select_one)

    with Journal(shop.journal) as journal, closing(Session(journal)) as session:
        before = session.perform(select)
        shop.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE usename = 'shop_app' AND datname = current_database()"
        )
        ended = session.perform(select)
        after = session.perform(select)

    assert (before.failure, after.failure) == ("", "")
    assert ended.failure.startswith("select: ")


def test_client_journals_nothing_when_a_deferred_constraint_refuses_the_commit(
    shop: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in shop.environment.items():
        monkeypatch.setenv(name, value)

    def break_promise(cursor: psycopg2.extensions.cursor) -> list[Write]:
        cursor.execute("UPDATE accounts SET owner_user_id = -1 WHERE id = 1")
        return [Write("public", "accounts", Kind.UPDATE, {"id": "1"}, {"owner_user_id": "-1"})]

    with Journal(shop.journal) as journal, closing(Session(journal)) as session:
        answer = session.perform(Request("break_promise", break_promise))

    assert "at COMMIT" in answer.failure
    assert list(read_journal(shop.journal)) == []


def test_client_journals_an_unknown_outcome_when_the_server_dies_at_commit(
    shop: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in shop.environment.items():
        monkeypatch.setenv(name, value)

    def write_and_lose_the_server(cursor: psycopg2.extensions.cursor) -> list[Write]:
        cursor.execute("UPDATE accounts SET name = 'x' WHERE id = 1")
        shop.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE usename = 'shop_app' AND datname = current_database()"
        )
        return [Write("public", "accounts", Kind.UPDATE, {"id": "1"}, {"name": "x"})]

    with Journal(shop.journal) as journal, closing(Session(journal)) as session:
        answer = session.perform(Request("write", write_and_lose_the_server))

    (entry,) = read_journal(shop.journal)
    assert entry.outcome is Outcome.UNKNOWN
    assert answer.failure
    with closing(shop.connect()) as reader:
        assert audit(reader, shop.journal).lost_writes == 0


def test_memory_notices_when_an_own_write_is_not_there(shop: Application) -> None:
    memory = Memory()
    memory.learn([Write("public", "accounts", Kind.UPDATE, {"id": "1"}, {"name": "never"})])

    with (
        closing(shop.connect()) as opened,
        opened.cursor() as cursor,
        pytest.raises(UnexpectedAnswerError, match="not as this client wrote it"),
    ):
        memory.read_back(cursor, random.Random(1))


def test_latency_counts_from_the_due_moment_when_a_request_waits_behind_a_slow_one(
    shop: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in shop.environment.items():
        monkeypatch.setenv(name, value)
    stop = threading.Event()
    calls = 0

    class SlowOnce:
        def next_request(self) -> Request:
            return Request("select", self._run)

        def learn(self, writes: object) -> None:
            pass

        def _run(self, cursor: psycopg2.extensions.cursor) -> list[Write]:
            nonlocal calls
            calls += 1
            if calls == 1:
                time.sleep(0.5)  # the slow request itself
            elif calls == 20:
                stop.set()
            return []

    measurements = Measurements()
    with Journal(shop.journal) as journal:
        run_worker(Session(journal), SlowOnce(), Schedule(100), measurements, stop)

    summary = measurements.summarize(finished=True)
    assert summary.requests == 20
    # Half of the twenty fell due while the first one ran.
    assert summary.p50_latency_ms is not None
    assert summary.p50_latency_ms > 200
