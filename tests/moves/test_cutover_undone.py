"""A cutover that fails half-way undoes itself, and all of it."""

from __future__ import annotations

from contextlib import closing

import pytest

from cutover_stage import assert_untouched
from move_stage import Stage, rows, with_tenant, written
from tenantferry.connections import open_client_connection, open_connection
from tenantferry.control.pauses import begin_pause
from tenantferry.errors import TransientError
from tenantferry.local.postgres import PostgresServer
from tenantferry.moves.cutover import cutover
from tenantferry.moves.former import make_attempt
from tenantferry.traffic.fence import Fence, plan_fence, raise_fence
from tenantferry.traffic.pgbouncer import open_console
from tenantferry.traffic.settlement import settle


def test_cutover_undoes_itself_and_names_who_is_idle_in_a_transaction(stage: Stage) -> None:
    acl, text = stage.acl(), stage.pooler.aliases_file.read_text("utf-8")
    move = with_tenant(stage.move, max_write_pause_seconds=0.5)
    with closing(open_client_connection(stage.client, purpose="forgotten")) as client:
        rows(client, "INSERT INTO written VALUES (1)")

        with pytest.raises(TransientError, match="did not finish within") as caught:
            cutover(move)
        client.commit()

    assert 'user "app_owner", application "tenantferry forgotten"' in caught.value.detail
    assert "idle in transaction for" in caught.value.detail
    assert stage.pooler.aliases_file.read_text("utf-8") == text
    assert_untouched(stage, acl)
    cutover(stage.move)
    assert written(stage, "target") == [1]


def test_cutover_undoes_itself_when_a_superuser_comes_in(
    stage: Stage, source_server: PostgresServer
) -> None:
    acl = stage.acl()
    params = source_server.superuser.with_database(stage.move.source.database)
    sessions = []

    def come_in(step: str) -> None:
        if step == "fenced":
            sessions.append(open_connection(params, purpose="dba"))

    with pytest.raises(TransientError, match="cannot be ended by us"):
        cutover(stage.move, on_step=come_in)

    for session in sessions:
        session.close()
    assert_untouched(stage, acl)


def test_cutover_undoes_again_what_it_did_after_another_had_undone_it(stage: Stage) -> None:
    acl = stage.acl()
    fence = plan_fence(stage.source)
    [instance] = stage.move.router.instances

    def undo_and_go_on(step: str) -> None:
        if step != "fenced":
            return
        [(number,)] = rows(stage.target, "SELECT max(id) FROM tenantferry.write_pauses")
        with closing(open_connection(stage.move.target, purpose="other")) as other:
            assert not settle(make_attempt(stage.move, number), other, reason="test")
        raise_fence(stage.source, fence, timeout_seconds=5)
        with open_console("one", instance.admin, purpose="late") as console:
            console.run("PAUSE acme")

    with pytest.raises(TransientError):
        cutover(stage.move, on_step=undo_and_go_on)

    assert_untouched(stage, acl)


def test_settling_an_undone_attempt_leaves_a_later_one_alone(stage: Stage) -> None:
    fence = plan_fence(stage.source)
    fail_at(stage, "drained")
    [(number,)] = rows(stage.target, "SELECT max(id) FROM tenantferry.write_pauses")
    begin_pause(
        stage.target, "acme", run_id=None, seconds=5, fence=fence.to_json(), source_pid=0
    )  # fmt: skip
    raise_fence(stage.source, fence, timeout_seconds=5)

    with closing(open_connection(stage.move.target, purpose="late guard")) as late:
        settle(make_attempt(stage.move, number), late, reason="test")

    assert plan_fence(stage.source).is_raised


def fail_at(stage: Stage, fatal: str) -> None:
    def fail(step: str) -> None:
        if step == fatal:
            raise TransientError("test")

    with pytest.raises(TransientError):
        cutover(stage.move, on_step=fail)


def test_fence_that_was_left_behind_is_never_taken_for_what_was_there(stage: Stage) -> None:
    acl = stage.acl()
    fence = plan_fence(stage.source)
    fail_at(stage, "drained")
    raise_fence(stage.source, fence, timeout_seconds=5)

    fail_at(stage, "drained")

    assert_untouched(stage, acl)
    stored = rows(stage.target, "SELECT fence FROM tenantferry.write_pauses ORDER BY id")
    assert [Fence.from_json(one) for (one,) in stored] == [fence, fence]


def test_cutover_undoes_itself_when_the_target_is_lost_before_the_flip(
    stage: Stage, target_server: PostgresServer
) -> None:
    acl = stage.acl()

    def lose(step: str) -> None:
        if step == "fenced":
            target_server.psql(
                "-c",
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'tenantferry cutover acme'",
            )

    with pytest.raises(TransientError, match="failed and was undone"):
        cutover(stage.move, on_step=lose)

    assert_untouched(stage, acl)
