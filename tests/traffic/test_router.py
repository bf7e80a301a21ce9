from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

import pytest
from psycopg2.extensions import connection

from tenantferry.connections import ConnectionParams, open_client_connection
from tenantferry.errors import PermanentError, TransientError
from tenantferry.local.pgbouncer import PgBouncer
from tenantferry.local.postgres import PostgresServer
from tenantferry.traffic.aliases import put_entry, read_entry
from tenantferry.traffic.pgbouncer import AliasState, open_console
from tenantferry.traffic.router import PauseTimeoutError, Router
from traffic_clients import Writers, read_written

Two = tuple[ConnectionParams, ConnectionParams]


def point_at(pooler: PgBouncer, alias: str, params: ConnectionParams) -> None:
    pooler.set_alias(
        alias,
        host=params.host,
        port=params.port,
        database=params.database,
        user=params.user,
        password=params.password,
    )
    pooler.allow("app_owner", alias)


def client_of(pooler: PgBouncer, alias: str = "acme") -> ConnectionParams:
    return pooler.client(alias, "app_owner", "owner")


def changes_to(params: ConnectionParams) -> dict[str, str]:
    return {
        "host": params.host,
        "port": str(params.port),
        "dbname": params.database,
        "user": params.user,
        "password": params.password,
    }


def states(router: Router, alias: str = "acme") -> list[AliasState]:
    found = []
    for instance in router.instances:
        with open_console(instance.name, instance.admin, purpose="test") as console:
            state = console.read_alias(alias)
            assert state is not None
            found.append(state)
    return found


@contextmanager
def transaction_through(pooler: PgBouncer, alias: str = "acme") -> Iterator[connection]:
    """A client that is idle in a transaction."""
    with closing(open_client_connection(client_of(pooler, alias), purpose="slow")) as client:
        with client.cursor() as cursor:
            cursor.execute("SELECT 1")
        yield client


def ask(params: ConnectionParams, query: str) -> Any:
    with closing(open_client_connection(params, purpose="ask")) as client, client.cursor() as c:
        c.execute(query)
        return (c.fetchone() or (None,))[0]


@pytest.fixture
def acme(poolers: list[PgBouncer], two_databases: Two) -> Two:
    for pooler in poolers:
        point_at(pooler, "acme", two_databases[0])
    return two_databases


def test_flip_under_load_loses_no_write_and_fails_none(
    poolers: list[PgBouncer], router: Router, acme: Two, source_server: PostgresServer,
    target_server: PostgresServer,
) -> None:  # fmt: skip
    # Gotcha 39, with two instances.
    here, there = acme
    with Writers([client_of(pooler) for pooler in poolers * 4]) as writers:
        writers.wait_for(100)
        with router.open("acme") as opened:
            opened.pause(timeout_seconds=5)
            opened.flip(changes_to(there), attempt=1)
            written_before = len(read_written(source_server, here.database))
            opened.resume()
        writers.wait_for(100)

    before = read_written(source_server, here.database)
    after = read_written(target_server, there.database)
    assert writers.errors == []
    assert len(before) == written_before
    assert sorted(before + after) == sorted(writers.acknowledged)
    assert len(after) >= 100


def test_flip_reaches_clients_that_log_in_later(
    poolers: list[PgBouncer], router: Router, acme: Two
) -> None:
    with router.open("acme") as opened:
        opened.pause(timeout_seconds=5)
        opened.flip(changes_to(acme[1]), attempt=1)
        opened.resume()

    for _ in range(2):
        assert ask(client_of(poolers[0]), "SELECT current_user") == "tenant_acme"


def test_restore_brings_clients_back(poolers: list[PgBouncer], router: Router, acme: Two) -> None:
    text = poolers[0].aliases_file.read_text("utf-8")
    with router.open("acme") as opened:
        opened.pause(timeout_seconds=5)
        opened.flip(changes_to(acme[1]), attempt=1)

    router.restore("acme", attempt=1)
    router.restore("acme", attempt=1)

    assert poolers[0].aliases_file.read_text("utf-8") == text
    assert [state.paused for state in states(router)] == [False, False]
    assert ask(client_of(poolers[1]), "SELECT current_user") == "app_owner"


def test_flip_back_points_every_instance_where_it_pointed_before(
    poolers: list[PgBouncer], router: Router, acme: Two
) -> None:
    text = poolers[1].aliases_file.read_text("utf-8")
    for former, attempt, back in ((0, 1, False), (1, 2, True)):
        with router.open("acme") as opened:
            opened.pause(timeout_seconds=5)
            if back:
                opened.flip_back(former=former, attempt=attempt)
                assert [state.paused for state in states(router)] == [True, True]
            else:
                opened.flip(changes_to(acme[1]), attempt=attempt)
            opened.resume()

    assert [ask(client_of(pooler), "SELECT current_user") for pooler in poolers] == [
        "app_owner"
    ] * 2
    router.forget_former("acme")
    assert poolers[1].aliases_file.read_text("utf-8") == text


