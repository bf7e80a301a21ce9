"""Before a tenant is moved: could it go back?"""

from __future__ import annotations

from typing import Any

import pytest
from psycopg2.extensions import connection

from reverse_stage import Way, execute
from tenantferry.local.postgres import PostgresServer
from tenantferry.schema.findings import Verdict
from tenantferry.schema.preflight import run_preflight
from tenantferry.schema.target_checks import check_way_back


@pytest.mark.parametrize(
    ("facts", "check"),
    [
        ({"wal_level": "replica"}, "wal_level"),
        ({"used_slots": 10}, "slots"),
        ({}, None),
    ],
    ids=["wal_level", "slots", "all is well"],
)
def test_preflight_tells_what_would_keep_the_reverse_slot_from_being_made(
    facts: dict[str, Any], check: str | None
) -> None:
    usual = {"wal_level": "logical", "used_slots": 3, "max_slots": 10}

    found = [finding.check for finding in check_way_back({**usual, **facts}, {})]

    assert found == ([] if check is None else [check])


def test_preflight_tells_that_the_migration_role_may_not_read_the_targets_log(
    way: Way, target_server: PostgresServer, target: connection
) -> None:
    acme = way["acme"]
    execute(acme.owner, "CREATE TABLE items (id integer PRIMARY KEY)")
    target_server.psql("-c", "ALTER ROLE tenantferry NOREPLICATION")
    try:
        findings = run_preflight(acme.source, target, acme.tenant, target_regions=frozenset())
    finally:
        target_server.psql("-c", "ALTER ROLE tenantferry REPLICATION")

    errors = {finding.detail for finding in findings if finding.verdict is Verdict.ERROR}
    assert "The migration role lacks the attribute REPLICATION." in errors
