from __future__ import annotations

import io
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from psycopg2.extensions import connection
from psycopg2.extras import RealDictCursor
from rich.console import Console

from tenantferry.errors import PermanentError
from tenantferry.local.auditor import Audit
from tenantferry.local.measurements import Measurements, read_summary, write_summary
from tenantferry.local.options import Options, read_options
from tenantferry.local.progress import (
    PlainDisplay,
    Progress,
    View,
    choose_display,
    read_progress,
    tell_line,
)
from tenantferry.local.report import (
    Report,
    TenantReport,
    build_tables,
    build_tenant_report,
    read_moves,
)
from tenantferry.local.story import Story

_MOVED = """
INSERT INTO tenantferry.tenants (tenant, tenant_id, phase, source_identity)
VALUES ('acme', gen_random_uuid(), 'live', '1/acme'),
       ('globex', gen_random_uuid(), 'registered', '1/globex');
INSERT INTO tenantferry.rounds (tenant, round, consistent_point, started_at, finished_at)
VALUES ('acme', 1, '0/1', '2024-01-01 00:00:00Z', '2024-01-01 00:00:02Z'),
       ('acme', 2, '0/2', '2024-01-01 01:00:00Z', '2024-01-01 01:00:03Z');
INSERT INTO tenantferry.chunks
    (tenant, table_schema, table_name, chunk, key_columns, estimated_rows, rows, bytes, done_at)
VALUES ('acme', 'public', 'a', 1, '{id}', 100, 90, 1000, now()),
       ('acme', 'public', 'a', 2, '{id}', 100, 110, 1000, now()),
       ('acme', 'public', 'b', 1, '{id}', 50, 50, 500, now());
INSERT INTO tenantferry.streams (tenant, position, confirmed, changes, lag_seconds)
VALUES ('acme', '0/9', '0/9', 77, 0.25);
INSERT INTO tenantferry.validations
    (tenant, position, started_at, finished_at, tables, chunks, rows, mismatches)
VALUES ('acme', '0/5', '2024-01-01 02:00:00Z', '2024-01-01 02:00:09Z', 2, 3, 250, 4),
       ('acme', '0/7', '2024-01-01 03:00:00Z', '2024-01-01 03:00:01.5Z', 2, 3, 255, 0);
INSERT INTO tenantferry.write_pauses
    (tenant, began_at, deadline, flipped_at, resumed_at, undone_at)
VALUES ('acme', '2024-01-01 04:00:00Z', '2024-01-01 04:00:05Z', NULL, NULL, now()),
       ('acme', '2024-01-01 05:00:00Z', '2024-01-01 05:00:05Z', '2024-01-01 05:00:00.2Z',
        '2024-01-01 05:00:00.25Z', NULL);
"""
_TURNS = """
INSERT INTO tenantferry.write_pauses
    (tenant, direction, began_at, deadline, flipped_at, resumed_at)
VALUES ('acme', 'reverse', '2024-01-01 06:00:00Z', now(), now(), '2024-01-01 06:00:00.1Z'),
       ('acme', 'forward', '2024-01-01 07:00:00Z', now(), now(), '2024-01-01 07:00:00.05Z');
"""
_AUDIT = Audit(
    acknowledged_writes=40, unknown_writes=0, rows=30, lost_writes=0, differences=(), seconds=0.1
)


def _measure(*, failed: int = 0) -> Measurements:
    measurements = Measurements()
    for number in range(100):
        failure = "no" if number < failed else ""
        measurements.record(0.001 * (number + 1), writes=1, failure=failure)
    return measurements


@pytest.fixture
def moved(target: connection) -> TenantReport:
    with target.cursor() as cursor:
        cursor.execute(_MOVED)
    moves = read_moves(target)
    return build_tenant_report("acme", moves["acme"], _measure().summarize(finished=True), _AUDIT)


