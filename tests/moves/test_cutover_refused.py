"""A cutover that is refused pauses nobody and changes nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cutover_stage import assert_untouched
from move_stage import Stage, rows
from tenantferry.control.phases import IllegalPhaseError
from tenantferry.errors import PermanentError, TransientError
from tenantferry.local.postgres import PostgresServer
from tenantferry.moves.cutover import cutover
from tenantferry.traffic.fence import plan_fence, raise_fence


def test_cutover_changes_nothing_when_pgbouncer_is_down(stage: Stage) -> None:
    acl = stage.acl()
    stage.pooler.stop()

    with pytest.raises(TransientError, match='"one" could not be reached'):
        cutover(stage.move)

    stage.pooler.start()
    assert_untouched(stage, acl)


def test_cutover_pauses_nobody_when_the_pooler_cannot_reach_the_target(stage: Stage) -> None:
    acl = stage.acl()
    host, port, _ = stage.move.target_address
    nowhere = replace(stage.move, target_address=(host, port, "nowhere"))

    with pytest.raises((PermanentError, TransientError)):
        cutover(nowhere)

    assert rows(stage.target, "SELECT count(*) FROM tenantferry.write_pauses") == [(0,)]
    assert "tenantferry_acme" not in stage.pooler.aliases_file.read_text("utf-8")
    assert_untouched(stage, acl)


def test_cutover_pauses_nobody_when_the_pooler_mixes_up_passwords(
    stage: Stage, source_server: PostgresServer
) -> None:
    # With a SCRAM secret in its user file, PgBouncer (its issue 1461) logs in at the target with
    # what it learnt from the client: no client that connects after the flip would get in.
    secret = source_server.psql(
        "-c", "SELECT rolpassword FROM pg_authid WHERE rolname = 'app_owner'"
    )
    stage.pooler.set_user("app_owner", secret)
    acl = stage.acl()

    with pytest.raises(PermanentError, match="cannot take the application") as caught:
        cutover(stage.move)

    assert "password authentication failed" in caught.value.detail
    assert rows(stage.target, "SELECT count(*) FROM tenantferry.write_pauses") == [(0,)]
    assert_untouched(stage, acl)


def test_cutover_refuses_a_schema_that_changed_since(stage: Stage) -> None:
    # Gotcha 27.
    acl = stage.acl()
    stage.ask("ALTER TABLE counted ADD COLUMN more text")

    with pytest.raises(PermanentError, match="changed since it was prepared"):
        cutover(stage.move)

    assert_untouched(stage, acl)


def test_cutover_refuses_a_tenant_that_is_not_validated(stage: Stage) -> None:
    rows(stage.target, "UPDATE tenantferry.tenants SET phase = 'streaming'")

    with pytest.raises(IllegalPhaseError, match='cannot be cut over in phase "streaming"'):
        cutover(stage.move)


def test_cutover_refuses_a_fence_that_is_not_its_own(stage: Stage) -> None:
    fence = plan_fence(stage.source)
    raise_fence(stage.source, fence, timeout_seconds=5)

    with pytest.raises(PermanentError, match="is fenced already"):
        cutover(stage.move)

    assert rows(stage.target, "SELECT count(*) FROM tenantferry.write_pauses") == [(0,)]
