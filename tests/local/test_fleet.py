from __future__ import annotations

from contextlib import closing
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # comes without types
import pytest

from tenantferry.connections import open_client_connection, open_connection
from tenantferry.fleet import load_fleet
from tenantferry.local.clients import ClientProcess, stop_clients
from tenantferry.local.demo import audit_tenant
from tenantferry.local.fleet import LocalFleet, clean_up, name_tenants
from tenantferry.local.ledger import Role

PROJECT_ROOT = Path(__file__).parents[2]


def test_name_tenants_makes_sizes_that_differ() -> None:
    tenants = name_tenants(4, rows=600_000)

    assert [tenant.key for tenant in tenants] == ["acme", "globex", "initech", "tenant_4"]
    assert [tenant.rows for tenant in tenants] == [600_000, 300_000, 100_000, 100_000]
    assert len({tenant.id for tenant in tenants}) == 4
    assert tenants[0].id == name_tenants(1, rows=1)[0].id


def test_a_fleet_carries_a_client_and_leaves_nothing_behind(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    root = tmp_path_factory.mktemp("fleet") / ".local"
    (tenant,) = name_tenants(1, rows=1_000)
    fleet = LocalFleet(root, project_root=PROJECT_ROOT, tenants=[tenant])
    try:
        fleet.start_servers()
        fleet.load_tenant(tenant)
        fleet.start_pooler()
        fleet.write_fleet_file()
        client = ClientProcess(
            tenant.key, fleet.client_params(tenant), root / "demo" / tenant.key, rate=100
        )
        fleet.ledger.record("client", Role.SESSION, client.start())
        client.wait_for_requests(50, timeout_seconds=60)
        pids = [entry.pid for entry in fleet.ledger.read()]
        with (
            closing(open_connection(fleet.target_params, purpose="test")) as target,
            target.cursor() as cursor,
        ):
            cursor.execute(
                "SELECT rolsuper, rolbypassrls FROM pg_roles WHERE rolname = current_user"
            )
            role = cursor.fetchone()
        (summary,) = stop_clients([client])
        audited = audit_tenant(fleet, tenant, client.journal)
        versions = fleet.versions()
    finally:
        fleet.stop()

    assert role == (False, True)
    assert summary.failed == 0
    assert audited.lost_writes == 0
    assert audited.acknowledged_writes == summary.acknowledged_writes > 0
    assert len(pids) == 5
    assert not [pid for pid in pids if psutil.pid_exists(pid)]
    assert set(versions) == {"airflow", "pgbouncer", "postgres_source", "postgres_target"}
    assert not any(character in "".join(versions.values()) for character in " (")
    declared = load_fleet(fleet.fleet_file)
    assert declared.broken == {}
    assert declared.tenants["acme"].id == tenant.id
    assert tenant.password not in fleet.fleet_file.read_text("utf-8")
    assert (root / "demo" / "logs" / "source-postgres.log").exists()


def test_what_is_restarted_is_found_where_it_was_and_stopped_with_the_rest(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    root = tmp_path_factory.mktemp("fleet") / ".local"
    (tenant,) = name_tenants(1, rows=1_000)
    fleet = LocalFleet(root, project_root=PROJECT_ROOT, tenants=[tenant])
    try:
        fleet.start_servers()
        fleet.load_tenants()
        fleet.start_pooler()
        before = {entry.pid for entry in fleet.ledger.read()}
        address = fleet.client_params(tenant)
        fleet.pooler.set_alias(
            "elsewhere", host="127.0.0.1", port=1, database="d", user="u", password="p"
        )

        fleet.restart_server("source", mode="immediate")
        fleet.restart_pooler()

        with closing(open_client_connection(address, purpose="test")) as client:
            assert client.info.dbname == tenant.key
        aliases = fleet.pooler.aliases_file.read_text("utf-8")
        restarted = {entry.pid for entry in fleet.ledger.read()} - before
    finally:
        fleet.stop()

    assert "elsewhere" in aliases  # its files are as they were
    assert len(restarted) == 2
    assert not [pid for pid in restarted if psutil.pid_exists(pid)]


def test_clean_up_stops_what_an_aborted_fleet_left_running(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    root = tmp_path_factory.mktemp("fleet") / ".local"
    aborted = LocalFleet(root, project_root=PROJECT_ROOT, tenants=name_tenants(1, rows=1_000))
    aborted.source.start()
    pid = aborted.source.pid
    assert pid is not None
    aborted.ledger.record("PostgreSQL source", Role.SERVER, pid)

    stopped = clean_up(root)

    assert stopped == ["PostgreSQL source"]
    assert not psutil.pid_exists(pid)
    assert not aborted.source.directory.exists()
    assert clean_up(root) == []