def test_pause_is_bounded_when_a_client_is_idle_in_a_transaction(
    poolers: list[PgBouncer], router: Router, acme: Two
) -> None:
    # Gotcha 38: PAUSE alone never ends.
    with transaction_through(poolers[1]), router.open("acme") as opened:
        began = time.monotonic()
        with pytest.raises(PauseTimeoutError) as caught:
            opened.pause(timeout_seconds=0.3)
        assert time.monotonic() - began < 1.5

        router.restore("acme", attempt=1)

    assert 'On instance "two": client 127.0.0.1:' in caught.value.detail
    assert 'of user "app_owner" ("tenantferry slow")' in caught.value.detail
    assert [state.paused for state in states(router)] == [False, False]


def test_pause_of_one_tenant_does_not_wait_for_a_client_of_another(
    poolers: list[PgBouncer], router: Router, acme: Two
) -> None:
    # PgBouncer answers PAUSE when all paused databases are quiet.
    for pooler in poolers:
        point_at(pooler, "globex", acme[0])
    with (
        transaction_through(poolers[0], "globex"),
        router.open("globex") as other,
        router.open("acme") as opened,
    ):
        with pytest.raises(PauseTimeoutError):
            other.pause(timeout_seconds=0.2)

        opened.pause(timeout_seconds=2)

        opened.resume()
        other.resume()


def test_resume_of_what_is_not_paused_is_no_error(router: Router, acme: Two) -> None:
    with router.open("acme") as opened:
        opened.resume()

    assert [state.paused for state in states(router)] == [False, False]


def test_open_names_the_instance_that_does_not_answer(
    poolers: list[PgBouncer], router: Router, acme: Two
) -> None:
    poolers[1].stop()

    with pytest.raises(TransientError, match='"two" could not be reached'), router.open("acme"):
        pass

    assert [state.paused for state in states(Router(router.instances[:1]))] == [False]


def test_instance_that_dies_during_the_pause_is_restored_with_the_others(
    poolers: list[PgBouncer], router: Router, acme: Two
) -> None:
    with router.open("acme") as opened:
        opened.pause(timeout_seconds=5)
        poolers[1].kill()
        with pytest.raises(TransientError):
            opened.flip(changes_to(acme[1]), attempt=1)

    with pytest.raises(TransientError, match="could not be restored"):
        router.restore("acme", attempt=1)
    # The one that lives is back already.
    assert ask(client_of(poolers[0]), "SELECT current_user") == "app_owner"

    poolers[1].start()
    router.restore("acme", attempt=1)
    assert ask(client_of(poolers[1]), "SELECT current_user") == "app_owner"


def test_flip_fails_when_the_instance_does_not_include_the_file(
    poolers: list[PgBouncer], router: Router, acme: Two
) -> None:
    # RELOAD says nothing about it.
    stray = poolers[0].directory / "stray.ini"
    stray.write_text(poolers[0].aliases_file.read_text("utf-8"), "utf-8")
    astray = Router([replace(router.instances[0], aliases_file=stray)])

    with astray.open("acme") as opened:
        opened.pause(timeout_seconds=5)
        with pytest.raises(TransientError, match="did not take over the new line"):
            opened.flip(changes_to(acme[1]), attempt=1)

    astray.restore("acme", attempt=1)
    assert ask(client_of(poolers[0]), "SELECT current_user") == "app_owner"


def test_check_accepts_what_can_be_cut_over_and_changes_nothing(
    poolers: list[PgBouncer], router: Router, acme: Two
) -> None:
    text = poolers[0].aliases_file.read_text("utf-8")

    router.check("acme", max_write_pause_seconds=5)

    assert poolers[0].aliases_file.read_text("utf-8") == text


@pytest.mark.parametrize(
    "refused",
    [
        ({}, "nobody", 'does not know alias "nobody"'),
        ({"pool_mode": "session"}, "acme", 'pools alias "acme" by session'),
        ({"query_wait_timeout": "24"}, "acme", "ends clients that wait for 24 s"),
        ({"min_pool_size": "2"}, "acme", "opens 2 connections"),
        ({"auth_type": "scram-sha-256"}, "acme", "lets every login use every alias"),
    ],
    ids=[
        "unknown alias",
        "session pooling",
        "short query_wait_timeout",
        "min_pool_size",
        "no rules for logins",
    ],
)
def test_check_refuses_an_instance_that_cannot_pause(
    poolers: list[PgBouncer],
    router: Router,
    acme: Two,
    refused: tuple[dict[str, str], str, str],
) -> None:
    settings, alias, message = refused
    poolers[1].settings.update(settings)
    poolers[1].restart()

    with pytest.raises(PermanentError, match=message):
        router.check(alias, max_write_pause_seconds=5)


