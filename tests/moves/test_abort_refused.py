"""An abort that is refused, and what it leaves as it was."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import pytest

from abort_stage import OTHER_ID, left, read_others
from move_stage import Stage, rows
from tenantferry.connections import open_connection
from tenantferry.control.phases import IllegalPhaseError, Phase
from tenantferry.errors import PermanentError, TransientError
from tenantferry.local.postgres import PostgresServer
from tenantferry.moves import abort as abort_module
from tenantferry.moves.abort import abort
from tenantferry.moves.cutover import cutover
from tenantferry.moves.move import Move

# The stream that the stage hosts is ended by the abort.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


def set_phase(stage: Stage, phase: Phase) -> None:
    rows(stage.target, "UPDATE tenantferry.tenants SET phase = %s WHERE tenant = 'acme'", phase)


def test_abort_does_not_clear_a_source_that_is_another_tenants(
    stage: Stage, source_server: PostgresServer
) -> None:
    name = f"{stage.move.source.database}_other"
    source_server.psql("-c", f"CREATE DATABASE {name} OWNER app_owner")
    wrong = replace(stage.move, source=stage.move.source.with_database(name))

    try:
        with pytest.raises(PermanentError, match="out of its source") as caught:
            abort(wrong)
    finally:
        source_server.psql("-c", f"DROP DATABASE {name} WITH (FORCE)")

    assert "not the one that it was prepared from" in caught.value.detail
    assert "source slots" in left(stage)


def test_abort_refuses_an_id_that_is_not_the_registered_one(stage: Stage, other: None) -> None:
    before, there = read_others(stage), left(stage)
    tenant = stage.move.tenant.model_copy(update={"id": OTHER_ID})

    with pytest.raises(PermanentError, match="registered with another id"):
        abort(replace(stage.move, tenant=tenant))

    assert (read_others(stage), left(stage)) == (before, there)


@pytest.mark.parametrize("phase", [Phase.LIVE, Phase.RETIRING, Phase.RETIRED], ids=str)
def test_abort_refuses_a_tenant_whose_clients_are_at_the_target(stage: Stage, phase: Phase) -> None:
    there = left(stage)
    set_phase(stage, phase)

    with pytest.raises(IllegalPhaseError, match="cannot be aborted") as caught:
        abort(stage.move)

    assert "rollback_tenant" in caught.value.hint
    assert stage.phase() == phase
    assert left(stage) == there


def test_abort_refuses_a_tenant_that_was_cut_over(stage: Stage) -> None:
    cutover(stage.move)
    stage.ask("INSERT INTO counted (note) VALUES ('only here')")

    with pytest.raises(IllegalPhaseError, match='in phase "live"'):
        abort(stage.move)

    assert stage.ask("SELECT count(*) FROM counted") == [(10,)]


def test_abort_of_a_tenant_that_nobody_prepared_says_so(move: Move) -> None:
    with pytest.raises(PermanentError, match="cannot be aborted") as caught:
        abort(move)

    assert "never prepared" in caught.value.detail


def test_abort_says_what_it_waits_for_when_somebody_holds_the_tenants_row(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(abort_module, "_LOCK_TIMEOUT", "200ms")
    with closing(open_connection(stage.move.target, purpose="hung")) as hung:
        rows(hung, "SELECT FROM tenantferry.tenants FOR UPDATE")

        with pytest.raises(TransientError, match="could not announce"):
            abort(stage.move)

    assert stage.phase() == Phase.VALIDATED


def test_abort_keeps_what_others_put_into_the_tenants_schema(stage: Stage) -> None:
    rows(stage.target, "CREATE TABLE t_acme.notes (id int)")

    with pytest.raises(PermanentError, match="cannot be dropped") as caught:
        abort(stage.move)

    assert "t_acme.notes" in caught.value.detail
    rows(stage.target, "DROP TABLE t_acme.notes")
    abort(stage.move)
    assert left(stage) == {}