def test_report_has_the_shape_that_others_read(moved: TenantReport, tmp_path: Path) -> None:
    path = tmp_path / "demo" / "report.json"

    Report(tenants=(moved,), total_seconds=12.5, versions={"airflow": "3"}).write(path)

    assert json.loads(path.read_text("utf-8")) == {
        "tenants": [
            {
                "tenant": "acme",
                "phase": "live",
                "tables": 2,
                "rows": 250,
                "bytes": 2500,
                "backfill_seconds": 5.0,
                "rows_per_second": 50,
                "changes_streamed": 77,
                "validation": {
                    "tables": 2,
                    "chunks": 3,
                    "rows": 255,
                    "mismatches": 0,
                    "seconds": 1.5,
                },
                "write_pause_ms": 250.0,
                "client": {
                    "requests": 100,
                    "failed": 0,
                    "acknowledged_writes": 40,
                    "lost_writes": 0,
                    "p99_latency_ms": 99.0,
                    "max_latency_ms": 100.0,
                },
                "turns": [{"direction": "forward", "write_pause_ms": 250.0}],
            }
        ],
        "total_seconds": 12.5,
        "versions": {"airflow": "3"},
        "story": "migrate",
    }


def test_report_is_a_success_when_all_is_well(moved: TenantReport) -> None:
    assert moved.find_problems() == []
    assert Report((moved,), 1.0, {}).is_success


def test_report_of_a_rollback_wants_each_turn(target: connection, moved: TenantReport) -> None:
    went_once = Report((moved,), 1.0, {}, Story.ROLLBACK)
    with target.cursor() as cursor:
        cursor.execute(_TURNS)
    move = read_moves(target)["acme"]
    turned = build_tenant_report("acme", move, _measure().summarize(finished=True), _AUDIT)

    assert moved.find_problems(Story.ROLLBACK) == ["turns were forward"]
    assert not went_once.is_success
    assert [turn.write_pause_ms for turn in turned.turns] == [250.0, 100.0, 50.0]
    assert turned.find_problems(Story.ROLLBACK) == []


def test_report_is_no_success_without_any_tenant() -> None:
    assert not Report((), 1.0, {}).is_success


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        pytest.param({"phase": "validated"}, "not live", id="not live"),
        pytest.param({"phase": None}, "not live", id="never registered"),
        pytest.param({"validation": None}, "not validated", id="not validated"),
    ],
)
def test_report_is_no_success_when_the_move_is_not_done(
    moved: TenantReport, change: dict[str, Any], problem: str
) -> None:
    report = Report((replace(moved, **change), moved), 1.0, {})

    assert not report.is_success
    assert problem in report.tenants[0].find_problems()[0]


def test_report_is_no_success_when_the_last_validation_found_a_mismatch(
    moved: TenantReport,
) -> None:
    assert moved.validation is not None
    spoiled = replace(moved, validation=replace(moved.validation, mismatches=1))

    assert not Report((spoiled,), 1.0, {}).is_success


@pytest.mark.parametrize("field", ["failed", "lost_writes"])
def test_report_is_no_success_when_a_client_was_let_down(moved: TenantReport, field: str) -> None:
    let_down = replace(moved, client=replace(moved.client, **{field: 1}))

    assert not Report((moved, let_down), 1.0, {}).is_success


def test_report_is_no_success_when_the_client_did_nothing(moved: TenantReport) -> None:
    idle = replace(moved, client=replace(moved.client, requests=0))

    assert not Report((idle,), 1.0, {}).is_success


def test_report_of_a_tenant_that_was_never_registered_says_so() -> None:
    report = build_tenant_report("acme", None, _measure().summarize(finished=True), _AUDIT)

    assert report.phase is None
    assert report.rows_per_second is None


def test_tables_fit_and_name_every_tenant(moved: TenantReport) -> None:
    output = io.StringIO()

    Console(file=output, width=120).print(*build_tables([moved]))

    assert output.getvalue().count("acme") == 2
    assert "…" not in output.getvalue()


def test_read_moves_is_empty_before_the_first_preparation(source: connection) -> None:
    assert read_moves(source) == {}
    assert read_progress(source) == {}


