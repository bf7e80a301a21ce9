from __future__ import annotations

import asyncio
import json
import pickle
import pkgutil
import threading
import time
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from airflow.sdk import ExceptionRetryPolicy, RetryAction
from airflow.sdk.exceptions import TaskDeferred
from psycopg2 import errors
from psycopg2.extensions import connection

from tenantferry.connections import ConnectionParams
from tenantferry.errors import PermanentError, TransientError
from tenantferry.fleet import FleetError
from tenantferry.local.accounts import free_port
from tenantferry_airflow.operators import (
    BackfillOperator,
    CutoverOperator,
    MoveOperator,
    PreflightOperator,
    PrepareOperator,
    ProbeOperator,
    StreamOperator,
    ValidateOperator,
)
from tenantferry_airflow.retries import RETRY_BY_ERROR_CLASS
from tenantferry_airflow.sensors import LagSensor
from tenantferry_airflow.triggers import LagTrigger

STEPS = [
    PreflightOperator,
    PrepareOperator,
    BackfillOperator,
    StreamOperator,
    ValidateOperator,
    CutoverOperator,
    ProbeOperator,
]


@pytest.mark.parametrize("operator", [*STEPS, LagSensor], ids=lambda operator: operator.__name__)
def test_a_constructor_only_assigns_because_fields_are_still_templates(operator: Any) -> None:
    made = operator(task_id="step", tenant="{{ params.tenant }}")

    made.render_template_fields({"params": {"tenant": "acme"}})
    assert made.tenant == "acme"


@pytest.mark.parametrize("operator", STEPS, ids=lambda operator: operator.__name__)
def test_a_step_that_is_told_to_end_unwinds_and_may_be_retried(
    operator: type[MoveOperator],
) -> None:
    with pytest.raises(SystemExit, match="was told to end"):
        operator(task_id="step", tenant="acme").on_kill()


def test_a_running_stream_that_is_told_to_end_ends_by_itself() -> None:
    operator = StreamOperator(task_id="stream_cdc", tenant="acme")
    operator._stop = threading.Event()

    operator.on_kill()

    assert operator._stop.is_set()


def test_the_lag_sensor_defers_at_once_and_stores_no_secret() -> None:
    sensor = LagSensor(task_id="wait_for_lag", tenant="acme", timeout=60)

    with pytest.raises(TaskDeferred) as deferred:
        sensor.execute({})

    path, fields = deferred.value.trigger.serialize()
    assert set(json.loads(json.dumps(fields))) == {"tenant", "deadline"}
    assert fields["deadline"] == pytest.approx(time.time() + 60, abs=5)
    assert pkgutil.resolve_name(path)(**fields).serialize() == (path, fields)
    assert getattr(sensor, deferred.value.method_name).__func__ is LagSensor.finish


def test_the_lag_sensor_fails_for_good_and_says_what_the_stream_did() -> None:
    sensor = LagSensor(task_id="wait_for_lag", tenant="acme")
    event = {"status": "timeout", "message": "did not keep up", "detail": "stream is stopped"}

    with pytest.raises(PermanentError, match="stream is stopped"):
        sensor.finish({}, event)


def test_the_lag_sensor_returns_the_round_trips() -> None:
    sensor = LagSensor(task_id="wait_for_lag", tenant="acme")

    result = sensor.finish({}, {"status": "open", "samples": [0.1, 0.2]})

    assert result == {"samples": [0.1, 0.2]}


