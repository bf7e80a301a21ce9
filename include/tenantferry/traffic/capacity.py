"""Whether the target has room for the pools that the router will keep to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from psycopg2.extensions import connection

from tenantferry.schema.findings import Finding, ok, warning
from tenantferry.traffic.pgbouncer import Row, open_console
from tenantferry.traffic.router import Instance

# reserved_connections came with 16.
_ROOM = """
SELECT current_setting('max_connections')::integer
     - current_setting('superuser_reserved_connections')::integer
     - coalesce(current_setting('reserved_connections', true), '0')::integer
"""


@dataclass(frozen=True, slots=True)
class Pool:
    """
    What one instance may keep open for one alias.

    :ivar connections: to the server, at most.
    """

    instance: str
    alias: str
    connections: int


def read_pools(
    instances: Sequence[Instance], *, alias: str, host: str, port: int
) -> Iterator[Pool]:
    """
    Read the pools that share the target's server once *alias* points at it.

    :param host: of the target as PgBouncer reaches it, with its *port*. All databases of a server
        share its connections.
    :raises TransientError: if an instance does not answer.
    """
    for instance in instances:
        with open_console(instance.name, instance.admin, purpose=f"pools {alias}") as console:
            rows = console.run("SHOW DATABASES")
        for row in rows:
            if row["name"] == alias or (row["host"], str(row["port"])) == (host, str(port)):
                yield Pool(instance.name, str(row["name"]), _largest(row))


def check_capacity(target: connection, pools: Sequence[Pool], *, alias: str) -> Finding:
    """
    Compare what the pools may open with what the target accepts from ordinary roles.

    :param target: open transaction or autocommit; only read.
    """
    with target.cursor() as cursor:
        cursor.execute(_ROOM)
        ((room,),) = cursor.fetchall()
    wanted = sum(pool.connections for pool in pools)
    own = " + ".join(
        f"{pool.connections} ({pool.instance})" for pool in pools if pool.alias == alias
    )
    detail = (
        f"PgBouncer may open {wanted} connections to the target: {own} for this tenant,"
        f" {sum(pool.connections for pool in pools if pool.alias != alias)} for"
        f" {len({pool.alias for pool in pools} - {alias})} aliases that point there already."
        f" The target accepts {room}."
    )
    if wanted <= room:
        return ok("connections", "target", detail)
    hint = "Raise max_connections of the target, or lower pool_size of the aliases."
    return warning("connections", "target", detail, hint)


def _largest(row: Row) -> int:
    """Return how many connections one alias may have; 0 for max_connections is no limit."""
    # The name of the reserve changed in 1.24.
    reserve = row.get("reserve_pool_size", row.get("reserve_pool"))
    size = int(str(row["pool_size"])) + int(str(reserve or 0))
    limit = int(str(row["max_connections"]))
    return min(size, limit) if limit else size
