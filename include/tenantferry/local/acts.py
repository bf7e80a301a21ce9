"""The acts of a demo: moves, and what may come after the first one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rich.console import Console

from tenantferry.local.clients import ClientProcess
from tenantferry.local.fleet import LocalFleet
from tenantferry.local.runs import Run, trigger_runs, wait_for_tasks, watch_runs

ROLLBACK_DAG = "rollback_tenant"
# The run goes on after these: its stream keeps the target current.
_ROLLBACK_TASKS = ("rollback", "probe")
# Each client does so much on the side that it was just moved to.
_REQUESTS_BETWEEN_TURNS = 200
_REQUESTS_TIMEOUT_SECONDS = 120.0


def move_all(
    fleet: LocalFleet, clients: Mapping[str, ClientProcess], console: Console
) -> list[Run]:
    """
    Trigger the Dags of some tenants, and watch until all runs are over.

    :param clients: by tenant.
    :return: the runs, well or not.
    """
    api = fleet.require_airflow().api
    runs = trigger_runs(api, {key: f"migrate_{key}" for key in clients})
    watch_runs(runs, api, target_params=fleet.target_params, clients=clients, console=console)
    return runs


def tell_rollback(
    fleet: LocalFleet,
    clients: Mapping[str, ClientProcess],
    console: Console,
    say: Callable[[str], None],
) -> list[Run]:
    """
    After the first move of some tenants: write, go back, write, move again.

    :param clients: by tenant.
    :return: the runs that were triggered; those of the rollback are over when the tenants are
        back, though their streams go on.
    """
    say("the clients write to the shared database")
    _let_write(clients)
    say("rolling the tenants back; their clients keep working")
    api = fleet.require_airflow().api
    back = trigger_runs(
        api, dict.fromkeys(clients, ROLLBACK_DAG), conf={key: {"tenant": key} for key in clients}
    )
    wait_for_tasks(back, api, _ROLLBACK_TASKS, clients=clients)
    if any(run.state == "failed" for run in back):
        return back
    say("the clients write to their own databases again")
    _let_write(clients)
    say("moving the tenants again; nothing is copied anew")
    return [*back, *move_all(fleet, clients, console)]


def _let_write(clients: Mapping[str, ClientProcess]) -> None:
    wanted: Sequence[tuple[ClientProcess, int]] = [
        (client, client.requests + _REQUESTS_BETWEEN_TURNS) for client in clients.values()
    ]
    for client, requests in wanted:
        client.wait_for_requests(requests, timeout_seconds=_REQUESTS_TIMEOUT_SECONDS)