def test_read_progress_tells_how_much_is_copied(target: connection) -> None:
    with target.cursor() as cursor:
        cursor.execute(_MOVED)
        cursor.execute(
            "UPDATE tenantferry.chunks SET done_at = NULL, rows = NULL"
            " WHERE table_name = 'a' AND chunk = 2"
        )

    found = read_progress(target)

    assert found["acme"].copied_fraction == pytest.approx(140 / 250)
    assert found["acme"].lag_seconds == 0.25
    assert found["globex"] == Progress("globex", "registered")


_COPYING = """
INSERT INTO tenantferry.tenants (tenant, tenant_id, phase, source_identity)
VALUES ('acme', gen_random_uuid(), 'backfilling', '1/acme');
INSERT INTO tenantferry.rounds (tenant, round, consistent_point, started_at)
VALUES ('acme', 1, '0/1', clock_timestamp() - interval '10 s');
INSERT INTO tenantferry.chunks
    (tenant, table_schema, table_name, chunk, key_columns, estimated_rows, rows, bytes, done_at)
VALUES ('acme', 'public', 'a', 1, '{id}', 100, 90, 1000, now()),
       ('acme', 'public', 'a', 2, '{id}', 100, 110, 1500, now()),
       ('acme', 'public', 'b', 1, '{id}', 50, NULL, NULL, NULL);
"""
_PROGRESS = "SELECT * FROM tenantferry.progress"


def read_view(target: connection) -> dict[str, Any]:
    with target.cursor(cursor_factory=RealDictCursor) as cursor:
        cursor.execute(_PROGRESS)
        (row,) = cursor.fetchall()
    return dict(row)


def test_progress_view_has_rate_and_eta_in_the_middle_of_a_copy(target: connection) -> None:
    with target.cursor() as cursor:
        cursor.execute(_COPYING)

    found = read_view(target)

    rate, eta = found.pop("rows_per_second"), found.pop("eta_seconds")
    held = [found.pop("snapshot_seconds"), found.pop("longest_snapshot_seconds")]
    assert found == {
        "tenant": "acme", "phase": "backfilling", "tables": 2, "chunks": 3, "chunks_done": 2,
        "rows": 200, "estimated_rows": 250, "bytes": 2500, "lag_seconds": None, "changes": 0,
        "lag_measured_at": None, "rounds": 1, "throttled_by": None,
    }  # fmt: skip
    assert held == pytest.approx([10, 10], rel=0.2)
    assert rate == pytest.approx(20, rel=0.2)
    assert eta == pytest.approx(50 / rate)


def test_progress_view_has_no_eta_before_the_first_chunk(target: connection) -> None:
    with target.cursor() as cursor:
        cursor.execute(_COPYING)
        cursor.execute("UPDATE tenantferry.chunks SET done_at = NULL, rows = NULL, bytes = NULL")

    found = read_view(target)

    assert (found["rows"], found["rows_per_second"], found["eta_seconds"]) == (0, None, None)


def test_progress_view_keeps_the_rate_of_a_copy_that_is_over(target: connection) -> None:
    with target.cursor() as cursor:
        cursor.execute(_COPYING)
        cursor.execute(
            "UPDATE tenantferry.chunks SET done_at = now(), rows = 50, bytes = 10"
            " WHERE done_at IS NULL;"
            "UPDATE tenantferry.rounds SET finished_at = started_at + interval '5 s';"
            "INSERT INTO tenantferry.streams (tenant, position, confirmed, changes, lag_seconds)"
            " VALUES ('acme', '0/9', '0/9', 7, 0.5)"
        )

    found = read_view(target)

    assert (found["rows_per_second"], found["eta_seconds"]) == (50.0, 0.0)
    assert (found["chunks_done"], found["rows"], found["bytes"]) == (3, 250, 2510)
    assert (found["changes"], found["lag_seconds"]) == (7, 0.5)
    assert read_progress(target)["acme"].copied_fraction == 1.0


