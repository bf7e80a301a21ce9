"""What the forward streams bring into the target never goes back to where it came from."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, closing
from importlib import resources

import pytest

from reverse_stage import Way, execute, make_way
from server_files import make_servers_directory
from tenantferry.connections import ConnectionParams, open_connection
from tenantferry.control.registry import ensure_control_schema
from tenantferry.control.streams import origin_name
from tenantferry.local.postgres import PostgresServer, find_installations
from tenantferry.reverse import dispatching


@pytest.fixture
def old_way(source_server: PostgresServer, target_params: ConnectionParams) -> Iterator[Way]:
    """A target on the oldest version, which cannot leave out what came by replication."""
    base = make_servers_directory()
    server = PostgresServer(
        base / "old", find_installations()[-1], settings={"fsync": "off", "full_page_writes": "off"}
    )
    try:
        server.start()
        server.psql(
            "-c", f"CREATE ROLE tenantferry LOGIN PASSWORD '{target_params.password}'",
            "-c", "CREATE DATABASE target",
        )  # fmt: skip
        script = resources.files("tenantferry.schema").joinpath("target_privileges.sql")
        with resources.as_file(script) as path:
            server.psql(f"--file={path}", database="target")
        superuser = server.superuser
        params = ConnectionParams(
            superuser.host, superuser.port, "tenantferry", "target", target_params.password
        )
        with ExitStack() as stack:
            target = stack.enter_context(closing(open_connection(params, purpose="test")))
            with target:
                ensure_control_schema(target)
            target.autocommit = True
            way = make_way(stack, params, target, source_server)
            way.add("acme")
            way.add("globex")
            yield way
    finally:
        server.stop("immediate")
        shutil.rmtree(base, ignore_errors=True)


def apply_forward(way: Way, key: str, statement: str) -> None:
    """Write in the target as a forward stream does: under the tenant's replication origin."""
    with closing(open_connection(way.target_params, purpose="forward", autocommit=True)) as session:
        name = origin_name(key)
        if execute(session, "SELECT pg_replication_origin_oid(%s)", name) == [(None,)]:
            execute(session, "SELECT pg_replication_origin_create(%s)", name)
        execute(session, "SELECT pg_replication_origin_session_setup(%s)", name)
        execute(session, f"SET search_path = public; {statement}")


def check_no_echo(way: Way) -> None:
    way.table("items", "id integer, name text")
    way.table("log", "id integer, name text", key="")
    way.ensure()
    way.go_live()
    tenant_id = way["acme"].tenant.id

    with way.follow() as following:
        apply_forward(
            way, "acme",
            f"BEGIN; INSERT INTO items VALUES (1, 'forward', '{tenant_id}');"
            f" INSERT INTO log VALUES (1, 'forward', '{tenant_id}'); COMMIT",
        )  # fmt: skip
        # The shape of the tables was told within a transaction that does not count.
        way["acme"].write("INSERT INTO items VALUES (2, 'client')")
        way["acme"].write("INSERT INTO log VALUES (2, 'client')")
        apply_forward(way, "acme", "UPDATE items SET name = 'forward again' WHERE id = 1")
        following.catch_up()

    assert way["acme"].rows("items") == ["(2,client)"]
    assert way["acme"].rows("log") == ["(2,client)"]


def test_reverse_never_echoes_what_came_forward_gotcha_14(way: Way) -> None:
    check_no_echo(way)


def test_reverse_never_echoes_on_a_server_without_the_filter_gotcha_14(old_way: Way) -> None:
    check_no_echo(old_way)


def test_a_server_without_the_filter_sends_what_came_forward(
    old_way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The guard of the test above: without looking at the origin there is an echo.
    monkeypatch.setattr(dispatching.Dispatcher, "_origin", lambda *_: None)

    with pytest.raises(AssertionError, match="forward"):
        check_no_echo(old_way)