def declare_connections(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    for conn_id in ("source_1", "target", "acme_app", "pgbouncer_1"):
        fields = {"conn_type": "postgres", "host": "127.0.0.1", "login": "x", "password": "y"}
        monkeypatch.setenv(
            f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps({**fields, "port": port, "schema": "z"})
        )


async def first_event(trigger: LagTrigger) -> tuple[dict[str, Any], float]:
    """Return the trigger's event and the longest time that the event loop stood still."""
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        while True:
            began = time.monotonic()
            await asyncio.sleep(0.01)
            longest = max(longest, time.monotonic() - began)

    watcher = asyncio.create_task(watch())
    async for event in trigger.run():
        watcher.cancel()
        return event.payload, longest
    raise AssertionError("the trigger ended without an event")


def test_an_unknown_lag_keeps_the_gate_closed_until_the_deadline(
    fleet_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare_connections(monkeypatch, free_port())  # nobody listens there

    payload, stood_still = asyncio.run(
        first_event(LagTrigger(tenant="acme", deadline=time.time() + 1.5))
    )

    assert payload["status"] == "timeout"
    assert "could not connect" in payload["detail"]
    assert "y@" not in json.dumps(payload)
    assert stood_still < 0.5  # seconds; the triggerer serves a thousand others meanwhile


def test_a_failed_stream_is_told_to_whoever_waits_for_its_lag(
    fleet_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    target_params: ConnectionParams,
    target: connection,
) -> None:
    declare_connections(monkeypatch, free_port())  # the source is gone
    fields = {
        "conn_type": "postgres",
        "host": target_params.host,
        "port": target_params.port,
        "login": target_params.user,
        "password": target_params.password,
        "schema": target_params.database,
    }
    monkeypatch.setenv("AIRFLOW_CONN_TARGET", json.dumps(fields))
    with target.cursor() as cursor:
        cursor.execute(
            "INSERT INTO tenantferry.tenants (tenant, tenant_id, phase, source_identity)"
            " VALUES ('acme', gen_random_uuid(), 'streaming', '1/acme');"
            "INSERT INTO tenantferry.streams (tenant, position, confirmed, state, error)"
            " VALUES ('acme', '0/9', '0/9', 'failed', 'column \"colour\" is not in the target')"
        )

    payload, _ = asyncio.run(first_event(LagTrigger(tenant="acme", deadline=time.time() + 1.5)))

    told = capsys.readouterr().out  # where Airflow logs to
    assert "lag is unknown: could not connect" in told
    assert 'state "failed". Its error: column "colour" is not in the target' in told
    assert payload["status"] == "timeout"  # it went on waiting until the deadline
    assert 'column "colour"' in payload["detail"]


def test_a_trigger_of_a_tenant_that_is_no_longer_declared_fails_for_good(
    fleet_file: Path,
) -> None:
    payload, _ = asyncio.run(first_event(LagTrigger(tenant="hooli", deadline=time.time() + 60)))

    assert payload["status"] == "failed"
    assert 'tenant "hooli" is not declared' in payload["detail"]


@pytest.mark.parametrize(
    ("error", "action"),
    [
        (PermanentError("x"), RetryAction.FAIL),
        (FleetError("x"), RetryAction.FAIL),
        (TransientError("x"), RetryAction.RETRY),
        (psycopg2.OperationalError("x"), RetryAction.RETRY),
        (psycopg2.InterfaceError("x"), RetryAction.RETRY),
        (errors.DeadlockDetected("x"), RetryAction.RETRY),
        (errors.AdminShutdown("x"), RetryAction.RETRY),
        (psycopg2.DatabaseError("server closed the connection"), RetryAction.RETRY),
        (errors.UndefinedTable("x"), RetryAction.FAIL),
        (errors.InsufficientPrivilege("x"), RetryAction.FAIL),
        (KeyError("x"), RetryAction.DEFAULT),
        (SystemExit(1), RetryAction.DEFAULT),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else value.value,
)
def test_gotcha_43_the_class_of_an_error_decides_whether_it_is_tried_again(
    error: BaseException, action: RetryAction
) -> None:
    decision = RETRY_BY_ERROR_CLASS.evaluate(error, try_number=1, max_tries=5)

    assert decision.action is action


def test_the_retry_policy_survives_serialization() -> None:
    stored = json.loads(json.dumps(RETRY_BY_ERROR_CLASS.serialize()))

    restored = ExceptionRetryPolicy.deserialize(stored)
    assert restored.evaluate(PermanentError("x"), 1, 5).action is RetryAction.FAIL
    assert pickle.loads(pickle.dumps(RETRY_BY_ERROR_CLASS)).serialize() == stored
