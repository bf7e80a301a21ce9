"""A live tenant that may go back, and what a test of that looks at."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from move_stage import Stage, may_log_in, rows
from tenantferry.control.graces import read_grace
from tenantferry.errors import TransientError
from tenantferry.moves.cutover import cutover
from tenantferry.reverse import loop
from tenantferry.traffic.fence import plan_fence

BEFORE = ["prepared", "begun", "paused", "fenced", "drained", "sequences", "files"]


def aliases(stage: Stage) -> str:
    return stage.pooler.aliases_file.read_text("utf-8")


def slots(stage: Stage) -> list[tuple[Any, ...]]:
    return rows(
        stage.source,
        "SELECT slot_name FROM pg_replication_slots WHERE database = current_database()",
    )


def who(stage: Stage) -> str:
    """Tell as whom the application works, so on which side."""
    [(role,)] = stage.ask("SELECT current_user::text")
    return str(role)


def open_attempts(stage: Stage) -> int:
    [(count,)] = rows(
        stage.target,
        "SELECT count(*) FROM tenantferry.write_pauses"
        " WHERE undone_at IS NULL AND resumed_at IS NULL",
    )
    return int(count)


def wait_until_settled(stage: Stage) -> None:
    deadline = time.monotonic() + 30
    while open_attempts(stage):
        assert time.monotonic() < deadline


def assert_still_live(stage: Stage) -> None:
    """Nothing of an attempt is left, and the way back is as open as it was."""
    wait_until_settled(stage)
    assert stage.phase() == "live"
    assert may_log_in(stage)
    assert who(stage) == "tenant_acme"
    assert plan_fence(stage.source).is_raised
    assert slots(stage) == []
    assert "pg_stat" not in aliases(stage)


def assert_back(stage: Stage, acl: list[str]) -> None:
    assert stage.phase() == "streaming"
    assert who(stage) == "app_owner"
    assert not may_log_in(stage)
    assert stage.acl() == acl
    assert slots(stage) == [("tenantferry_acme",)]
    assert read_grace(stage.target, "acme") is None
    assert open_attempts(stage) == 0


@pytest.fixture
def before(stage: Stage) -> tuple[list[str], str]:
    """What the source's privileges and the alias file were before the cutover."""
    return stage.acl(), aliases(stage)


# Of the slot: a stream is said to have reported as soon as it begins, before it publishes.
_HAS_REPORTED = "SELECT reported_at IS NOT NULL FROM tenantferry.reverse_slot"


@pytest.fixture
def live(stage: Stage, before: object, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    """A live tenant whose reverse stream runs, and publishes no new table by itself."""
    monkeypatch.setattr(loop, "PUBLISH_SECONDS", 3600.0)
    cutover(stage.move)
    with stage.reversing():
        # What it publishes when it starts comes before its first report.
        deadline = time.monotonic() + 30
        while rows(stage.target, _HAS_REPORTED) != [(True,)]:
            assert time.monotonic() < deadline
        yield stage


def create_table(stage: Stage) -> None:
    """Create a table on both sides, as a migration of the application does for all tenants."""
    rows(stage.source, "CREATE TABLE public.added (id integer PRIMARY KEY, note text)")
    rows(stage.source, "ALTER TABLE public.added OWNER TO app_owner")
    rows(
        stage.target,
        "CREATE TABLE public.added (tenant_id uuid NOT NULL DEFAULT app.current_tenant(),"
        " id integer, note text, PRIMARY KEY (tenant_id, id));"
        "ALTER TABLE public.added ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;"
        "CREATE POLICY tenant_isolation ON public.added"
        " USING (tenant_id = (SELECT app.current_tenant()))"
        " WITH CHECK (tenant_id = (SELECT app.current_tenant()));"
        "GRANT SELECT, INSERT, UPDATE, DELETE ON public.added TO tenantferry_app",
    )


def fail_at(step: str) -> Callable[[str], None]:
    def fail(reached: str) -> None:
        if reached == step:
            raise TransientError(f"failed at {step}")

    return fail
