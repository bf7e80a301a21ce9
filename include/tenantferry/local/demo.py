"""
Move a fleet of tenants under live traffic on this machine: ``python -m tenantferry.local.demo``.

The exit status is 0 only if every tenant is live and validated, no request of a client failed and
no acknowledged write is lost.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import psycopg2
from rich.console import Console

from tenantferry.connections import open_connection
from tenantferry.errors import TenantferryError
from tenantferry.local.acts import move_all, tell_rollback
from tenantferry.local.airflow import LocalAirflow
from tenantferry.local.auditor import Audit, audit
from tenantferry.local.clients import ClientProcess, stop_clients
from tenantferry.local.fleet import LocalFleet, LocalTenant, clean_up, name_tenants
from tenantferry.local.ledger import Role
from tenantferry.local.options import Options, read_options
from tenantferry.local.report import Report, build_tables, build_tenant_report, read_moves
from tenantferry.local.runs import Run
from tenantferry.local.story import Story

PROJECT_ROOT = Path(__file__).parents[3]

_CLIENT_START_SECONDS = 120.0
# How long the clients go on after the last cutover.
_EPILOGUE_SECONDS = 5.0

console = Console(highlight=False, soft_wrap=True)


def run_demo(fleet: LocalFleet, options: Options) -> tuple[Report, list[Run]]:
    """
    Run a demo from the servers' start to the report.

    :return: the report, and the runs, which are over.
    :raises TenantferryError: if something does not come up.
    """
    began = time.monotonic()

    def say(text: str) -> None:
        console.print(f"{time.monotonic() - began:7.1f}s  {text}", markup=False)

    say("starting PostgreSQL: sources, target, Airflow's own")
    fleet.start_servers()
    what = f'"{options.dump}"' if options.dump else f"{sum(t.rows for t in fleet.tenants):,} rows"
    say(f"loading {len(fleet.tenants)} tenants with {what}")
    fleet.load_tenants(dump=options.dump)
    say("starting PgBouncer and one client per tenant")
    fleet.start_pooler()
    clients = start_clients(fleet, options)
    say("starting Airflow")
    fleet.write_fleet_file()
    airflow = fleet.start_airflow()
    tell_address(airflow)
    say("moving the tenants; their clients keep working")
    triggered = time.monotonic()
    runs = move_all(fleet, clients, console)
    if options.story is Story.ROLLBACK and all(run.state == "success" for run in runs):
        runs += tell_rollback(fleet, clients, console, say)
    total_seconds = time.monotonic() - triggered
    for run in runs:
        if run.state == "failed":
            console.print(run.tell_failure(airflow.api), markup=False, style="red")
    say("all runs are over; the clients go on for some seconds, then their journals are audited")
    expected = {
        key: client.requests + _EPILOGUE_SECONDS * options.rate for key, client in clients.items()
    }
    for key, client in clients.items():
        client.wait_for_requests(int(expected[key]), timeout_seconds=_CLIENT_START_SECONDS)
    return make_report(fleet, clients, total_seconds=total_seconds, story=options.story), runs


def start_clients(fleet: LocalFleet, options: Options) -> dict[str, ClientProcess]:
    """Start every tenant's client and wait for its first requests."""
    clients = {
        tenant.key: ClientProcess(
            tenant.key,
            fleet.client_params(tenant),
            fleet.root / "demo" / "clients" / tenant.key,
            rate=options.rate,
            generic=options.dump is not None,
        )
        for tenant in fleet.tenants
    }
    for key, client in clients.items():
        fleet.ledger.record(f"client {key}", Role.SESSION, client.start())
    for key, client in clients.items():
        client.wait_for_requests(1, timeout_seconds=_CLIENT_START_SECONDS)
        summary = client.summary()
        if summary is not None and summary.note:
            console.print(f"note on {key}: {summary.note}", markup=False)
    return clients


def make_report(
    fleet: LocalFleet,
    clients: Mapping[str, ClientProcess],
    *,
    total_seconds: float,
    story: Story = Story.MIGRATE,
) -> Report:
    """Stop the clients, audit their journals through the pooler, and put it all together."""
    summaries = dict(zip(clients, stop_clients(list(clients.values())), strict=True))
    with closing(open_connection(fleet.target_params, purpose="demo", autocommit=True)) as target:
        moves = read_moves(target)
    reports = []
    for tenant in fleet.tenants:
        summary = summaries[tenant.key]
        audited = audit_tenant(fleet, tenant, clients[tenant.key].journal)
        reports.append(build_tenant_report(tenant.key, moves.get(tenant.key), summary, audited))
        for text in (*summary.failures, *audited.differences):
            console.print(f"{tenant.key}: {text}", markup=False)
    return Report(
        tenants=tuple(reports),
        total_seconds=round(total_seconds, 1),
        versions=fleet.versions(),
        story=story,
    )


def audit_tenant(fleet: LocalFleet, tenant: LocalTenant, journal: Path) -> Audit:
    """Read a journal and the database that the tenant's application is connected to now."""
    params = fleet.client_params(tenant)
    opened = psycopg2.connect(
        host=params.host,
        port=params.port,
        user=params.user,
        password=params.password,
        dbname=params.database,
    )
    with closing(opened), opened:
        return audit(opened, journal)


def tell_address(airflow: LocalAirflow) -> None:
    """Print where to look, and how to log in."""
    console.print(
        f"          Airflow is at {airflow.url}  user {airflow.username}"
        f"  password {airflow.password}",
        markup=False,
    )


def main() -> int:
    """Run the demo with the options of the environment; clean up in every case."""
    # "kill" and a closed terminal clean up as Ctrl-C does.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    root = PROJECT_ROOT / ".local"
    try:
        return _run(read_options(os.environ), root)
    except TenantferryError as error:
        console.print(f"ERROR: {error}", markup=False, style="red")
        console.print(f"Logs are below {root}: airflow/logs, demo/logs, demo/clients.")
        return 1
    except KeyboardInterrupt:
        console.print("interrupted", style="red")
        return 130


def _run(options: Options, root: Path) -> int:
    for name in sorted(set(clean_up(root))):
        console.print(f"stopped what an earlier demo left running: {name}")
    fleet = LocalFleet(
        root,
        project_root=PROJECT_ROOT,
        tenants=name_tenants(options.tenants, rows=options.rows),
        source_major=options.source_major,
        target_major=options.target_major,
    )
    try:
        report, runs = run_demo(fleet, options)
        is_success = _conclude(report, root) and all(run.state == "success" for run in runs)
        return 0 if is_success else 1
    finally:
        _leave(fleet, keep=options.keep)


def _conclude(report: Report, root: Path) -> bool:
    path = root / "demo" / "report.json"
    report.write(path)
    # In a file or a pipe nothing cuts a table off.
    wide = console if console.is_terminal else Console(highlight=False, width=160)
    wide.print(*build_tables(report.tenants, report.story))
    print(f"{report.total_seconds:.1f} s for all moves; the whole report is in {path}")
    return report.is_success


def _leave(fleet: LocalFleet, *, keep: bool) -> None:
    if not keep:
        fleet.stop()
        return
    console.print('Everything is left running; stop it with "make down".')
    if fleet.airflow is not None:
        tell_address(fleet.airflow)


if __name__ == "__main__":
    sys.exit(main())
