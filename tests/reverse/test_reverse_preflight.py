"""Before a tenant is moved: could it go back?"""

from __future__ import annotations

from typing import Any

import pytest
from psycopg2.extensions import connection

from reverse_stage import Way, execute
from tenantferry.local.postgres import PostgresServer
from tenantferry.schema.findings import Verdict
from tenantferry.schema.preflight import run_preflight
from tenantferry.schema.source_checks import SOURCE_CHECKS
from tenantferry.schema.target_checks import check_way_back


@pytest.mark.parametrize(
    ("facts", "check"),
    [
        ({"wal_level": "replica"}, "wal_level"),
        ({"used_slots": 10}, "slots"),
        ({"used_slots": 9}, None),
        ({"used_slots": 9, "witness": True}, "slots"),
        ({"used_slots": 8, "witness": True}, None),
        ({}, None),
    ],
    ids=["wal_level", "slots", "one slot left", "none for the witness", "two left", "all is well"],
)
def test_preflight_tells_what_would_keep_the_reverse_slot_from_being_made(
    facts: dict[str, Any], check: str | None
) -> None:
    usual = {"wal_level": "logical", "used_slots": 3, "max_slots": 10, "witness": False}

    found = [finding.check for finding in check_way_back({**usual, **facts}, {})]

    assert found == ([] if check is None else [check])


def test_preflight_tells_that_the_reverse_stream_may_not_write_to_the_source(
    way: Way, source_server: PostgresServer, target: connection
) -> None:
    acme = way["acme"]
    execute(acme.owner, "CREATE TABLE items (id integer PRIMARY KEY)")
    grant = "SET ON PARAMETER session_replication_role"

    def find_errors() -> set[str]:
        findings = run_preflight(acme.source, target, acme.tenant, target_regions=frozenset())
        return {finding.detail for finding in findings if finding.verdict is Verdict.ERROR}

    before = find_errors()
    source_server.psql("-c", f"REVOKE {grant} FROM tenantferry")
    try:
        errors = find_errors()
    finally:
        source_server.psql("-c", f"GRANT {grant} TO tenantferry")

    assert errors - before == {
        "The migration role may not set session_replication_role: no tenant could go back."
    }


@pytest.mark.parametrize(
    ("major", "may", "verdicts"),
    [(14, False, [Verdict.WARNING]), (15, False, [Verdict.ERROR]), (14, True, []), (15, True, [])],
    ids=["14", "15", "14 as superuser", "15 with the grant"],
)
def test_preflight_only_warns_where_nobody_but_a_superuser_could_be_the_way_back(
    way: Way, *, major: int, may: bool, verdicts: list[Verdict]
) -> None:
    facts = {"major": major, "replica_role": may}

    found = SOURCE_CHECKS["way back"](facts, way["acme"].tenant)

    assert [finding.verdict for finding in found] == verdicts


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
