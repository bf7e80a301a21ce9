from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from psycopg2.extensions import connection

from tenantferry.backfill.snapshot import exported_snapshot
from tenantferry.connections import ConnectionParams, open_connection
from tenantferry.local.postgres import PostgresServer
from tenantferry.watch import slot_use
from tenantferry.watch.report import Report
from tenantferry.watch.slots import check_slots
from tenantferry.watch.watched import Watched

Declare = Callable[..., Watched]
Register = Callable[..., None]
Run = Callable[..., list[tuple[Any, ...]]]

GIB = 1024**3


@pytest.fixture
def create_slot(source: connection) -> Callable[[str], None]:
    """Create a slot on the source that nobody reads."""

    def create(name: str) -> None:
        with source.cursor() as cursor:
            cursor.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (name,))

    return create


@pytest.fixture
def write_log(source_owner: connection) -> Callable[[int], None]:
    """Write log on the source."""

    def write(rows: int) -> None:
        with source_owner.cursor() as cursor:
            cursor.execute("CREATE TABLE IF NOT EXISTS public.log (text text)")
            cursor.execute(
                "INSERT INTO public.log SELECT repeat(md5(n::text), 30)"
                " FROM generate_series(1, %s) AS n",
                (rows,),
            )

    return write


@pytest.fixture
def keep_size(source_server: PostgresServer) -> Iterator[Callable[[str], None]]:
    """Bound what slots of the source may keep."""

    def bound(size: str) -> None:
        source_server.psql("-c", f"ALTER SYSTEM SET max_slot_wal_keep_size = '{size}'")
        source_server.psql("-c", "SELECT pg_reload_conf()")

    yield bound
    source_server.psql("-c", "ALTER SYSTEM RESET max_slot_wal_keep_size")
    source_server.psql("-c", "SELECT pg_reload_conf()")


def find(watched: Watched) -> list[str]:
    return [f"{found.subject}: {found.detail}" for found in check_slots(watched).problems]


def test_a_slot_that_its_tenant_needs_is_no_finding_and_its_numbers_are_told(
    declare: Declare, register: Register, create_slot: Callable[[str], None]
) -> None:
    create_slot("tenantferry_acme")
    register("backfilling", seconds=5)

    report = check_slots(declare())

    assert report.findings == []
    (look,) = report.looks
    assert look.subject.startswith('slot "tenantferry_acme" of database "source_')
    kept = look.numbers["kept_bytes"]
    assert isinstance(kept, int)
    assert kept >= 0
    assert look.numbers["growth_per_second"] is None
    assert look.numbers["hours_until_no_room"] is None


@pytest.mark.parametrize("phase", ["registered", "prepared", "live", "retiring", "aborting"])
def test_a_slot_that_the_phase_of_its_tenant_does_not_need_is_a_finding(
    declare: Declare, register: Register, create_slot: Callable[[str], None], phase: str
) -> None:
    create_slot("tenantferry_acme")
    register(phase)

    (finding,) = find(declare())

    assert f'phase "{phase}" and does not need it' in finding


def test_a_slot_is_left_alone_while_a_step_of_its_tenant_runs(
    declare: Declare,
    register: Register,
    create_slot: Callable[[str], None],
    target_params: ConnectionParams,
) -> None:
    create_slot("tenantferry_acme")
    register("live")

    with (
        closing(open_connection(target_params, purpose="step", autocommit=True)) as step,
        step.cursor() as cursor,
    ):
        cursor.execute("SELECT pg_advisory_lock(hashtextextended('tenantferry step acme', 0))")
        during = find(declare())

    assert during == []
    assert len(find(declare())) == 1


def test_a_slot_without_an_owner_is_a_finding(
    declare: Declare, register: Register, create_slot: Callable[[str], None]
) -> None:
    create_slot("tenantferry_forgotten")
    create_slot("other")
    register("live")

    (finding,) = find(declare())

    assert 'slot "tenantferry_forgotten"' in finding
    assert "No tenant of this fleet owns it. Nobody reads it." in finding


def test_a_slot_of_a_tenant_s_name_in_another_database_is_not_the_tenant_s(
    declare: Declare, register: Register, create_slot: Callable[[str], None], run: Run
) -> None:
    create_slot("tenantferry_acme")
    register("backfilling")
    run("UPDATE tenantferry.tenants SET source_identity = '1/elsewhere'")

    (finding,) = find(declare())

    assert "No tenant of this fleet owns it" in finding


