from __future__ import annotations

import threading
from contextlib import closing
from typing import Any

import pytest
from psycopg2.extensions import connection

from tenantferry.backfill.snapshot import (
    create_slot_command,
    drop_slot,
    exported_snapshot,
    import_snapshot,
)
from tenantferry.connections import (
    ConnectionParams,
    open_connection,
    open_replication_connection,
)
from tenantferry.errors import PermanentError, TransientError
from tenantferry.local.postgres import PostgresServer
from tenantferry.lsn import format_lsn

SLOT = "tenantferry_snapshot_test"


def run(session: connection, statement: str) -> None:
    with session.cursor() as cursor:
        cursor.execute(statement)


def fetch(session: connection, query: str) -> list[tuple[Any, ...]]:
    with session.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchall()


def slots(source: connection) -> int:
    return len(fetch(source, f"SELECT FROM pg_replication_slots WHERE slot_name = '{SLOT}'"))


def test_exported_snapshot_holds_exactly_what_the_slot_does_not_send(
    source_params: ConnectionParams, source_owner: connection, source: connection
) -> None:
    run(source_owner, "CREATE TABLE t (id bigint GENERATED ALWAYS AS IDENTITY)")
    run(source, "CREATE PUBLICATION p FOR TABLE public.t")
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            run(source_owner, "INSERT INTO t DEFAULT VALUES")

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    try:
        with (
            exported_snapshot(
                source_params, slot=SLOT, temporary=False, timeout_seconds=20
            ) as snapshot,
            closing(open_connection(source_params, purpose="test")) as reader,
        ):
            import_snapshot(reader, snapshot)
            ((inside,),) = fetch(reader, "SELECT count(*) FROM public.t")
    finally:
        stop.set()
        writer.join()

    ((total,),) = fetch(source, "SELECT count(*) FROM public.t")
    sent = fetch(
        source,
        "SELECT get_byte(data, 0) FROM pg_logical_slot_get_binary_changes("
        f"'{SLOT}', NULL, NULL, 'proto_version', '1', 'publication_names', 'p')",
    )
    assert inside + sum(kind == ord("I") for (kind,) in sent) == total
    drop_slot(source, SLOT)


def test_exported_snapshot_names_what_it_waits_for_and_leaves_no_slot(
    source_params: ConnectionParams, source_owner: connection, source: connection
) -> None:
    run(source_owner, "CREATE TABLE t (id bigint)")
    run(source_owner, "BEGIN; INSERT INTO t VALUES (1)")

    with (
        pytest.raises(TransientError) as raised,
        exported_snapshot(source_params, slot=SLOT, temporary=False, timeout_seconds=0.5),
    ):
        pytest.fail("a slot was created beside an open transaction")

    pid = source_owner.info.backend_pid
    assert f"process {pid} of user app_owner" in raised.value.detail
    assert "tenantferry test client" in raised.value.detail
    assert "idle in transaction" in raised.value.detail
    assert slots(source) == 0


def test_exported_snapshot_names_a_prepared_transaction(
    source_params: ConnectionParams, source_owner: connection
) -> None:
    run(source_owner, "CREATE TABLE t (id bigint)")
    run(source_owner, "BEGIN; INSERT INTO t VALUES (1)")
    run(source_owner, "PREPARE TRANSACTION 'forgotten'")
    try:
        with (
            pytest.raises(TransientError, match='prepared transaction "forgotten"'),
            exported_snapshot(source_params, slot=SLOT, temporary=True, timeout_seconds=0.5),
        ):
            pytest.fail("a slot was created beside a prepared transaction")
    finally:
        run(source_owner, "ROLLBACK PREPARED 'forgotten'")


def test_exported_snapshot_outlives_the_source_s_idle_timeouts(
    *,
    source_params: ConnectionParams,
    source: connection,
    source_server: PostgresServer,
) -> None:
    for name in ("idle_in_transaction_session_timeout", "idle_session_timeout"):
        source_server.psql(
            "-c",
            f"ALTER ROLE tenantferry IN DATABASE {source_params.database} SET {name} = '200ms'",
        )

    with (
        exported_snapshot(source_params, slot=SLOT, temporary=True, timeout_seconds=20) as snapshot,
        closing(open_connection(source_params, purpose="test")) as reader,
    ):
        run(source, "SELECT pg_sleep(1)")
        import_snapshot(reader, snapshot)


