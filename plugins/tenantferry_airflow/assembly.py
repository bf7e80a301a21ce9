"""A `Move` made of the declared fleet and Airflow's connections."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from airflow.sdk import BaseHook

from tenantferry.fleet import Fleet, Tenant
from tenantferry.moves.move import Move
from tenantferry.traffic.router import Instance, Router
from tenantferry_airflow.connections import to_params
from tenantferry_airflow.fleet import load_declared_fleet, require_tenant

if TYPE_CHECKING:
    from airflow.sdk import Connection

ADMIN_CONSOLE = "pgbouncer"


def read_move(tenant: str, *, run_id: str | None) -> Move:
    """
    Build the move of one tenant, in a task.

    :raises PermanentError: if the tenant is not declared or a connection is not usable.
    """
    fleet = load_declared_fleet()
    declared = require_tenant(fleet, tenant)
    connections = {
        conn_id: BaseHook.get_connection(conn_id) for conn_id in connection_ids(fleet, declared)
    }
    return assemble_move(fleet, declared, connections, run_id=run_id)


async def aread_move(fleet: Fleet, tenant: Tenant, *, run_id: str | None) -> Move:
    """
    Build the move of one tenant, in a trigger: the event loop is never blocked.

    :raises PermanentError: if a connection is not usable.
    """
    connections = {
        conn_id: await BaseHook.aget_connection(conn_id)
        for conn_id in connection_ids(fleet, tenant)
    }
    return assemble_move(fleet, tenant, connections, run_id=run_id)


def connection_ids(fleet: Fleet, tenant: Tenant) -> list[str]:
    """Return the Airflow connections that a move of *tenant* needs, each once."""
    admins = [instance.admin_conn_id for instance in fleet.routers[tenant.router].instances]
    return list(
        dict.fromkeys([tenant.source.conn_id, fleet.target.conn_id, tenant.probe_conn_id, *admins])
    )


def assemble_move(
    fleet: Fleet, tenant: Tenant, connections: Mapping[str, Connection], *, run_id: str | None
) -> Move:
    """
    Put a move together.

    :param connections: by id; all of `connection_ids`.
    :raises PermanentError: if a connection is not usable.
    """
    target = to_params(connections[fleet.target.conn_id])
    declared = fleet.routers[tenant.router]
    instances = [
        Instance(
            name=instance.admin_conn_id,
            admin=to_params(connections[instance.admin_conn_id], database=ADMIN_CONSOLE),
            aliases_file=instance.aliases_file,
        )
        for instance in declared.instances
    ]
    return Move(
        tenant=tenant,
        target_regions=fleet.target.regions,
        source=to_params(connections[tenant.source.conn_id], database=tenant.source.database),
        target=target,
        router=Router(instances),
        target_address=(
            declared.target_host or target.host,
            declared.target_port or target.port,
            target.database,
        ),
        probe=to_params(connections[tenant.probe_conn_id], database=tenant.alias),
        run_id=run_id,
    )
