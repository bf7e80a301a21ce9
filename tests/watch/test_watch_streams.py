from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tenantferry.watch.streams import check_streams
from tenantferry.watch.watched import Watched

Declare = Callable[..., Watched]
Register = Callable[..., None]
Run = Callable[..., list[tuple[Any, ...]]]


@pytest.fixture
def stream(run: Run, register: Register) -> Callable[..., None]:
    """A stream that works: it reports, and its last marker came back at once."""

    def stream(*, direction: str = "forward", phase: str = "streaming", **changed: str) -> None:
        register(phase)
        run(
            "INSERT INTO tenantferry.streams (tenant, direction, position, confirmed, state,"
            " lag_seconds, lag_bytes, lag_measured_at, reported_at)"
            " VALUES ('acme', %s, '0/9', '0/9', 'running', 0.1, 7, now(), now())",
            direction,
        )
        for column, value in changed.items():
            run(f"UPDATE tenantferry.streams SET {column} = {value}")

    return stream


@pytest.fixture
def grace(run: Run) -> Callable[..., None]:
    """A tenant that can go back, and a reader of the reverse streams that works."""

    def grace(*, reported: str = "now()", began: str = "now() - interval '1 hour'") -> None:
        run(
            "INSERT INTO tenantferry.write_pauses (tenant, deadline, flipped_at, resumed_at)"
            " VALUES ('acme', now(), now(), now())"
        )
        run(
            "INSERT INTO tenantferry.graces (tenant, attempt, start_lsn, started_at, ends_at)"
            f" SELECT 'acme', max(id), '0/1', {began}, now() + interval '7 days'"
            " FROM tenantferry.write_pauses"
        )
        run(
            "INSERT INTO tenantferry.reverse_slot (slot, confirmed, read_to, reported_at)"
            f" VALUES ('tenantferry_reverse', '0/1', '0/1', {reported})"
        )

    return grace


def find(watched: Watched) -> list[str]:
    return [f"{found.subject}: {found.detail}" for found in check_streams(watched).problems]


def test_a_stream_that_keeps_up_is_no_finding_and_its_numbers_are_told(
    declare: Declare, stream: Callable[..., None]
) -> None:
    stream()

    report = check_streams(declare())

    assert report.findings == []
    assert report.looks[0].subject == 'forward stream of tenant "acme"'
    assert report.looks[0].numbers["lag_seconds"] == 0.1


def test_nothing_prepared_is_nothing_to_watch(declare: Declare, run: Run) -> None:
    run("DROP SCHEMA tenantferry CASCADE")

    assert check_streams(declare()).looks == []


def test_a_control_schema_of_an_older_version_is_completed(
    declare: Declare, stream: Callable[..., None], run: Run
) -> None:
    stream()
    run("DROP TABLE tenantferry.observations")
    run("COMMENT ON SCHEMA tenantferry IS 'made of another file'")

    assert check_streams(declare()).findings == []


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"lag_seconds": "99"}, "is 99 s behind"),
        ({"lag_measured_at": "now() - interval '99 s'"}, "is 99 s behind"),
        ({"reported_at": "now() - interval '99 s'"}, "has not reported for 99 s"),
        ({"reported_at": "NULL"}, "has not reported for 3600 s"),
        (
            {"state": "'interrupted'", "reported_at": "now() - interval '99 s'"},
            'Its state is "interrupted"',
        ),
        ({"state": "'failed'", "error": "'no such column'"}, "It failed: no such column"),
        ({"copy_again": "true"}, "Rows are missing or wrong"),
        (
            {"command": "'hold'", "lease_until": "now() - interval '99 s'"},
            'was told to "hold", and stands still 99 s',
        ),
    ],
    ids=["behind", "marker away", "silent", "never started", "ended", "failed", "lost", "held"],
)
def test_a_stream_that_does_not_work_is_one_finding(
    declare: Declare, stream: Callable[..., None], changed: dict[str, str], told: str
) -> None:
    stream(**changed)

    (finding,) = find(declare())

    assert told in finding


@pytest.mark.parametrize(
    ("ago", "is_told"), [("1 s", True), ("16 s", False)], ids=["now", "by a process that died"]
)
def test_a_stream_that_is_behind_is_told_with_what_slows_it_down(
    declare: Declare, stream: Callable[..., None], run: Run, ago: str, *, is_told: bool
) -> None:
    stream(
        lag_seconds="99",
        throttled_by="'replica lag of the source: 14 s'",
        throttled_at=f"now() - interval '{ago}'",
    )

    (finding,) = find(declare())
    [(shown,)] = run("SELECT throttled_by FROM tenantferry.progress")

    assert ("It is slowed down: replica lag of the source: 14 s." in finding) is is_told
    assert (shown == "replica lag of the source: 14 s") is is_told


@pytest.mark.parametrize(
    "changed",
    [
        {"lag_seconds": "9"},
        {"reported_at": "now() - interval '9 s'"},
        {"command": "'hold'", "lease_until": "now() + interval '9 s'"},
    ],
    ids=["a little behind", "reported just now", "held with a lease"],
)
def test_a_stream_within_the_thresholds_is_no_finding(
    declare: Declare, stream: Callable[..., None], changed: dict[str, str]
) -> None:
    stream(**changed)

    assert find(declare()) == []


