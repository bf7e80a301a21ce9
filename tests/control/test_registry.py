from __future__ import annotations

from contextlib import closing
from itertools import pairwise
from uuid import UUID

import pytest
from psycopg2.extensions import connection

from tenantferry.connections import ConnectionParams, open_connection
from tenantferry.control import registry
from tenantferry.control.phases import NEXT, IllegalPhaseError, Phase, check_move
from tenantferry.control.registry import (
    change_phase,
    ensure_control_schema,
    ensure_registered,
    read_registration,
)
from tenantferry.errors import PermanentError, TransientError

ACME = UUID("7f3b1c52-0000-4000-8000-000000000001")
GLOBEX = UUID("7f3b1c52-0000-4000-8000-000000000002")
WAY = (
    Phase.REGISTERED,
    Phase.PREPARED,
    Phase.BACKFILLING,
    Phase.STREAMING,
    Phase.VALIDATED,
    Phase.CUTTING_OVER,
    Phase.LIVE,
)


def register(
    target: connection, key: str = "acme", tenant_id: UUID = ACME, source: str = "1/acme"
) -> None:
    ensure_registered(
        target, tenant=key, tenant_id=tenant_id, source_identity=source, run_id="run 1"
    )


def test_ensure_control_schema_may_run_again(target: connection) -> None:
    register(target)

    ensure_control_schema(target)

    assert read_registration(target, "acme") is not None


def test_ensure_control_schema_does_not_wait_for_a_cutover(
    target: connection, target_params: ConnectionParams
) -> None:
    register(target)

    # A cutover in its write pause, which would wait for us as well.
    with closing(open_connection(target_params, purpose="test")) as cutover, cutover:
        change_phase(cutover, "acme", Phase.PREPARED, run_id="run 1", reason="test")
        with target.cursor() as cursor:
            cursor.execute("SET lock_timeout = '1s'")
        ensure_control_schema(target)


def test_ensure_control_schema_completes_one_that_was_made_of_another_file(
    target: connection,
) -> None:
    with target.cursor() as cursor:
        cursor.execute("COMMENT ON SCHEMA tenantferry IS 'made before there were validations'")
        cursor.execute("DROP TABLE tenantferry.mismatches, tenantferry.validations")

    ensure_control_schema(target)

    with target.cursor() as cursor:
        cursor.execute("SELECT to_regclass('tenantferry.mismatches') IS NOT NULL")
        assert cursor.fetchone() == (True,)


def test_ensure_control_schema_lets_nobody_queue_behind_it_for_long(
    target: connection, target_params: ConnectionParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_DDL_LOCK_TIMEOUT", "300ms")
    with target, target.cursor() as cursor:
        cursor.execute("COMMENT ON SCHEMA tenantferry IS 'of an earlier version'")
    with closing(open_connection(target_params, purpose="dump")) as dump:
        with dump.cursor() as reading:
            reading.execute("SELECT FROM tenantferry.write_pauses")
        with target, pytest.raises(TransientError, match="control schema up to date") as refused:
            ensure_control_schema(target)
        target.rollback()
        dump.rollback()
    with target, target.cursor() as cursor:
        cursor.execute("SET LOCAL lock_timeout = '7s'")
        ensure_control_schema(target)
        cursor.execute("SHOW lock_timeout")
        assert cursor.fetchone() == ("7s",)

    assert "more than 300ms" in refused.value.detail


def test_change_phase_records_every_step_of_the_way(target: connection) -> None:
    register(target)
    for phase in WAY[1:]:
        change_phase(target, "acme", phase, run_id="run 1", reason="test", lsn=16)

    with target.cursor() as cursor:
        cursor.execute("SELECT from_phase, to_phase FROM tenantferry.phase_changes ORDER BY id")
        assert cursor.fetchall() == [(None, WAY[0]), *pairwise(WAY)]


def test_change_phase_to_the_same_phase_records_nothing(target: connection) -> None:
    register(target)

    change_phase(target, "acme", Phase.REGISTERED, run_id="run 2", reason="again")

    with target.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM tenantferry.phase_changes")
        assert cursor.fetchone() == (1,)


@pytest.mark.parametrize(
    ("current", "wanted"),
    [(a, b) for a in Phase for b in Phase if a is not b and b not in NEXT[a]],
    ids=str,
)
def test_check_move_refuses_what_the_table_does_not_list(current: Phase, wanted: Phase) -> None:
    with pytest.raises(IllegalPhaseError, match=f'from phase "{current}" to "{wanted}"'):
        check_move("acme", current, wanted)


def test_change_phase_refuses_what_the_table_does_not_list(target: connection) -> None:
    register(target)

    with pytest.raises(IllegalPhaseError):
        change_phase(target, "acme", Phase.LIVE, run_id=None, reason="test")

    registration = read_registration(target, "acme")
    assert registration is not None
    assert registration.phase is Phase.REGISTERED


@pytest.mark.parametrize(
    ("key", "tenant_id", "source"),
    [
        ("globex", ACME, "1/globex"),
        ("globex", GLOBEX, "1/acme"),
        ("acme", GLOBEX, "1/acme"),
        ("acme", ACME, "1/globex"),
    ],
    ids=["same id", "same source", "key with another id", "key with another source"],
)
def test_ensure_registered_refuses_a_clash(
    target: connection, key: str, tenant_id: UUID, source: str
) -> None:
    register(target)

    with pytest.raises(PermanentError):
        register(target, key, tenant_id, source)


def test_read_registration_knows_a_target_without_registry(target: connection) -> None:
    with target.cursor() as cursor:
        cursor.execute("DROP SCHEMA tenantferry CASCADE")

    assert read_registration(target, "acme") is None
