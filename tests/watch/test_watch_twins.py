"""Slots on servers that share a system identifier, and on one server that has two addresses."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest
from psycopg2.extensions import connection

from server_files import make_servers_directory
from tenantferry.connections import ConnectionParams, open_connection
from tenantferry.local.accounts import (
    free_port,
    give_to_service_user,
    service_user,
)
from tenantferry.local.postgres import PostgresServer
from tenantferry.watch.slots import check_slots
from tenantferry.watch.watched import Watched

Declare = Callable[..., Watched]
Register = Callable[..., None]
Run = Callable[..., list[tuple[Any, ...]]]


@pytest.fixture
def twin(
    source_server: PostgresServer,
    source_params: ConnectionParams,
) -> Iterator[PostgresServer]:
    """A copy of the source's server that works on its own, as a replica that was promoted."""
    base = make_servers_directory()
    made = PostgresServer(base / "twin", source_server.installation)
    made.directory.mkdir()
    give_to_service_user(made.directory)
    try:
        _copy_server(source_server, made)
        made.start()
        yield made
    finally:
        made.stop("immediate")
        shutil.rmtree(base, ignore_errors=True)


def _copy_server(server: PostgresServer, made: PostgresServer) -> None:
    superuser = server.superuser
    subprocess.run(
        [server.installation.program("pg_basebackup"), "--pgdata", made.data, "--no-sync",
         "--checkpoint=fast", "--host", superuser.host, "--port", str(superuser.port),
         "--username", superuser.user],
        user=service_user(), group=service_user(), cwd="/", check=True,
        env={"PGPASSWORD": superuser.password, "LC_ALL": "C.UTF-8"},
    )  # fmt: skip
    port = free_port()
    shutil.copy(server.directory / "superuser.password", made.directory)
    (made.directory / "port").write_text(str(port), "utf-8")
    with (made.data / "postgresql.conf").open("a", encoding="utf-8") as file:
        file.write(f"port = {port}\n")


def create_slot(params: ConnectionParams, name: str) -> None:
    opened = open_connection(params, purpose="test", autocommit=True)
    with closing(opened), opened.cursor() as cursor:
        cursor.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (name,))


def test_the_slots_of_a_promoted_replica_are_looked_at_beside_those_of_its_former_primary(
    declare: Declare,
    register: Register,
    run: Run,
    twin: PostgresServer,
    source_params: ConnectionParams,
) -> None:
    twin.psql("-c", f"ALTER DATABASE {source_params.database} RENAME TO globex")
    there = replace(source_params, port=twin.superuser.port, database="globex")
    register("streaming", tenant="globex")
    run(
        "UPDATE tenantferry.tenants"
        " SET source_identity = split_part(source_identity, '/', 1) || '/globex'"
    )
    register("backfilling", seconds=5)
    fleet = declare(sources={"acme": source_params, "globex": there})
    missing = check_slots(fleet).problems
    create_slot(source_params, "tenantferry_acme")
    create_slot(there, "tenantferry_globex")
    none = check_slots(fleet).problems
    create_slot(there, "tenantferry_forgotten")

    (stranger,) = check_slots(fleet).problems

    assert [found.subject for found in missing] == [
        f'slot "tenantferry_globex" of tenant "globex" on 127.0.0.1:{there.port}'
    ]
    assert none == []
    assert stranger.subject.startswith('slot "tenantferry_forgotten" of database "globex"')


def test_a_slot_that_stayed_behind_on_the_former_primary_is_not_the_tenant_s(
    declare: Declare,
    register: Register,
    twin: PostgresServer,
    source_params: ConnectionParams,
    source_server: PostgresServer,
) -> None:
    create_slot(source_params, "tenantferry_acme")
    register("backfilling", seconds=5)
    now_there = replace(source_params, port=twin.superuser.port)
    # Another tenant of the former primary lets it be asked.
    stays = replace(source_params, database="postgres")

    (finding,) = check_slots(declare(sources={"acme": now_there, "hooli": stays})).problems

    assert finding.subject.endswith(f"on 127.0.0.1:{source_server.superuser.port}")
    assert "No tenant of this fleet owns it." in finding.detail


@pytest.mark.parametrize("declared_on", ["source_0", "source_1"])
def test_a_server_with_two_addresses_is_looked_at_once_and_its_disk_counts_for_either(
    declare: Declare,
    register: Register,
    source: connection,
    source_params: ConnectionParams,
    declared_on: str,
) -> None:
    with source.cursor() as cursor:
        cursor.execute("SELECT pg_create_logical_replication_slot('tenantferry_acme', 'pgoutput')")
    register("streaming")
    by_name = replace(source_params, host="localhost")

    report = check_slots(
        declare(
            sources={"hooli": source_params, "acme": by_name}, wal_disk_bytes={declared_on: 1000}
        )
    )

    assert len(report.looks) == 1
    (finding,) = report.problems
    assert "the disk of the log is full" in finding.detail
