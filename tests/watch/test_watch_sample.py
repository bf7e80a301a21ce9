"""The rows of tenants on their way and in grace, compared while they work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import Any

import pytest

from move_stage import Stage, rows
from rollback_stage import create_table
from tenantferry.connections import open_connection
from tenantferry.control.direction import Direction
from tenantferry.control.graces import read_source_files, require_way_back
from tenantferry.control.streams import read_stream
from tenantferry.control.validations import read_latest_validation
from tenantferry.local.accounts import free_port
from tenantferry.moves.cutover import cutover
from tenantferry.moves.sessions import exclusive_step
from tenantferry.reverse.slot import ensure_reverse
from tenantferry.schema.table_states import find_rewritten, read_row_files
from tenantferry.validation import alignment, running
from tenantferry.watch import sample
from tenantferry.watch.report import Report
from tenantferry.watch.sample import validate_sample
from tenantferry.watch.watched import Watched
from traffic_clients import Writers

Declare = Callable[..., Watched]

COUNT = "SELECT direction, count(*) FROM tenantferry.validations GROUP BY 1 ORDER BY 1"


@pytest.fixture
def watched(stage: Stage, declare: Declare) -> Watched:
    """The fleet of the tenant on the stage."""
    return declare(move=stage.move)


@pytest.fixture
def live(stage: Stage) -> Iterator[Stage]:
    """The same tenant, live and in grace; its source follows."""
    with stage.reversing():
        cutover(stage.move)
        yield stage


def compare(watched: Watched) -> Report:
    return validate_sample(watched, run_id="watch")


def seen(report: Report) -> list[Any]:
    return [look.numbers["compared"] for look in report.looks]


def register_away(stage: Stage, tenant: str) -> None:
    """Register a tenant that looks as if it could be compared."""
    rows(
        stage.target,
        "INSERT INTO tenantferry.tenants (tenant, tenant_id, phase, source_identity)"
        f" VALUES ('{tenant}', gen_random_uuid(), 'streaming', '1/{tenant}');"
        "INSERT INTO tenantferry.streams (tenant, position, confirmed, state)"
        f" VALUES ('{tenant}', '0/1', '0/1', 'running')",
    )


def test_the_rows_of_a_tenant_on_its_way_are_compared_while_it_works(
    stage: Stage, watched: Watched
) -> None:
    with Writers([stage.client] * 2):
        report = compare(watched)

    assert (report.findings, seen(report)) == ([], ["yes"])
    assert report.looks[0].numbers["direction"] == "forward"
    assert rows(stage.target, COUNT) == [("forward", 2)]
    # It says for which tables it holds, or a cutover would have to compare again.
    query = (
        "SELECT DISTINCT array(SELECT jsonb_object_keys(source_tables) ORDER BY 1)"
        " FROM tenantferry.validations"
    )
    assert rows(stage.target, query) == [(["public.counted", "public.written", "types"],)]
    assert stage.phase() == "validated"


def test_a_row_that_differs_is_a_finding_that_names_it(stage: Stage, watched: Watched) -> None:
    rows(stage.target, "UPDATE public.counted SET note = 'corrupt' WHERE id = 7")

    (finding,) = compare(watched).problems

    assert 'different: row id=7 of table "public.counted"' in finding.detail
    assert stage.phase() == "validated"  # a look changes nothing; the cutover compares again
    latest = read_latest_validation(stage.target, "acme")
    assert latest is not None
    assert latest.mismatches == 1


def test_the_rows_of_a_tenant_in_grace_are_compared_while_it_works(
    live: Stage, watched: Watched
) -> None:
    before = read_latest_validation(live.target, "acme")
    with Writers([live.client] * 2) as writers:
        writers.wait_for(5)
        reports = [compare(watched) for _ in range(2)]

    assert writers.errors == []
    assert [report.findings for report in reports] == [[], []]
    assert reports[0].looks[0].numbers["direction"] == "reverse"
    assert rows(live.target, COUNT) == [("forward", 1), ("reverse", 2)]
    # It says nothing of whether the tenant may be cut over, should it ever go back.
    assert read_latest_validation(live.target, "acme") == before
    stream = read_stream(live.target, "acme", direction=Direction.REVERSE)
    assert stream is not None
    assert stream.command == "run"


def test_a_row_that_differs_in_the_source_of_a_tenant_in_grace_is_a_finding(
    live: Stage, watched: Watched
) -> None:
    rows(live.source, "UPDATE public.counted SET note = 'corrupt' WHERE id = 7")
    rows(live.source, "DELETE FROM public.counted WHERE id = 8")

    (finding,) = compare(watched).problems

    assert "Source and target differ in 2 place(s)" in finding.detail
    assert 'different: row id=7 of table "public.counted"' in finding.detail
    assert 'extra: row id=8 of table "public.counted"' in finding.detail
    assert "Do not roll the tenant back" in finding.hint


def test_a_table_that_came_in_grace_is_compared_with_the_others(
    live: Stage, watched: Watched
) -> None:
    create_table(live)
    ensure_reverse(live.move.target)
    live.ask("INSERT INTO added VALUES (DEFAULT, 1, 'x') RETURNING id")

    same = compare(watched)
    rows(live.source, "UPDATE public.added SET note = 'corrupt'")
    (finding,) = compare(watched).problems

    assert (same.findings, same.looks[0].numbers["tables"]) == ([], 3)
    assert 'different: row id=1 of table "public.added"' in finding.detail


def test_a_table_whose_key_was_changed_in_grace_is_compared(live: Stage, watched: Watched) -> None:
    for side, key in ((live.target, "tenant_id, id, note"), (live.source, "id, note")):
        rows(
            side,
            "ALTER TABLE public.counted ALTER note SET NOT NULL, DROP CONSTRAINT counted_pkey,"
            f" ADD CONSTRAINT counted_pkey PRIMARY KEY ({key})",
        )

    same = compare(watched)
    rows(live.source, "DELETE FROM public.counted WHERE id = 8")
    (finding,) = compare(watched).problems

    assert same.findings == []
    assert "extra: row id=8, note=" in finding.detail


def test_what_is_the_same_needs_no_comparison_in_a_rollback(live: Stage, watched: Watched) -> None:
    rows(live.source, "VACUUM FULL public.counted")
    before = read_kept(live)

    report = compare(watched)

    files = read_row_files(live.source, live.move.tenant)
    assert (report.findings, read_kept(live)) == ([], files)
    assert find_rewritten(before, files) == ["public.counted"]

    rows(live.source, "TRUNCATE public.counted")
    assert compare(watched).findings
    assert read_kept(live) == files


def read_kept(stage: Stage) -> dict[str, frozenset[str]]:
    grace = require_way_back(stage.target, "acme")
    return read_source_files(stage.target, grace.id) or {}


def test_a_tenant_that_a_step_has_gives_its_turn_away(stage: Stage, watched: Watched) -> None:
    with exclusive_step(stage.move.target, tenant="acme", step="test"):
        report = compare(watched)

    assert (report.findings, seen(report)) == ([], ["no, a step of it runs"])
    assert rows(stage.target, COUNT) == [("forward", 1)]


def test_a_step_may_begin_and_no_slot_is_kept_while_rows_are_compared(
    stage: Stage, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    slots: list[Any] = []
    original = running.compare_view

    def interfere(*arguments: Any, **named: Any) -> Any:
        with exclusive_step(stage.move.target, tenant="acme", step="test", timeout_seconds=0.1):
            slots.append(
                rows(
                    stage.source,
                    "SELECT slot_name FROM pg_replication_slots"
                    " WHERE database = current_database() ORDER BY 1",
                )
            )
        return original(*arguments, **named)

    monkeypatch.setattr(running, "compare_view", interfere)
    report = compare(watched)

    assert (report.findings, seen(report)) == ([], ["yes"])
    assert slots == [[("tenantferry_acme",)]]


@pytest.mark.parametrize("direction", list(Direction))
def test_rows_of_two_instants_are_never_compared(
    stage: Stage, watched: Watched, monkeypatch: pytest.MonkeyPatch, direction: Direction
) -> None:
    """As if the lease of the hold had ended, and the stream stood anywhere."""
    with ExitStack() as stack:
        if direction is Direction.REVERSE:
            stack.enter_context(stage.reversing())
            cutover(stage.move)
        monkeypatch.setattr(alignment, "advance", lambda *_, **__: None)
        (finding,) = compare(watched).problems

    assert 'could not see tenant "acme" at' in finding.detail
    assert rows(stage.target, COUNT) == [("forward", 1)]


def test_equal_rows_of_a_copy_that_is_no_more_prove_nothing(
    stage: Stage, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = running.compare_tenant

    def move_on(*arguments: Any, **named: Any) -> Any:
        found = original(*arguments, **named)
        rows(stage.target, "UPDATE tenantferry.tenants SET changed_at = clock_timestamp()")
        return found

    monkeypatch.setattr(sample, "compare_tenant", move_on)
    report = compare(watched)

    assert "has moved on while it was compared" in report.problems[0].detail
    assert rows(stage.target, COUNT) == [("forward", 1)]


def test_the_tenant_that_was_compared_the_longest_ago_is_next(
    stage: Stage, declare: Declare
) -> None:
    watched = declare(
        sources={
            "acme": stage.move.source,
            "globex": replace(stage.move.source, port=free_port()),
        }
    )
    register_away(stage, "globex")

    first = compare(watched)
    rows(
        stage.target,
        "INSERT INTO tenantferry.validations"
        " (tenant, position, started_at, tables, chunks, rows, mismatches)"
        " VALUES ('globex', '0/1', now(), 1, 1, 1, 0)",
    )
    second = compare(watched)

    # One that cannot be compared is told, and costs the next one nothing.
    assert [look.subject for look in first.looks] == ['rows of tenant "globex"',
                                                      'rows of tenant "acme"']  # fmt: skip
    assert [finding.verdict for finding in first.findings] == ["warning"]
    assert [look.subject for look in second.looks] == ['rows of tenant "acme"']


def test_that_nothing_can_be_compared_is_a_finding(stage: Stage, declare: Declare) -> None:
    gone = replace(stage.move.source, port=free_port())

    (finding,) = compare(declare(sources={"acme": gone})).problems

    assert "They could not be compared: could not connect" in finding.detail


def test_no_tenant_is_compared_where_that_is_switched_off(stage: Stage, declare: Declare) -> None:
    assert compare(declare(validate_tenants=0)) == Report()


def test_the_stream_is_released_when_the_source_gives_no_snapshot(
    stage: Stage, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "SLOT_TIMEOUT_SECONDS", 0.3)
    owner = replace(stage.move.source, user="app_owner", password="owner")
    with closing(open_connection(owner, purpose="test client")) as client:
        rows(client, "INSERT INTO public.written VALUES (1)")
        (finding,) = compare(watched).problems
        client.rollback()

    assert "could not create replication slot" in finding.detail
    stream = read_stream(stage.target, "acme")
    assert stream is not None
    assert stream.command == "run"


def test_tenants_that_cannot_be_compared_do_not_keep_the_others_from_their_turn(
    stage: Stage, declare: Declare
) -> None:
    away = replace(stage.move.source, port=free_port())
    names = [f"away_{number}" for number in range(sample.FAILED_TRIES + 1)]
    for name in names:
        register_away(stage, name)
    watched = declare(sources={"acme": stage.move.source, **dict.fromkeys(names, away)})

    first, second = compare(watched), compare(watched)

    assert [look.subject for look in first.looks] == [f'rows of tenant "{n}"' for n in names]
    assert len(first.problems) == len(names)
    assert [look.subject for look in second.looks] == ['rows of tenant "acme"']
    assert seen(second) == ["yes"]


def test_a_tenant_that_was_not_compared_for_long_is_a_finding_though_others_are(
    stage: Stage, declare: Declare
) -> None:
    away = replace(stage.move.source, port=free_port())
    register_away(stage, "globex")
    watched = declare(sources={"acme": stage.move.source, "globex": away}, uncompared_hours=48)
    long_ago = "UPDATE tenantferry.tenants SET changed_at = now() - interval '{} hours'"

    rows(stage.target, long_ago.format(47))
    in_time = compare(watched)
    rows(stage.target, long_ago.format(50) + " WHERE tenant = 'globex'")
    too_late = compare(watched)

    assert [finding.verdict for finding in in_time.findings] == ["warning"]
    assert seen(too_late) == ["no", "yes"]
    (finding,) = too_late.problems
    assert finding.subject == 'rows of tenant "globex"'
    assert finding.detail == "They were not compared for 50 hours (uncompared_hours is 48)."


def test_a_tenant_that_a_step_has_for_days_is_a_finding_in_the_end(
    stage: Stage, declare: Declare
) -> None:
    rows(
        stage.target,
        "UPDATE tenantferry.validations SET finished_at = now() - interval '4 days';"
        "UPDATE tenantferry.tenants SET changed_at = now() - interval '4 days'",
    )

    with exclusive_step(stage.move.target, tenant="acme", step="test"):
        (finding,) = compare(declare(uncompared_hours=72)).problems

    assert "They were not compared for 96 hours" in finding.detail