def test_check_refuses_an_alias_without_a_user_of_its_own(
    poolers: list[PgBouncer], router: Router, acme: Two
) -> None:
    # What happens without the check: a connected client stays with its own role.
    here = acme[0]
    entry = {"host": here.host, "port": str(here.port), "dbname": here.database}
    poolers[0].allow("app_owner", "bare")
    put_entry(poolers[0].aliases_file, "bare", entry)
    bare = Router(router.instances[:1])
    bare.finish("bare")

    with closing(open_client_connection(client_of(poolers[0], "bare"), purpose="old")) as client:
        with client, client.cursor() as cursor:
            cursor.execute("SELECT 1")
        with pytest.raises(PermanentError, match='logs in as each client of alias "bare"'):
            bare.check("bare", max_write_pause_seconds=5)

        put_entry(poolers[0].aliases_file, "bare", {**changes_to(here), "user": "tenant_acme"})
        bare.finish("bare")
        with pytest.raises(PermanentError, match="logged in as app_owner"):
            bare.check("bare", max_write_pause_seconds=5)

        with client, client.cursor() as cursor:
            cursor.execute("SELECT current_user::text")
            assert cursor.fetchone() == ("app_owner",)


def test_login_of_one_tenant_is_refused_at_the_alias_of_another(
    poolers: list[PgBouncer], router: Router, acme: Two
) -> None:
    # What happens without the rules: an alias with a user of its own takes everybody there.
    pooler = poolers[0]
    pooler.set_user("globex_app", "globex")
    stranger = pooler.client("acme", "globex_app", "globex")
    with pytest.raises((PermanentError, TransientError)) as before:
        ask(stranger, "SELECT 1")
    with router.open("acme") as opened:
        opened.pause(timeout_seconds=5)
        opened.flip(changes_to(acme[1]), attempt=1)
        opened.resume()

    with pytest.raises((PermanentError, TransientError)) as after:
        ask(stranger, "SELECT 1")

    for caught in (before, after):
        assert "login rejected" in caught.value.detail
    assert ask(client_of(pooler), "SELECT current_user") == "tenant_acme"
    pooler.settings["auth_type"] = "scram-sha-256"
    pooler.restart()
    assert ask(stranger, "SELECT current_user") == "tenant_acme"


def test_check_refuses_rules_that_let_everybody_in(
    poolers: list[PgBouncer], router: Router, acme: Two
) -> None:
    rules = poolers[1].directory / "hba.conf"
    rules.write_text("host all all 127.0.0.1/32 scram-sha-256\n", "utf-8")
    poolers[1].restart()

    with pytest.raises(PermanentError, match='"two" lets every login use every alias'):
        router.check("acme", max_write_pause_seconds=5)


def test_check_refuses_a_file_that_the_instance_does_not_include(
    poolers: list[PgBouncer], router: Router, acme: Two
) -> None:
    poolers[0].aliases_file.write_text("[databases]\nacme = host=elsewhere\n", "utf-8")

    with pytest.raises(PermanentError, match="does not have alias"):
        router.check("acme", max_write_pause_seconds=5)


def test_two_instances_with_one_file_keep_the_way_back(
    poolers: list[PgBouncer], router: Router, acme: Two
) -> None:
    shared = router.instances[0].aliases_file
    both = Router(
        [replace(instance, aliases_file=shared) for instance in (router.instances[0],) * 2]
    )
    text = shared.read_text("utf-8")

    with both.open("acme") as opened:
        opened.pause(timeout_seconds=5)
        opened.flip(changes_to(acme[1]), attempt=1)
    both.restore("acme", attempt=1)

    assert shared.read_text("utf-8") == text


def test_two_tenants_flip_at_the_same_time(
    poolers: list[PgBouncer], router: Router, acme: Two
) -> None:
    failures: list[BaseException] = []
    for pooler in poolers:
        point_at(pooler, "globex", acme[0])

    def flip(alias: str, attempt: int) -> None:
        try:
            with router.open(alias) as opened:
                opened.pause(timeout_seconds=5)
                opened.flip(changes_to(acme[1]), attempt=attempt)
                opened.resume()
        except BaseException as failure:  # noqa: BLE001  # the test looks at it
            failures.append(failure)

    threads = [
        threading.Thread(target=flip, args=(alias, attempt))
        for attempt, alias in enumerate(("acme", "globex"))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    for alias in ("acme", "globex"):
        assert ask(client_of(poolers[0], alias), "SELECT current_user") == "tenant_acme"
        assert read_entry(poolers[1].aliases_file, alias)["user"] == "tenant_acme"
