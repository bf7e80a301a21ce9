"""A local fleet whose tenants have a client each, and what its target tells of them."""

from __future__ import annotations

import shutil
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from tenantferry.connections import open_connection
from tenantferry.control.pauses import PauseStep
from tenantferry.local.clients import ClientProcess
from tenantferry.local.demo import start_clients
from tenantferry.local.fleet import LocalFleet, LocalTenant
from tenantferry.local.ledger import Role
from tenantferry.local.options import Options

# Requests a second of each client.
RATE = 20
_CLIENT_START_SECONDS = 120.0


class DrillFailedError(AssertionError):
    """Something did not come about, or is not as it must be in the end."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """
    One cutover, or rollback, as the control schema has it.

    :ivar steps: those that are recorded.
    :ivar is_open: neither undone nor brought to its end.
    """

    direction: str
    steps: tuple[str, ...]
    is_open: bool
    undo_reason: str | None


class LiveFleet:
    """
    A fleet under live traffic.

    :ivar clients: those that work, by the key of their tenant.
    :ivar past_clients: of each tenant the last one that was stopped.
    """

    def __init__(self, local: LocalFleet) -> None:
        self.local = local
        self.clients: dict[str, ClientProcess] = {}
        self.past_clients: dict[str, ClientProcess] = {}

    def start_clients(self) -> None:
        """Start the client of every tenant."""
        self.clients = start_clients(self.local, Options(rate=RATE))

    def start_client_again(self, key: str) -> None:
        """
        Let another client go on where the one of a tenant was stopped.

        It draws other requests, and its journal begins with all that the former one was promised.
        """
        tenant, former = self.tenant(key), self.past_clients[key].journal
        # A client draws its requests by the name of its folder.
        directory = former.parent.with_name(f"{former.parent.name}+")
        directory.mkdir()
        shutil.copy(former, directory)
        client = ClientProcess(key, self.local.client_params(tenant), directory, rate=RATE)
        self.local.ledger.record(f"client {directory.name}", Role.SESSION, client.start())
        client.wait_for_requests(1, timeout_seconds=_CLIENT_START_SECONDS)
        self.clients[key] = client

    def tenant(self, key: str) -> LocalTenant:
        (found,) = (tenant for tenant in self.local.tenants if tenant.key == key)
        return found

    def query(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Ask the target as the migration role."""
        opened = open_connection(self.local.target_params, purpose="test", autocommit=True)
        with closing(opened), opened.cursor() as cursor:
            cursor.execute(statement, values or None)
            return cursor.fetchall()

    def phase(self, key: str) -> str:
        """Return the phase of a tenant; empty before it is registered."""
        if self.query("SELECT to_regclass('tenantferry.tenants')") == [(None,)]:
            return ""
        found = self.query("SELECT phase FROM tenantferry.tenants WHERE tenant = %s", key)
        return str(found[0][0]) if found else ""

    def attempts(self, key: str) -> list[Attempt]:
        """Return the cutovers of a tenant, the oldest first."""
        found = self.query(
            "SELECT direction, undone_at IS NULL AND resumed_at IS NULL, undo_reason, to_jsonb(p)"
            " FROM tenantferry.write_pauses AS p WHERE tenant = %s ORDER BY id",
            key,
        )
        return [
            Attempt(
                direction,
                tuple(step.removesuffix("_at") for step in PauseStep if row[step] is not None),
                is_open,
                reason,
            )
            for direction, is_open, reason, row in found
        ]
