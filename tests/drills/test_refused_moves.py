"""Moves that must not happen, or not yet."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from drill_fleet import DrillFleet
from drill_steps import FORGOTTEN, sleeping_client
from drill_verdict import conclude
from tenantferry.local.runs import Run

_NEW_TABLE = (
    "CREATE TABLE public.parcels (id bigint PRIMARY KEY, note text)",
    "INSERT INTO public.parcels SELECT n, 'old' FROM generate_series(1, 1000) AS n",
)
_CHANGE_NEW_TABLE = "UPDATE public.parcels SET note = 'new' WHERE id % 2 = 0"
_NEW_ROWS = (
    "SELECT note, count(*) FROM public.parcels WHERE tenant_id = %s GROUP BY note ORDER BY 1"
)
_VERSIONS = "SELECT id, xmin::text FROM public.payments WHERE tenant_id = %s"
# Of a table whose rows the application never changes.
_CHANGE_CELL = "UPDATE public.payments SET amount = amount + 1 WHERE tenant_id = '{}' AND id = 7"


@dataclass(frozen=True, slots=True)
class Mismatch:
    """
    What on-call saw of a mismatch.

    :ivar phase: when the validation had failed.
    :ivar attempts: cutovers that were begun with the mismatch there.
    """

    validate_log: str
    cutover_log: str
    phase: str
    attempts: int


@dataclass(frozen=True, slots=True)
class Grown:
    """
    What on-call saw of a table that came to a source when all others were copied.

    :ivar kept: how many of the others' rows are those that were copied first ...
    :ivar copied: ... of so many.
    :ivar rows: of the new table in the target, by what they say.
    """

    validate_log: str
    kept: int
    copied: int
    rows: list[tuple[str, int]]


@dataclass(frozen=True, slots=True)
class Asked:
    """
    What became of a move whose approval was rejected, then given while a client held it up.

    :ivar phase: when it had been rejected.
    :ivar attempts: cutovers that were begun although it had been rejected.
    """

    phase: str
    attempts: int
    cutover_log: str
    undo_reason: str


def change_a_cell(fleet: DrillFleet) -> Mismatch:
    """Change one cell by hand; believe it not; repair."""
    key = "wrong"
    tenant = fleet.tenant(key)
    fleet.trigger(key)
    fleet.wait_until_asked(key)
    fleet.local.target.psql(
        "-c", _CHANGE_CELL.format(tenant.id), database=fleet.local.target_params.database
    )
    fleet.clear(key, "validate")
    # Those after it wait for a person still.
    fleet.wait_for_task(key, "validate", "failed")
    phase = fleet.phase(key)
    # Somebody thinks that the proof can be left out.
    fleet.mark(key, "validate", "success")
    fleet.answer(key, "Approve")
    fleet.wait_for_failure(key, "cutover")
    seen = Mismatch(
        fleet.task_log(key, "validate"),
        fleet.task_log(key, "cutover"),
        phase,
        len(fleet.attempts(key)),
    )
    # As the error says.
    fleet.repair(key)
    fleet.answer(key, "Approve")
    fleet.wait_for_success(key)
    conclude(fleet, key)
    return seen


def add_a_table(fleet: DrillFleet) -> Grown:
    """Give a validated source a table; do as the error says."""
    key = "grown"
    tenant = fleet.tenant(key)

    def run(*statements: str) -> None:
        lines = [f"SET ROLE {tenant.owner}", *statements]
        fleet.local.source.psql(*(part for line in lines for part in ("-c", line)), database=key)

    fleet.trigger(key)
    fleet.wait_until_asked(key)
    copied = set(fleet.query(_VERSIONS, str(tenant.id)))
    run(*_NEW_TABLE)
    fleet.clear(key, "validate")
    fleet.wait_for_task(key, "validate", "failed")
    log = fleet.task_log(key, "validate")
    fleet.clear(key, "preflight", downstream=True)
    fleet.wait_until_asked(key)
    run(_CHANGE_NEW_TABLE)
    fleet.answer(key, "Approve")
    fleet.wait_for_success(key)
    conclude(fleet, key)
    kept = copied & set(fleet.query(_VERSIONS, str(tenant.id)))
    return Grown(log, len(kept), len(copied), fleet.query(_NEW_ROWS, str(tenant.id)))


def reject(fleet: DrillFleet) -> Asked:
    """Reject a cutover; think better of it, while a client sleeps in a transaction."""
    key = "asked"
    fleet.trigger(key)
    fleet.answer(key, "Reject")
    fleet.wait_for_failure(key, "approve")
    phase, attempts = fleet.phase(key), len(fleet.attempts(key))
    fleet.wait_for_task(key, "stream_cdc", "running")
    fleet.clear(key, "approve", downstream=True)
    with sleeping_client(fleet, key):
        fleet.answer(key, "Approve")
        fleet.wait_for_task(key, "cutover", "up_for_retry")
        log = fleet.task_log(key, "cutover")
    # Before its retry is due.
    fleet.clear(key, "cutover")
    fleet.wait_for_success(key)
    conclude(fleet, key)
    return Asked(phase, attempts, log, fleet.attempts(key)[0].undo_reason or "")


@pytest.mark.drill("wrong", script=change_a_cell)
def test_a_mismatch_keeps_the_tenant_on_its_source_until_it_is_repaired(
    outcome: Mismatch,
) -> None:
    assert "payments" in outcome.validate_log
    assert "validation_id" in outcome.validate_log
    assert outcome.phase == "streaming"
    assert "cannot be cut over in phase" in outcome.cutover_log
    assert outcome.attempts == 0


@pytest.mark.drill("grown", script=add_a_table)
def test_a_table_that_comes_in_flight_is_copied_and_the_others_are_not(outcome: Grown) -> None:
    assert "lacks tables of the source" in outcome.validate_log
    assert "public.parcels" in outcome.validate_log
    assert outcome.kept == outcome.copied > 0
    assert outcome.rows == [("new", 500), ("old", 500)]


@pytest.mark.drill("asked", script=reject)
def test_a_rejected_tenant_stays_on_its_source_and_may_be_asked_again(outcome: Asked) -> None:
    assert outcome.phase == "validated"
    assert outcome.attempts == 0


@pytest.mark.drill("asked", script=reject)
def test_a_cutover_that_a_client_holds_up_is_undone_and_names_the_client(outcome: Asked) -> None:
    assert "did not finish within" in outcome.cutover_log
    assert FORGOTTEN in outcome.cutover_log
    assert "asked_app" in outcome.cutover_log
    assert "did not finish within" in outcome.undo_reason


@pytest.mark.drill("asked", script=reject)
def test_a_live_tenant_is_not_moved_again(fleet: DrillFleet, outcome: Asked) -> None:
    dag_id = fleet.runs["asked"].dag_id
    again = Run("asked", dag_id, fleet.api.trigger(dag_id))

    def has_failed() -> bool:
        again.refresh(fleet.api)
        return again.tasks.get("preflight") == "failed"

    fleet.wait_for("failure of preflight", has_failed)

    task = fleet.api.tasks(dag_id, again.run_id)["preflight"]
    assert task["try_number"] == 1
    assert "is already live" in fleet.api.task_log(dag_id, again.run_id, "preflight")
