"""The row of a stream, and the commands in it."""

from __future__ import annotations

from uuid import UUID

import pytest
from psycopg2.extensions import connection

from tenantferry.control.registry import ensure_registered
from tenantferry.control.streams import (
    StreamCommand,
    StreamState,
    command,
    origin_name,
    read_stream,
    require_stream,
    reset_stream,
)
from tenantferry.errors import PermanentError
from tenantferry.fleet import Source, Tenant

ACME_ID = UUID("11111111-1111-1111-1111-111111111111")


@pytest.fixture
def acme(target: connection) -> str:
    """A registered tenant."""
    ensure_registered(target, tenant="acme", tenant_id=ACME_ID, source_identity="1/a", run_id=None)
    return "acme"


def test_read_stream_returns_none_before_the_first_backfill(target: connection, acme: str) -> None:
    assert read_stream(target, acme) is None
    with pytest.raises(PermanentError):
        require_stream(target, acme)


def test_reset_stream_begins_anew_at_a_position(target: connection, acme: str) -> None:
    reset_stream(target, acme, 1000)
    command(target, acme, StreamCommand.STOP, lsn=2000)

    reset_stream(target, acme, 500)

    record = require_stream(target, acme)
    assert (record.position, record.confirmed) == (500, 500)
    assert (record.state, record.command) == (StreamState.STOPPED, StreamCommand.RUN)
    assert record.lag_seconds is None


def test_command_counts_and_sets_the_lease(target: connection, acme: str) -> None:
    reset_stream(target, acme, 1000)

    first = command(target, acme, StreamCommand.HOLD, lease_seconds=60)
    second = command(target, acme, StreamCommand.ADVANCE, lsn=2000, lease_seconds=0)

    record = require_stream(target, acme)
    assert second == first + 1 == record.command_id
    assert record.command_lsn == 2000
    assert record.lease_expired


def test_origin_name_is_that_of_the_tenant() -> None:
    tenant = Tenant(key="acme", id=ACME_ID, source=Source(conn_id="acme"))

    assert origin_name(tenant.key) == tenant.origin