@pytest.mark.parametrize(
    ("standing", "problem"),
    [
        (("streaming", 9000), None),
        (("prepared", 5), None),
        (("prepared", 9000), "nothing of it is copied"),
        (("live", 5), 'in phase "live" and does not need it'),
    ],
    ids=["needed", "just begun", "forgotten", "left over"],
)
def test_a_witness_is_a_finding_where_its_tenant_is_not_on_its_way(
    declare: Declare, register: Register, run: Run, standing: tuple[str, int], problem: str | None
) -> None:
    phase, seconds = standing
    run("SELECT pg_create_logical_replication_slot('tfwitness_acme', 'pgoutput')")
    register(phase, seconds=seconds)

    found = [one for one in find(declare()) if "tfwitness_acme" in one]

    assert [problem in one for one in found if problem] == [True] * (problem is not None)
    assert problem is not None or found == []


def test_a_slot_that_nobody_reads_for_long_is_a_finding(
    declare: Declare, register: Register, create_slot: Callable[[str], None], run: Run
) -> None:
    create_slot("tenantferry_acme")
    register("backfilling", seconds=9000)

    first = find(declare())
    run("UPDATE tenantferry.observations SET seen_at = seen_at - interval '7200 s'")
    (later,) = find(declare())

    assert first == []
    assert "Nobody has read it for 7200 s" in later


def test_a_slot_is_not_blamed_for_a_former_one_of_its_name(
    declare: Declare, register: Register, create_slot: Callable[[str], None], run: Run
) -> None:
    create_slot("tenantferry_acme")
    register("backfilling", seconds=60)
    check_slots(declare())
    run("UPDATE tenantferry.observations SET seen_at = seen_at - interval '7200 s'")

    assert find(declare()) == []


@pytest.mark.parametrize("phase", ["streaming", "validated"])
def test_a_tenant_that_is_streamed_and_has_no_slot_is_a_finding(
    declare: Declare, register: Register, phase: str
) -> None:
    register(phase)

    (finding,) = find(declare())

    assert finding.startswith('slot "tenantferry_acme" of tenant "acme"')
    assert finding.endswith("It does not exist.")


def test_a_slot_that_the_source_has_invalidated_is_a_finding(
    declare: Declare,
    register: Register,
    create_slot: Callable[[str], None],
    keep_size: Callable[[str], None],
    source_server: PostgresServer,
) -> None:
    create_slot("tenantferry_acme")
    register("streaming")
    keep_size("1MB")
    for _ in range(3):
        source_server.psql("-c", "SELECT pg_logical_emit_message(true, 'x', 'x')",
                           "-c", "SELECT pg_switch_wal()", "-c", "CHECKPOINT")  # fmt: skip

    (finding,) = find(declare())

    assert 'It was invalidated; the server says "lost"' in finding


def test_the_time_until_a_slot_is_lost_is_told_from_the_looks_of_the_last_hours(
    *,
    declare: Declare,
    register: Register,
    create_slot: Callable[[str], None],
    write_log: Callable[[int], None],
    keep_size: Callable[[str], None],
    run: Run,
) -> None:
    keep_size("200MB")
    create_slot("tenantferry_acme")
    register("backfilling", seconds=300)
    first = check_slots(declare())
    run("UPDATE tenantferry.observations SET seen_at = seen_at - interval '3600 s'")
    write_log(2000)

    report = check_slots(declare(wal_hours=1000))

    assert first.problems == []
    growth, room, hours = (
        report.looks[0].numbers[name]
        for name in ("growth_per_second", "room_bytes", "hours_until_no_room")
    )
    assert isinstance(growth, float)
    assert isinstance(room, int)
    assert hours == room / growth / 3600
    (finding,) = report.problems
    assert "the slot is lost (max_slot_wal_keep_size)" in finding.detail
    assert f"In {hours:.1f} hours" in finding.detail


def test_looks_of_less_than_an_hour_tell_no_rate(
    *,
    declare: Declare,
    register: Register,
    create_slot: Callable[[str], None],
    write_log: Callable[[int], None],
    keep_size: Callable[[str], None],
    run: Run,
) -> None:
    keep_size("200MB")
    create_slot("tenantferry_acme")
    register("backfilling", seconds=300)
    check_slots(declare())
    run("UPDATE tenantferry.observations SET seen_at = seen_at - interval '3500 s'")
    write_log(100)

    report = check_slots(declare(wal_hours=100_000))

    assert report.problems == []
    assert report.looks[0].numbers["growth_per_second"] is None


