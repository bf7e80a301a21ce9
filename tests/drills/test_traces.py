"""What all the drills leave behind, in the databases, in the logs and in memory."""

from __future__ import annotations

import re

import pytest

from drill_fleet import DrillFleet
from tenantferry.control.direction import Direction
from tenantferry.control.phases import Phase
from tenantferry.local.acts import ROLLBACK_DAG
from tenantferry.local.runs import Run

# What any one process may use: Airflow itself takes most of it.
MOST_MEMORY_MB = 400.0

# A way that is gone again, as after an undone cutover, is in the trail more than once.
_TRAIL = """
SELECT to_phase, run_id FROM tenantferry.phase_changes WHERE tenant = %s ORDER BY id
"""
VALIDATE_DAG = "validate_fleet"
_COMPARED = "SELECT tenant, direction, mismatches FROM tenantferry.validations WHERE run_id = %s"
# Without those of "validate_fleet", which looks at rows alone.
_WITNESSED = """
SELECT witnessed FROM tenantferry.validations WHERE tenant = %s AND run_id = ANY (%s)
"""
_WITNESS_SLOTS = "SELECT FROM pg_replication_slots WHERE slot_name LIKE 'tfwitness%'"


def find_live(fleet: DrillFleet) -> list[str]:
    """Return the tenants that the drills have left in the target."""
    keys = [tenant.key for tenant in fleet.local.tenants]
    return [key for key in keys if fleet.phase(key) == Phase.LIVE]


def test_each_move_left_its_whole_way_in_the_audit_trail(drilled_fleet: DrillFleet) -> None:
    whole = [
        Phase.REGISTERED,
        Phase.PREPARED,
        Phase.BACKFILLING,
        Phase.STREAMING,
        Phase.VALIDATED,
        Phase.CUTTING_OVER,
        Phase.LIVE,
    ]
    fleet = drilled_fleet
    for key in find_live(fleet):
        runs = fleet.history[key]
        was_back = any(run.dag_id == ROLLBACK_DAG for run in runs)
        expected = [*whole, Phase.ROLLING_BACK] if was_back else whole
        trail = fleet.query(_TRAIL, key)

        assert list(dict.fromkeys(phase for phase, _ in trail)) == expected, key
        assert list(dict.fromkeys(run_id for _, run_id in trail)) == [r.run_id for r in runs], key


def test_the_sources_of_live_tenants_are_fenced_and_keep_nothing_back(
    drilled_fleet: DrillFleet,
) -> None:
    source = drilled_fleet.local.source
    with_slot = source.psql("-c", "SELECT database FROM pg_replication_slots").split()
    open_to_clients = source.psql(
        "-c",
        "SELECT datname FROM pg_database WHERE datname <> 'postgres' AND NOT datistemplate"
        " AND has_database_privilege(datname || '_app', datname, 'CONNECT')",
    ).split()
    live = set(find_live(drilled_fleet))

    assert live
    assert live & {*with_slot, *open_to_clients} == set()


def test_the_rows_of_a_live_tenant_can_be_compared(drilled_fleet: DrillFleet) -> None:
    fleet = drilled_fleet
    fleet.runs[VALIDATE_DAG] = run = Run("", VALIDATE_DAG, fleet.api.trigger(VALIDATE_DAG))
    fleet.wait_for_success(VALIDATE_DAG)

    ((tenant, direction, mismatches),) = fleet.query(_COMPARED, run.run_id)
    assert tenant in find_live(fleet)
    assert (direction, mismatches) == (Direction.REVERSE, 0)


def test_each_witness_has_seen_its_move_and_nothing_done_to_others(
    drilled_fleet: DrillFleet,
) -> None:
    fleet = drilled_fleet
    keys = [t.key for t in fleet.local.tenants if t.settings["witness"]]
    if not keys:
        pytest.skip("no drill of a tenant with a witness was selected")
    moves = {key: [run.run_id for run in fleet.history[key]] for key in keys}
    told = {key: [text for (text,) in fleet.query(_WITNESSED, key, moves[key])] for key in keys}
    nothing_done = re.compile(r"[1-9]\d* transactions of this move in .*: 0 rows of others")

    assert set(keys) <= set(find_live(fleet))
    assert all(told.values())
    for key, texts in told.items():
        assert [text for text in texts if not nothing_done.fullmatch(text or "")] == [], key
    assert fleet.query("SELECT * FROM tenantferry.violations") == []
    assert fleet.query(_WITNESS_SLOTS) == []


def test_no_process_of_the_fleet_needs_much_memory(drilled_fleet: DrillFleet) -> None:
    memory = drilled_fleet.memory
    too_large = {name: mb for name, mb in memory.most_mb.items() if mb > MOST_MEMORY_MB}

    assert memory.samples > 10
    assert any("client" in name for name in memory.most_mb)
    assert any("airflow" in name for name in memory.most_mb)
    assert too_large == {}


def test_no_secret_is_in_a_log_or_in_airflows_database(drilled_fleet: DrillFleet) -> None:
    fleet = drilled_fleet.local
    secrets = [params.password for params in fleet.connections().values()]
    secrets += re.findall(r"password=(\S+)", fleet.pooler.aliases_file.read_text("utf-8"))
    logs = [path.read_text("utf-8", "replace") for path in fleet.root.rglob("*.log")]
    xcoms = fleet.metadata_server.psql("-c", "SELECT value FROM xcom", database="airflow")
    rendered = fleet.metadata_server.psql(
        "-c", "SELECT rendered_fields FROM rendered_task_instance_fields", database="airflow"
    )

    assert logs
    for text in (*logs, xcoms, rendered):
        assert not [secret for secret in secrets if secret in text]
