"""Run the catalog queries that stand in the ``.sql`` files beside this module."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from psycopg2.extensions import connection

# Ours in the target, and the first also in the source of a tenant in grace. On a source nothing of
# that name is read; preflight says so where they are not ours.
RESERVED_SCHEMAS = ("tenantferry", "app")

Row = tuple[Any, ...]


@cache
def load_sql(name: str) -> str:
    """Return the text of ``<name>.sql``."""
    return resources.files("tenantferry.schema").joinpath(f"{name}.sql").read_text("utf-8")


def read_rows(conn: connection, name: str, parameters: Mapping[str, object] | None) -> list[Row]:
    """Run ``<name>.sql`` and return all its rows."""
    with conn.cursor() as cursor:
        cursor.execute(load_sql(name), parameters)
        return cursor.fetchall()


def read_groups(
    conn: connection, name: str, parameters: Mapping[str, object]
) -> dict[int, list[Row]]:
    """Run ``<name>.sql`` and return its rows without the first column, grouped by it."""
    groups: dict[int, list[Row]] = defaultdict(list)
    for group, *rest in read_rows(conn, name, parameters):
        groups[group].append(tuple(rest))
    return groups


@dataclass(frozen=True, slots=True)
class Schema:
    """A schema; *usable* for the application's group in the target."""

    name: str
    usable: bool


def read_schemas(conn: connection, wanted: Collection[str] | None) -> dict[int, Schema]:
    """
    Return the application's schemas by oid, without those that are ours.

    :param wanted: names to keep; ``None`` for all.
    """
    excluded = [*RESERVED_SCHEMAS, *_read_tenant_schemas(conn)]
    parameters = {"excluded": excluded, "wanted": None if wanted is None else list(wanted)}
    return {oid: Schema(*rest) for oid, *rest in read_rows(conn, "schemas", parameters)}


def _read_tenant_schemas(conn: connection) -> list[str]:
    with conn.cursor() as cursor:
        cursor.execute("SELECT to_regclass('app.tenant_roles'), to_regclass('tenantferry.tenants')")
        if None in (cursor.fetchone() or (None,)):
            return []
        cursor.execute("SELECT DISTINCT schema_name FROM app.tenant_roles")
        return [name for (name,) in cursor.fetchall()]