def test_an_unknown_lag_is_never_zero_and_a_finding_once_it_lasts(
    declare: Declare, stream: Callable[..., None], run: Run
) -> None:
    stream(lag_seconds="NULL", lag_measured_at="NULL")

    first = check_streams(declare())
    run("UPDATE tenantferry.observations SET seen_at = seen_at - interval '5 minutes'")
    (later,) = find(declare())

    assert first.findings == []
    assert first.looks[0].numbers["lag_seconds"] is None
    assert "lag is unknown for 300 s" in later


def test_a_lag_that_became_known_meanwhile_starts_anew(
    declare: Declare, stream: Callable[..., None], run: Run
) -> None:
    stream(lag_seconds="NULL", lag_measured_at="NULL")
    check_streams(declare())
    run("UPDATE tenantferry.observations SET seen_at = seen_at - interval '10 minutes'")
    run("UPDATE tenantferry.streams SET lag_seconds = 1, lag_measured_at = now()")
    check_streams(declare())
    run("UPDATE tenantferry.observations SET seen_at = seen_at - interval '5 minutes'")
    run("UPDATE tenantferry.streams SET lag_seconds = NULL, lag_measured_at = NULL")

    assert find(declare()) == []


def test_looks_are_forgotten_after_a_while(
    declare: Declare, stream: Callable[..., None], run: Run
) -> None:
    stream()
    for _ in range(3):
        check_streams(declare())
        run("UPDATE tenantferry.observations SET seen_at = seen_at - interval '2 hours'")

    assert run("SELECT count(*) FROM tenantferry.observations") == [(2,)]


@pytest.mark.parametrize("phase", ["backfilling", "cutting_over", "live", "retired"])
def test_a_forward_stream_is_not_expected_in_other_phases(
    declare: Declare, stream: Callable[..., None], phase: str
) -> None:
    stream(phase=phase, state="'failed'")

    assert find(declare()) == []


def test_a_reverse_stream_that_keeps_up_is_no_finding(
    declare: Declare, stream: Callable[..., None], grace: Callable[..., None]
) -> None:
    stream(direction="reverse", phase="live")
    grace()

    report = check_streams(declare())

    assert report.findings == []
    assert report.looks[0].subject == 'reverse stream of tenant "acme"'


def test_a_reverse_stream_that_is_behind_is_a_finding(
    declare: Declare, stream: Callable[..., None], grace: Callable[..., None]
) -> None:
    stream(direction="reverse", phase="live", lag_seconds="99")
    grace()

    (finding,) = find(declare())

    assert finding.startswith('reverse stream of tenant "acme": It is 99 s behind')


@pytest.mark.parametrize("reported", ["NULL", "now() - interval '1 hour'"], ids=["never", "once"])
def test_a_reverse_slot_that_nobody_reads_is_one_finding_for_all_who_rely_on_it(
    declare: Declare, stream: Callable[..., None], grace: Callable[..., None], reported: str
) -> None:
    stream(direction="reverse", phase="live", reported_at=reported)
    grace(reported=reported)

    (finding,) = find(declare())

    assert finding.startswith("reader of the reverse streams: It has not reported for 3600 s; 1")


def test_a_reverse_slot_that_a_cutover_has_just_made_is_no_finding(
    declare: Declare, stream: Callable[..., None], grace: Callable[..., None]
) -> None:
    stream(direction="reverse", phase="live", reported_at="NULL", lag_seconds="NULL")
    grace(reported="NULL", began="now() - interval '5 s'")

    assert find(declare()) == []


def test_a_lost_way_back_needs_no_stream(
    declare: Declare, stream: Callable[..., None], grace: Callable[..., None], run: Run
) -> None:
    stream(direction="reverse", phase="live", state="'failed'")
    grace(reported="NULL")
    run("UPDATE tenantferry.graces SET lost_at = now(), lost_reason = 'The slot is gone.'")

    assert find(declare()) == []


def test_a_stream_that_had_no_need_to_report_during_a_long_backfill_is_not_silent_at_once(
    declare: Declare, stream: Callable[..., None], run: Run
) -> None:
    stream(reported_at="now() - interval '3 hours'", lag_measured_at="now()")
    run("UPDATE tenantferry.tenants SET changed_at = now() - interval '5 seconds'")
    just_copied = find(declare())
    run("UPDATE tenantferry.tenants SET changed_at = now() - interval '2 minutes'")

    (silent,) = find(declare())

    assert just_copied == []
    assert "has not reported for 120 s" in silent


def test_the_reader_need_not_have_reported_before_anybody_could_go_back(
    declare: Declare, grace: Callable[..., None], stream: Callable[..., None]
) -> None:
    stream(direction="reverse", phase="live")
    grace(reported="now() - interval '3 days'", began="now() - interval '5 seconds'")

    assert find(declare()) == []
