"""A target with tenants that may go live."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from psycopg2.extensions import connection

from reverse_stage import Way, drop_slot, make_way
from tenantferry.connections import ConnectionParams
from tenantferry.local.postgres import PostgresServer


@pytest.fixture
def empty_way(
    source_server: PostgresServer,
    target_server: PostgresServer,
    target_params: ConnectionParams,
    target: connection,
) -> Iterator[Way]:
    """A target without a tenant."""
    with ExitStack() as stack:
        stack.callback(drop_slot, target_server)
        yield make_way(stack, target_params, target, source_server)


@pytest.fixture
def way(empty_way: Way) -> Way:
    """One with the tenants acme and globex, and without tables yet."""
    empty_way.add("acme")
    empty_way.add("globex")
    return empty_way
