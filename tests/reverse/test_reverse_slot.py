"""The slot is there before anybody needs it, and goes when nobody does."""

from __future__ import annotations

import threading
import time
from contextlib import closing

import pytest
from psycopg2 import errors
from psycopg2.extensions import connection

from reverse_stage import Way, drop_slot, execute, wait_until
from tenantferry.connections import open_connection
from tenantferry.control.graces import REVERSE_SLOT, lose_way_back
from tenantferry.control.phases import Phase
from tenantferry.control.reverse_slot import (
    lose_reverse_slot,
    read_reverse_slot,
    record_reverse_slot,
)
from tenantferry.errors import PermanentError, TransientError
from tenantferry.local.postgres import PostgresServer
from tenantferry.lsn import format_lsn, parse_lsn
from tenantferry.reverse import loop, slot
from tenantferry.reverse.slot import check_reverse_slot, drop_reverse_slot, ensure_reverse
from tenantferry.schema import reverse_publication
from tenantferry.schema.catalog import read_tables
from tenantferry.schema.findings import Verdict
from tenantferry.schema.preflight import run_preflight
from tenantferry.stream.marker import emit_marker

_EXISTS = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = %s"
_IDENTITIES = """
SELECT c.relname::text, c.relreplident::text
FROM pg_class AS c JOIN pg_publication_rel AS p ON p.prrelid = c.oid ORDER BY 1
"""


def exists(way: Way) -> bool:
    return execute(way.target, _EXISTS, REVERSE_SLOT) == [(1,)]


def test_ensure_reverse_publishes_the_tables_of_tenants_and_no_others(way: Way) -> None:
    way.table("items", "id integer, name text")
    execute(way.target, "CREATE TABLE public.countries (code text PRIMARY KEY)")
    execute(way.target, "CREATE TABLE public.lookalike (id integer, tenant_id uuid NOT NULL)")

    way.ensure()
    way.ensure()
    first = execute(way.target, _IDENTITIES)
    way.table("later", "id integer, name text")
    way.ensure()

    assert first == [("items", "d")]
    assert execute(way.target, _IDENTITIES) == [("items", "d"), ("later", "d")]
    assert exists(way)


def test_published_tables_can_still_be_written_by_everybody_gotcha_4(way: Way) -> None:
    stored = "id integer, twice integer GENERATED ALWAYS AS (id * 2) STORED"
    way.table("keyless", "id integer", key="")
    way.table("computed", stored, key="")
    way.table("indexed", "id integer NOT NULL, other integer", key="",
              target="CREATE UNIQUE INDEX indexed_key ON indexed (tenant_id, id)")  # fmt: skip
    way.table("deferred", "id integer", key="",
              target="ALTER TABLE deferred ADD PRIMARY KEY (tenant_id, id) DEFERRABLE")  # fmt: skip
    way.table("nothing", "id integer", target="ALTER TABLE nothing REPLICA IDENTITY NOTHING")

    way.ensure()

    assert execute(way.target, _IDENTITIES) == [
        ("computed", "f"), ("deferred", "f"), ("indexed", "i"), ("keyless", "f"), ("nothing", "d"),
    ]  # fmt: skip
    for table in ("keyless", "computed", "indexed", "deferred", "nothing"):
        way["globex"].write(
            f"INSERT INTO {table} (id) VALUES (1), (2)",
            f"UPDATE {table} SET id = 3 WHERE id = 1",
            f"DELETE FROM {table}",
        )


def test_publishing_without_an_identity_would_stop_the_clients(way: Way) -> None:
    # The guard of the test above.
    way.table("keyless", "id integer", key="")
    execute(way.target, "CREATE PUBLICATION other FOR TABLE public.keyless")
    way["globex"].write("INSERT INTO keyless VALUES (1)")

    with pytest.raises(errors.ObjectNotInPrerequisiteState):
        way["globex"].write("DELETE FROM keyless")


