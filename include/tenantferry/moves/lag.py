"""How far the target is behind, measured by a marker that travels the whole way."""

from __future__ import annotations

import time
from contextlib import closing

import psycopg2

from tenantferry.connections import open_connection
from tenantferry.control.phases import AT_TARGET
from tenantferry.control.registry import require_registration
from tenantferry.control.streams import StreamState, read_stream
from tenantferry.errors import TenantferryError
from tenantferry.moves.move import Move
from tenantferry.moves.sessions import open_source
from tenantferry.stream.handshake import wait_for_position
from tenantferry.stream.marker import emit_marker

# A round trip that takes longer is not a sample; the stream is down or far behind.
ROUND_TRIP_TIMEOUT_SECONDS = 30.0


def measure_lag(move: Move, *, timeout_seconds: float = ROUND_TRIP_TIMEOUT_SECONDS) -> float:
    """
    Write a marker on the source and wait until the stream has applied it.

    A tenant that is at the target has no lag: its stream ended at the final marker of a fenced
    source.

    :return: seconds of the round trip.
    :raises TransientError: if the marker is not applied in time. The lag is then unknown, which
        is not zero.
    """
    tenant = move.tenant
    purpose = f"lag {tenant.key}"
    with closing(open_connection(move.target, purpose=purpose, autocommit=True)) as target:
        if require_registration(target, tenant.key).phase in AT_TARGET:
            return 0.0
    with open_source(move.source, purpose=purpose) as source:
        started = time.monotonic()
        lsn = emit_marker(source, tenant)
        wait_for_position(move.target, tenant.key, lsn, timeout_seconds=timeout_seconds)
        return time.monotonic() - started


def read_stream_failure(move: Move) -> str:
    """Return why the tenant's stream failed; empty where it did not, or where nobody can tell."""
    tenant = move.tenant.key
    try:
        with closing(
            open_connection(move.target, purpose=f"lag {tenant}", autocommit=True)
        ) as target:
            record = read_stream(target, tenant)
    except (TenantferryError, psycopg2.Error):
        return ""
    if record is None or record.state is not StreamState.FAILED:
        return ""
    return f'Its stream is in state "{record.state}". Its error: {record.error}'
