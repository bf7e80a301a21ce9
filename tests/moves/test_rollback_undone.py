"""A rollback that fails before the decision undoes itself, and the tenant stays live."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import replace

import pytest

from move_stage import Stage, may_log_in, rows, with_tenant, written
from rollback_stage import (
    BEFORE,
    aliases,
    assert_back,
    assert_still_live,
    create_table,
    fail_at,
    who,
)
from tenantferry.connections import open_client_connection, open_connection
from tenantferry.control.direction import Direction
from tenantferry.control.graces import read_grace
from tenantferry.errors import PermanentError, TransientError
from tenantferry.local.postgres import PostgresServer
from tenantferry.moves.former import make_attempt
from tenantferry.moves.rollback import rollback
from tenantferry.traffic.fence import lower_fence, plan_fence
from tenantferry.traffic.settlement import settle
from traffic_clients import Writers


def test_rollback_undoes_itself_where_a_table_is_created_after_it_was_prepared(
    live: Stage,
) -> None:
    def create(step: str) -> None:
        if step == "prepared":
            create_table(live)
            live.ask("INSERT INTO added VALUES (DEFAULT, 1, 'x') RETURNING id")

    with pytest.raises(TransientError, match="is not followed"):
        rollback(live.move, on_step=create)

    assert_still_live(live)
    with pytest.raises(PermanentError, match="has lost its way back"):
        rollback(live.move)


def test_rollback_undoes_itself_and_names_who_is_idle_in_a_transaction(live: Stage) -> None:
    text = aliases(live)
    move = with_tenant(live.move, max_write_pause_seconds=0.5)
    with closing(open_client_connection(live.client, purpose="forgotten")) as client:
        rows(client, "INSERT INTO written VALUES (1)")

        with pytest.raises(TransientError, match="did not finish within") as caught:
            rollback(move)
        client.commit()

    assert 'user "tenant_acme"' in caught.value.detail
    assert "idle in transaction for" in caught.value.detail
    assert aliases(live) == text
    assert_still_live(live)
    rollback(live.move)
    assert written(live, "source") == [1]


def test_rollback_undoes_itself_when_the_role_gets_in_between_fence_and_decision(
    live: Stage, target_server: PostgresServer
) -> None:
    password = aliases(live).rpartition("password=")[2].split()[0]
    direct = replace(live.move.target, user="tenant_acme", password=password)
    stray = []

    def let_in(step: str) -> None:
        if step == "sequences":
            target_server.psql("-c", "ALTER ROLE tenant_acme LOGIN")
            stray.append(open_client_connection(direct, purpose="stray"))
            rows(stray[0], "INSERT INTO written VALUES (5)")
            stray[0].commit()

    with pytest.raises(TransientError, match="came through its fence") as caught:
        rollback(live.move, on_step=let_in)

    stray[0].close()
    assert 'application "tenantferry stray"' in caught.value.detail
    assert_still_live(live)
    rollback(live.move)
    assert written(live, "source") == [5]


def test_rollback_undoes_itself_when_a_superuser_comes_into_the_source(
    live: Stage, source_server: PostgresServer
) -> None:
    params = source_server.superuser.with_database(live.move.source.database)
    sessions = []

    def come_in(step: str) -> None:
        if step == "fenced":
            sessions.append(open_connection(params, purpose="dba"))

    with pytest.raises(TransientError, match="cannot be ended by us"):
        rollback(live.move, on_step=come_in)

    for session in sessions:
        session.close()
    assert_still_live(live)


def test_rollback_whose_time_is_over_undoes_itself(live: Stage) -> None:
    move = with_tenant(live.move, max_write_pause_seconds=1)

    def dawdle(step: str) -> None:
        if step == "drained":
            time.sleep(1.1)

    with Writers([live.client] * 2) as writers:
        writers.wait_for(20)
        with pytest.raises(TransientError, match="took too long"):
            rollback(move, on_step=dawdle)
        writers.wait_for(20)

    assert writers.errors == []
    assert written(live, "target") == sorted(writers.acknowledged)
    assert_still_live(live)


def test_rollback_that_fails_before_the_decision_leaves_the_tenant_live(
    live: Stage, before: tuple[list[str], str]
) -> None:
    text = aliases(live)
    with Writers([live.client] * 2) as writers:
        for step in BEFORE:
            writers.wait_for(20)
            with pytest.raises(TransientError, match=f"failed at {step}"):
                rollback(live.move, on_step=fail_at(step))
            writers.wait_for(20)
            assert writers.errors == [], step
            assert aliases(live) == text, step
            assert_still_live(live)
        rollback(live.move)
        writers.wait_for(20)

    assert writers.errors == []
    assert written(live, "source") == sorted(writers.acknowledged)
    assert_back(live, before[0])
    assert aliases(live) == before[1]


def test_rollback_undoes_again_what_it_did_after_another_had_undone_it(live: Stage) -> None:
    def undo_and_go_on(step: str) -> None:
        if step != "sequences":
            return
        [(number,)] = rows(live.target, "SELECT max(id) FROM tenantferry.write_pauses")
        attempt = make_attempt(live.move, number, direction=Direction.REVERSE)
        with closing(open_connection(live.move.target, purpose="other")) as other:
            assert not settle(attempt, other, reason="test")
        rows(live.target, "ALTER ROLE tenant_acme NOLOGIN")

    with pytest.raises(TransientError):
        rollback(live.move, on_step=undo_and_go_on)

    assert_still_live(live)
    rollback(live.move)


def test_rollback_undoes_itself_when_the_target_is_lost_before_the_decision(
    live: Stage, target_server: PostgresServer
) -> None:
    def lose(step: str) -> None:
        if step == "fenced":
            target_server.psql(
                "-c",
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'tenantferry rollback acme'",
            )

    with pytest.raises(TransientError, match="failed and was undone"):
        rollback(live.move, on_step=lose)

    assert_still_live(live)


def test_a_role_that_was_locked_out_by_hand_goes_back_locked_out(live: Stage) -> None:
    rows(live.target, "ALTER ROLE tenant_acme NOLOGIN")

    with pytest.raises(TransientError, match="failed at fenced"):
        rollback(live.move, on_step=fail_at("fenced"))
    assert not may_log_in(live)

    rollback(live.move)
    assert who(live) == "app_owner"


def test_lowering_the_fence_of_a_source_by_hand_meanwhile_undoes_the_rollback(
    live: Stage,
) -> None:
    grace = read_grace(live.target, "acme")
    assert grace is not None

    def lower(step: str) -> None:
        if step == "sequences":
            [(fence,)] = rows(live.target, "SELECT fence FROM tenantferry.write_pauses"
                              " WHERE id = %s", grace.attempt)  # fmt: skip
            lower_fence(live.source, type(plan_fence(live.source)).from_json(fence))

    with pytest.raises(PermanentError, match="is not fenced any more"):
        rollback(live.move, on_step=lower)

    assert who(live) == "tenant_acme"