def test_what_piles_up_while_a_step_runs_is_told_only_when_it_cannot_wait(
    *,
    declare: Declare,
    register: Register,
    create_slot: Callable[[str], None],
    write_log: Callable[[int], None],
    keep_size: Callable[[str], None],
    run: Run,
    target_params: ConnectionParams,
) -> None:
    keep_size("200MB")
    create_slot("tenantferry_acme")
    register("backfilling", seconds=300)
    check_slots(declare())
    run("UPDATE tenantferry.observations SET seen_at = seen_at - interval '3600 s'")
    write_log(2000)
    with (
        closing(open_connection(target_params, purpose="step", autocommit=True)) as step,
        step.cursor() as cursor,
    ):
        cursor.execute("SELECT pg_advisory_lock(hashtextextended('tenantferry step acme', 0))")
        for_now = find(declare(wal_hours=1000))
        # As if much more had been written.
        run("UPDATE tenantferry.observations SET bytes = bytes - 500000000")
        (urgent,) = find(declare(wal_hours=1000))

    assert for_now == []
    assert "the slot is lost" in urgent


def test_the_time_until_a_declared_disk_is_full_is_told(
    declare: Declare,
    register: Register,
    create_slot: Callable[[str], None],
    write_log: Callable[[int], None],
    run: Run,
) -> None:
    create_slot("tenantferry_acme")
    register("backfilling", seconds=300)
    check_slots(declare())
    run("UPDATE tenantferry.observations SET seen_at = seen_at - interval '3600 s'")
    write_log(500)

    (finding,) = find(declare(wal_disk_bytes={"source_0": 2 * GIB}, wal_hours=100_000))
    assert "the disk of the log is full" in finding
    assert find(declare(wal_disk_bytes={"source_0": 2000 * GIB})) == []


def test_where_nothing_says_how_much_room_there_is_kept_log_counts(
    declare: Declare,
    register: Register,
    create_slot: Callable[[str], None],
    write_log: Callable[[int], None],
) -> None:
    create_slot("tenantferry_acme")
    register("backfilling", seconds=300)
    write_log(500)

    (finding,) = find(declare(wal_kept_bytes=100_000))
    assert "more than wal_kept_bytes" in finding
    assert "How much room is left is unknown." in finding
    assert find(declare(wal_kept_bytes=GIB)) == []


def test_what_a_source_that_is_gone_keeps_is_unknown_and_the_others_are_looked_at(
    declare: Declare,
    register: Register,
    create_slot: Callable[[str], None],
    source_params: ConnectionParams,
) -> None:
    create_slot("tenantferry_forgotten")
    register("live")
    gone = ConnectionParams("127.0.0.1", 1, "x", "gone")

    report = check_slots(declare(sources={"globex": gone, "acme": source_params}))

    assert report.looks[0].numbers["kept_bytes"] is None
    assert [finding.verdict for finding in report.findings] == ["warning", "error"]


def test_the_server_of_a_retired_source_is_not_asked(declare: Declare, register: Register) -> None:
    register("retired")
    gone = ConnectionParams("127.0.0.1", 1, "x", "gone")

    assert check_slots(declare(sources={"acme": gone})) == Report()


@pytest.mark.parametrize("prefix", ["tfvalidate_", "tfround_"])
def test_a_temporary_slot_is_a_finding_once_it_outlives_its_step(
    declare: Declare,
    register: Register,
    source_params: ConnectionParams,
    monkeypatch: pytest.MonkeyPatch,
    prefix: str,
) -> None:
    register("backfilling")
    slot = f"{prefix}acme"
    with exported_snapshot(source_params, slot=slot, temporary=True, timeout_seconds=20):
        young = find(declare())
        monkeypatch.setattr(slot_use, "TEMPORARY_SECONDS", 0.0)
        (old,) = find(declare())

    assert young == []
    assert "no step of that tenant runs" in old


def test_the_reverse_slot_is_needed_as_long_as_a_tenant_can_go_back(
    declare: Declare, register: Register, run: Run, target_server: PostgresServer
) -> None:
    register("live")
    run("SELECT pg_create_logical_replication_slot('tenantferry_reverse', 'pgoutput')")
    try:
        (unneeded,) = find(declare())
        run(
            "INSERT INTO tenantferry.write_pauses (tenant, deadline, resumed_at)"
            " VALUES ('acme', now(), now())"
        )
        run(
            "INSERT INTO tenantferry.graces (tenant, attempt, start_lsn, ends_at)"
            " SELECT 'acme', max(id), '0/1', now() + interval '1 day'"
            " FROM tenantferry.write_pauses"
        )
        needed = find(declare())
    finally:
        run("SELECT pg_drop_replication_slot('tenantferry_reverse')")
    (missing,) = find(declare())

    assert "No tenant can go back any more" in unneeded
    assert needed == []
    assert missing == 'slot "tenantferry_reverse" of the target: It does not exist.'
