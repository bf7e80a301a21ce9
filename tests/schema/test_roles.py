from __future__ import annotations

from contextlib import closing

import psycopg2
import pytest
from psycopg2.extensions import connection

from tenantferry.connections import ConnectionParams
from tenantferry.errors import PermanentError
from tenantferry.fleet import Tenant
from tenantferry.local.postgres import PostgresServer
from tenantferry.schema.roles import (
    ensure_tenant_role,
    read_role_settings,
    set_role_password,
)


@pytest.mark.usefixtures("prepared")
def test_a_tenant_logs_in_and_finds_its_schema(
    target: connection, target_params: ConnectionParams, acme: Tenant
) -> None:
    set_role_password(target, acme.role, "it's secret")

    # As a client: without the settings of our own sessions.
    login = psycopg2.connect(
        host=target_params.host,
        port=target_params.port,
        user=acme.role,
        password="it's secret",
        dbname=target_params.database,
    )
    with closing(login) as conn, conn.cursor() as cursor:
        cursor.execute("SELECT current_schema(), app.current_tenant()::text")
        found = cursor.fetchone()

    assert found == ("t_acme", str(acme.id))


@pytest.mark.usefixtures("prepared")
def test_set_role_password_never_sends_the_password(
    target: connection, target_server: PostgresServer, acme: Tenant
) -> None:
    target_server.psql(
        "-c", "ALTER SYSTEM SET log_statement = 'all'", "-c", "SELECT pg_reload_conf()"
    )
    try:
        set_role_password(target, acme.role, "plainly-visible")
        with target.cursor() as cursor:
            cursor.execute("SELECT 1")
    finally:
        target_server.psql(
            "-c", "ALTER SYSTEM RESET log_statement", "-c", "SELECT pg_reload_conf()"
        )

    assert "plainly-visible" not in target_server.log.read_text("utf-8", "replace")


def test_gotcha_15_settings_of_the_application_are_carried(
    source: connection, source_server: PostgresServer, target: connection, acme: Tenant
) -> None:
    database = source.info.dbname
    source_server.psql(
        "-c", f"ALTER DATABASE {database} SET timezone = 'UTC'",
        "-c", f"ALTER ROLE app_owner IN DATABASE {database} SET timezone = 'Europe/Berlin'",
        "-c", f"ALTER ROLE app_owner IN DATABASE {database} SET work_mem = '9MB'",
        "-c", f"ALTER DATABASE {database} SET search_path = \"$user\", \"My data\", public",
    )  # fmt: skip

    settings = read_role_settings(source, acme)
    ensure_tenant_role(target, acme, settings=settings)

    assert settings["work_mem"] == "9MB"
    with target.cursor() as cursor:
        cursor.execute(
            "SELECT setconfig FROM pg_db_role_setting"
            " WHERE setrole = 'tenant_acme'::regrole AND setdatabase ="
            " (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
        row = cursor.fetchone()
    assert row is not None
    assert sorted(row[0]) == ["TimeZone=Europe/Berlin", 'search_path=t_acme, "My data", public']


def test_ensure_tenant_role_may_run_twice(target: connection, acme: Tenant) -> None:
    for _ in range(2):
        ensure_tenant_role(target, acme)

    with target.cursor() as cursor:
        cursor.execute(
            "SELECT pg_has_role('tenant_acme', 'tenantferry_app', 'USAGE'),"
            " pg_has_role('tenant_acme', 'SET'), pg_has_role('tenant_acme', 'USAGE')"
        )
        assert cursor.fetchone() == (True, True, False)


def test_ensure_tenant_role_refuses_a_role_beyond_row_security(
    target: connection, target_server: PostgresServer, acme: Tenant
) -> None:
    ensure_tenant_role(target, acme)
    target_server.psql("-c", "ALTER ROLE tenant_acme BYPASSRLS")

    try:
        with pytest.raises(PermanentError, match="cannot be the role of a tenant"):
            ensure_tenant_role(target, acme)
    finally:
        target_server.psql("-c", "ALTER ROLE tenant_acme NOBYPASSRLS")


def test_ensure_tenant_role_refuses_the_role_of_another_tenant(
    target: connection, acme: Tenant, globex: Tenant
) -> None:
    ensure_tenant_role(target, acme)

    with pytest.raises(PermanentError, match="belongs to another tenant"):
        ensure_tenant_role(target, acme.model_copy(update={"id": globex.id}))