def test_exported_snapshot_drops_a_temporary_slot_at_its_end(
    source_params: ConnectionParams, source: connection
) -> None:
    with exported_snapshot(source_params, slot=SLOT, temporary=True, timeout_seconds=20):
        during = slots(source)

    # The server drops it when it has noticed the end of the session.
    drop_slot(source, SLOT)
    assert during == 1
    assert slots(source) == 0


def test_exported_snapshot_refuses_for_good_when_all_slots_are_in_use(
    source_params: ConnectionParams, source: connection
) -> None:
    ((free,),) = fetch(
        source,
        "SELECT current_setting('max_replication_slots')::int - count(*)::int"
        " FROM pg_replication_slots",
    )
    names = [f"tenantferry_filler_{n}" for n in range(free)]
    for name in names:
        run(source, f"SELECT pg_create_physical_replication_slot('{name}')")
    try:
        with (
            pytest.raises(PermanentError, match="max_replication_slots = 40 are in use"),
            exported_snapshot(source_params, slot=SLOT, temporary=True, timeout_seconds=5),
        ):
            pytest.fail("a slot was created above the limit")
    finally:
        for name in names:
            run(source, f"SELECT pg_drop_replication_slot('{name}')")


def test_import_snapshot_says_why_it_is_gone(source_params: ConnectionParams) -> None:
    with exported_snapshot(
        source_params, slot=SLOT, temporary=True, timeout_seconds=20
    ) as snapshot:
        pass
    with closing(open_connection(source_params, purpose="test")) as reader:
        # The session ends a moment after the connection is closed.
        with closing(open_connection(source_params, purpose="test", autocommit=True)) as source:
            drop_slot(source, SLOT)
        with pytest.raises(TransientError, match="load balancer"):
            import_snapshot(reader, snapshot)


def test_drop_slot_ends_a_session_that_still_reads_it(
    source_params: ConnectionParams, source: connection
) -> None:
    run(source, f"SELECT pg_create_logical_replication_slot('{SLOT}', 'pgoutput')")
    run(source, "CREATE PUBLICATION p")
    with closing(open_replication_connection(source_params, purpose="stale")) as walsender:
        walsender.cursor().start_replication(
            slot_name=SLOT, options={"proto_version": "1", "publication_names": "p"}
        )

        assert drop_slot(source, SLOT)
    assert not drop_slot(source, SLOT)


@pytest.mark.parametrize(
    ("version", "temporary", "expected"),
    [
        (140011, True, "TEMPORARY LOGICAL pgoutput EXPORT_SNAPSHOT"),
        (150002, True, "TEMPORARY LOGICAL pgoutput (SNAPSHOT 'export')"),
        (160004, False, "LOGICAL pgoutput (SNAPSHOT 'export')"),
        (170000, False, "LOGICAL pgoutput (SNAPSHOT 'export', FAILOVER)"),
    ],
    ids=["14", "15", "16", "17"],
)
def test_create_slot_command_speaks_the_server_s_dialect(
    source: connection, version: int, temporary: bool, expected: str
) -> None:
    command = create_slot_command("s", temporary, version, failover=not temporary)

    assert command.as_string(source) == f'CREATE_REPLICATION_SLOT "s" {expected}'


def test_create_slot_command_of_version_14_still_works(source_params: ConnectionParams) -> None:
    with (
        closing(open_replication_connection(source_params, purpose="test")) as walsender,
        walsender.cursor() as cursor,
    ):
        cursor.execute(create_slot_command(SLOT, True, 140011))
        row = cursor.fetchone()

    assert row is not None
    assert format_lsn(0) != row[1]


def test_drop_slot_leaves_the_slot_of_another_database_alone(
    source_server: PostgresServer, source: connection
) -> None:
    source_server.psql("-c", "SELECT pg_create_logical_replication_slot('theirs', 'pgoutput')")
    try:
        dropped = drop_slot(source, "theirs")

        found = source_server.psql(
            "-c", "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'theirs'"
        )
        assert (dropped, found) == (False, "1")
    finally:
        source_server.psql("-c", "SELECT pg_drop_replication_slot('theirs')")