def test_ensure_reverse_refuses_a_table_that_publishing_would_break(
    way: Way, target_server: PostgresServer
) -> None:
    if target_server.installation.major < 18:
        pytest.skip("virtual columns come with PostgreSQL 18")
    execute(
        way.target,
        "CREATE TABLE public.odd (id integer, tenant_id uuid NOT NULL,"
        " twice integer GENERATED ALWAYS AS (id * 2) VIRTUAL);"
        " ALTER TABLE public.odd ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;"
        " CREATE POLICY tenant_isolation ON public.odd USING (false)",
    )

    with pytest.raises(PermanentError, match=r"public\.odd"):
        way.ensure()


def test_ensure_reverse_keeps_what_is_there_from_an_interrupted_creation(way: Way) -> None:
    way.ensure()
    execute(way.target, "DELETE FROM tenantferry.reverse_slot")

    way.ensure()

    assert read_reverse_slot(way.target) is not None


def test_ensure_reverse_says_what_it_waits_for_gotcha_11(way: Way) -> None:
    execute(way["acme"].client, "BEGIN; SELECT pg_current_xact_id()")

    with pytest.raises(TransientError, match="waits for every transaction") as error:
        ensure_reverse(way.target_params, timeout_seconds=0.5)

    assert "tenantferry test" in error.value.detail
    assert not exists(way)
    execute(way["acme"].client, "COMMIT")
    way.ensure()
    assert exists(way)