def test_progress_view_has_a_row_for_a_tenant_of_which_nothing_is_copied(
    target: connection,
) -> None:
    with target.cursor() as cursor:
        cursor.execute(_COPYING)
        cursor.execute("DELETE FROM tenantferry.chunks; DELETE FROM tenantferry.rounds")

    found = read_view(target)

    assert (found["tables"], found["chunks"], found["rows"], found["bytes"]) == (0, 0, 0, 0)
    assert (found["rows_per_second"], found["eta_seconds"]) == (None, None)


def test_copied_fraction_is_one_only_when_every_chunk_is_copied() -> None:
    assert Progress("a", rows=200, estimated_rows=100).copied_fraction == 0.99
    assert Progress("a", rows=90, estimated_rows=100, is_copied=True).copied_fraction == 1.0


def test_lag_is_told_as_unknown_when_it_is_unknown() -> None:
    view = View(Progress("acme", lag_seconds=None), task="backfill", requests=1, failed=0)

    assert "lag unknown" in tell_line(view)


def test_progress_is_plain_lines_when_output_is_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    view = View(Progress("acme"), task="backfill", requests=1, failed=0)

    with choose_display(Console(file=io.StringIO())) as display:
        display.show([view])
        display.show([view])

    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    assert "acme" in lines[0]


def show_later(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *views: View
) -> list[str]:
    """Show one view after the other, a minute apart, and return the lines."""
    display = PlainDisplay()
    began = time.monotonic()
    for number, view in enumerate(views):
        monkeypatch.setattr(time, "monotonic", lambda now=began + 60 * number: now)
        display.show([view])
    return capsys.readouterr().out.splitlines()


def test_plain_lines_go_on_while_the_move_gets_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    view = View(Progress("acme", "streaming"), "stream_cdc", requests=1, failed=0)
    later = replace(view, progress=replace(view.progress, changes=5))

    assert len(show_later(monkeypatch, capsys, view, later)) == 2


@pytest.mark.parametrize(
    ("progress", "is_over"),
    [
        pytest.param({"lag_seconds": 0.1, "rows_per_second": 3.0}, False, id="stands still"),
        pytest.param({"changes": 5}, True, id="is over"),
    ],
)
def test_plain_lines_say_nothing_more_of_a_tenant_that(
    *,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    progress: dict[str, Any],
    is_over: bool,
) -> None:
    view = View(Progress("acme", "live"), "success", requests=1, failed=0, is_over=is_over)
    later = replace(view, progress=replace(view.progress, **progress), requests=999)

    assert len(show_later(monkeypatch, capsys, view, later, later)) == 1


def test_progress_is_bars_when_output_is_a_terminal() -> None:
    output = io.StringIO()
    view = View(Progress("acme", rows=5, estimated_rows=10), "backfill", requests=1, failed=0)

    with choose_display(Console(file=output, force_terminal=True, width=120)) as display:
        display.show([view])

    assert "━" in output.getvalue()


def test_summary_survives_its_file(tmp_path: Path) -> None:
    summary = _measure(failed=2).summarize(finished=True)

    write_summary(summary, tmp_path / "summary.json")

    assert read_summary(tmp_path / "summary.json") == summary
    assert read_summary(tmp_path / "other.json") is None
    assert summary.failures == ("no", "no")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        pytest.param({}, Options(), id="nothing"),
        pytest.param({"TENANTS": "", "KEEP": "", "RATE": ""}, Options(), id="empty is not set"),
        pytest.param(
            {
                "TENANTS": "5",
                "ROWS": "5000",
                "RATE": "10",
                "KEEP": "1",
                "TARGET_PG": "18",
                "STORY": "rollback",
            },
            Options(
                tenants=5, rows=5000, rate=10.0, keep=True, target_major=18, story=Story.ROLLBACK
            ),
            id="all",
        ),
    ],
)
def test_read_options(environment: dict[str, str], expected: Options) -> None:
    assert read_options(environment) == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TENANTS", "0"),
        ("TENANTS", "many"),
        ("ROWS", "10"),
        ("TENANT_SQL", "/nowhere.sql"),
        ("STORY", "war"),
    ],
)
def test_read_options_refuses_what_it_cannot_use(name: str, value: str) -> None:
    with pytest.raises(PermanentError, match=name):
        read_options({name: value})
