"""Apply the schema ``app``, which says whose rows a session may see."""

from __future__ import annotations

from psycopg2 import sql
from psycopg2.extensions import connection

from tenantferry.schema.reading import load_sql

# Has the privileges on the tables; each tenant's role is a member of it.
APP_GROUP = "tenantferry_app"
# Has the privileges on every tenant's sequences; only shared roles are members of it.
SHARED_GROUP = "tenantferry_shared"

# Two tenants prepared at once would race on CREATE ... IF NOT EXISTS and on each other's tables.
_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('tenantferry target schema', 0))"
# Roles belong to the cluster; another database of it may hold another fleet.
_CREATE_ROLE = sql.SQL(
    "DO $do$ BEGIN CREATE ROLE {role} NOLOGIN;"
    " EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $do$"
)


def lock_target_schema(target: connection) -> None:
    """
    Wait until no other session changes the target's schema.

    :param target: open transaction; its end gives the lock back.
    """
    with target.cursor() as cursor:
        cursor.execute(_LOCK)


def ensure_isolation(target: connection) -> None:
    """
    Create what is missing of the schema ``app`` and of the group roles.

    :param target: open transaction; the caller commits.
    """
    lock_target_schema(target)
    with target.cursor() as cursor:
        for group in (APP_GROUP, SHARED_GROUP):
            ensure_role(target, group)
        cursor.execute(load_sql("isolation"))


def ensure_role(target: connection, name: str) -> bool:
    """
    Create a role without login, if it is not there.

    :param target: open transaction; the caller commits.
    :return: whether it was not there.
    """
    with target.cursor() as cursor:
        cursor.execute("SELECT FROM pg_catalog.pg_roles WHERE rolname = %s", (name,))
        if cursor.rowcount:
            return False
        cursor.execute(_CREATE_ROLE.format(role=sql.Identifier(name)))
        return True