def test_ensure_reverse_at_the_same_time_makes_one_slot(way: Way) -> None:
    failures: list[BaseException] = []

    def ensure() -> None:
        try:
            way.ensure()
        except BaseException as error:  # noqa: BLE001  # the test looks at it
            failures.append(error)

    threads = [threading.Thread(target=ensure) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    assert exists(way)


def test_ensure_reverse_replaces_a_slot_that_is_gone_and_says_who_lost(
    way: Way, target_server: PostgresServer
) -> None:
    way.ensure()
    way.go_live("acme")
    drop_slot(target_server)

    way.ensure()

    assert exists(way)
    assert "does not exist" in (way.grace("acme").lost_reason or "")
    check_reverse_slot(way.target)


def test_a_slot_that_a_cutover_makes_anew_is_not_dropped_by_who_finds_the_former_lost(
    way: Way, target_server: PostgresServer
) -> None:
    way.table("items", "id integer")
    way.ensure()
    way.go_live("acme")
    drop_slot(target_server)
    waits = (
        "SELECT pid FROM pg_stat_activity WHERE application_name = 'tenantferry reverse stream'"
        " AND wait_event_type = 'Lock'"
    )
    with closing(open_connection(way.target_params, purpose="cutover", autocommit=True)) as cutover:
        execute(cutover, "SELECT pg_advisory_lock(hashtextextended('tenantferry reverse slot', 0))")
        with way.follow() as following:
            wait_until(lambda: execute(cutover, waits) != [])
            lose_reverse_slot(cutover, reason="It is gone.")
            way.begin_grace("globex")
            [(lsn,)] = execute(
                cutover,
                "SELECT lsn::text FROM pg_create_logical_replication_slot(%s, 'pgoutput')",
                REVERSE_SLOT,
            )
            record_reverse_slot(cutover, confirmed=parse_lsn(lsn))
            execute(cutover, "SELECT pg_advisory_unlock_all()")
            error = following.failure()

    assert isinstance(error, TransientError)
    assert "was replaced just now" in str(error)
    assert exists(way)
    assert way.grace("globex").lost_at is None


def test_check_reverse_slot_refuses_a_flip_without_a_slot(
    way: Way, target_server: PostgresServer
) -> None:
    with pytest.raises(TransientError):
        check_reverse_slot(way.target)

    way.ensure()
    check_reverse_slot(way.target)

    drop_slot(target_server)
    with pytest.raises(TransientError):
        check_reverse_slot(way.target)


def test_drop_reverse_slot_leaves_nothing_and_ends_the_process(way: Way) -> None:
    way.ensure()

    with way.follow() as following:
        wait_until(lambda: way.slot.reported_at is not None)
        assert drop_reverse_slot(way.target_params)
        following.join()

    assert following.result is not None
    assert following.result.reason == "the reverse slot was given up"
    assert not exists(way)
    assert execute(way.target, "SELECT count(*) FROM pg_publication") == [(0,)]
    assert drop_reverse_slot(way.target_params)


@pytest.mark.parametrize("why", ["grace", Phase.VALIDATED, Phase.CUTTING_OVER], ids=str)
def test_drop_reverse_slot_keeps_what_somebody_needs(way: Way, why: str) -> None:
    way.ensure()
    if why == "grace":
        way.go_live("acme")
    else:
        execute(
            way.target,
            "UPDATE tenantferry.tenants SET phase = %s WHERE tenant = 'acme'",
            why,
        )

    assert not drop_reverse_slot(way.target_params)

    assert exists(way)


def test_drop_reverse_slot_does_not_wait_for_ever(
    way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    way.ensure()
    monkeypatch.setattr(slot, "_LOCK_TIMEOUT", "200ms")
    with closing(open_connection(way.target_params, purpose="hangs")) as hung:
        execute(hung, "SELECT FROM tenantferry.reverse_slot FOR KEY SHARE")

        with pytest.raises(TransientError, match="could not give up") as caught:
            drop_reverse_slot(way.target_params)

    assert "lock timeout" in caught.value.detail
    assert exists(way)


def test_drop_reverse_slot_waits_for_a_flip_and_then_sees_its_grace(way: Way) -> None:
    way.ensure()
    attempt = way.begin_attempt("acme")
    answers: list[bool] = []
    dropping = threading.Thread(target=lambda: answers.append(drop_reverse_slot(way.target_params)))

    with closing(open_connection(way.target_params, purpose="flip")) as flip:
        check_reverse_slot(flip)
        dropping.start()
        wait_until(lambda: is_waiting(way.target))
        way.begin_grace("acme", attempt=attempt)
        flip.commit()
    dropping.join()

    assert answers == [False]
    assert exists(way)


def is_waiting(target: connection) -> bool:
    return execute(
        target,
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        " AND datname = current_database()",
    ) != [(0,)]


def test_a_flip_is_not_held_up_by_the_reports_of_the_process(way: Way) -> None:
    way.ensure()

    with way.follow(), closing(open_connection(way.target_params, purpose="flip")) as flip:
        check_reverse_slot(flip)
        before = way.slot.reported_at
        deadline = time.monotonic() + 5
        # While a flip is open the process goes on reporting.
        wait_until(lambda: way.slot.reported_at != before)
        assert time.monotonic() < deadline
        flip.rollback()


def test_without_a_tenant_in_grace_the_target_may_delete_its_log(way: Way) -> None:
    way.table("items", "id integer, name text")
    way.ensure()

    with way.follow():
        way["acme"].write("INSERT INTO items VALUES (1, 'nobody follows')")
        lsn = emit_marker(way.target, way["acme"].tenant)
        wait_until(lambda: way.slot.read_to >= lsn)
        wait_until(
            lambda: (
                execute(
                    way.target,
                    "SELECT confirmed_flush_lsn >= %s::pg_lsn FROM pg_replication_slots"
                    " WHERE slot_name = %s",
                    format_lsn(lsn),
                    REVERSE_SLOT,
                )
                == [(True,)]
            )
        )


def test_a_change_is_decoded_once_whatever_the_number_of_tenants(empty_way: Way) -> None:
    way = empty_way
    for key in ("acme", "globex", "initech"):
        way.add(key)
    way.table("items", "id integer, name text")
    way.ensure()
    way.go_live()

    with way.follow() as following:
        for side in way.sides.values():
            side.write("INSERT INTO items SELECT i, 'x' FROM generate_series(1, 100) AS i")
        following.catch_up()
        senders = execute(way.target, "SELECT count(*) FROM pg_stat_replication")
        slots = execute(way.target, "SELECT count(*) FROM pg_replication_slots")

    assert following.result is not None
    assert following.result.changes == 300
    assert (senders, slots) == ([(1,)], [(1,)])


def test_a_lost_way_back_does_not_keep_the_slot(way: Way) -> None:
    way.ensure()
    way.go_live("acme")
    lose_way_back(way.target, way.grace("acme").id, reason="It was lost.")

    assert drop_reverse_slot(way.target_params)


def test_preflight_does_not_mind_what_the_reverse_stream_leaves_in_a_source(way: Way) -> None:
    acme = way["acme"]
    execute(acme.owner, "CREATE TABLE items (id integer PRIMARY KEY)")
    way.table("others", "id integer")
    way.ensure()
    way.go_live("acme")
    with way.follow() as following:
        acme.write("INSERT INTO others VALUES (1)")
        following.catch_up("acme")

    findings = run_preflight(acme.source, way.target, acme.tenant, target_regions=frozenset())
    subjects = {finding.subject for finding in findings if finding.verdict is Verdict.ERROR}

    assert "tenantferry" not in subjects
    assert not any("reverse_positions" in subject for subject in subjects)
    assert all(table.schema == "public" for table in read_tables(acme.source, acme.tenant))


def test_preflight_still_minds_a_schema_of_that_name_that_is_not_ours(way: Way) -> None:
    acme = way["acme"]
    execute(acme.owner, "CREATE TABLE items (id integer PRIMARY KEY)")
    execute(acme.source, "CREATE SCHEMA tenantferry")

    findings = run_preflight(acme.source, way.target, acme.tenant, target_regions=frozenset())

    assert "tenantferry" in {f.subject for f in findings if f.verdict is Verdict.ERROR}


def test_a_table_that_appears_is_followed_by_the_process_itself(
    way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "PUBLISH_SECONDS", 0.1)
    way.table("items", "id integer, name text")
    way.ensure()
    way.go_live("acme")

    with way.follow() as following:
        following.catch_up("acme")
        way.table("later", "id integer, name text")
        wait_until(lambda: ("later", "d") in execute(way.target, _IDENTITIES))
        way["acme"].write("INSERT INTO later VALUES (1, 'a')")
        following.catch_up("acme")

    assert way.grace("acme").lost_at is None
    assert way["acme"].rows("later") == ["(1,a)"]


def test_rows_written_before_their_table_was_followed_cost_the_way_back(way: Way) -> None:
    way.table("items", "id integer, name text")
    way.ensure()
    way.go_live()
    way.table("later", "id integer, name text")
    way["acme"].write("INSERT INTO later VALUES (1, 'a')")

    way.ensure()

    assert 'table "public.later" before' in (way.grace("acme").lost_reason or "")
    assert way.grace("globex").lost_at is None


def test_a_new_table_in_use_is_published_when_it_is_free(
    way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "PUBLISH_SECONDS", 0.1)
    monkeypatch.setattr(reverse_publication, "_LOCK_TIMEOUT", "200ms")
    way.table("items", "id integer, name text")
    way.ensure()
    way.go_live("acme")
    way.table("later", "id integer, name text")
    execute(way["globex"].client, "BEGIN; INSERT INTO later VALUES (1, 'being copied')")

    with pytest.raises(TransientError, match="could not publish"):
        way.ensure()
    with way.follow() as following:
        way["acme"].write("INSERT INTO items VALUES (1, 'a')")
        # Meanwhile the others go on.
        following.catch_up("acme")
        before = execute(way.target, _IDENTITIES)
        execute(way["globex"].client, "COMMIT")
        wait_until(lambda: ("later", "d") in execute(way.target, _IDENTITIES))

    assert before == [("items", "d")]
