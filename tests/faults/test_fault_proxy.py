"""The proxy fails as networks do, and the engine notices."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import psycopg2
import pytest

from fault_proxy import Proxy
from tenantferry.connections import ConnectionParams, open_connection


@pytest.fixture
def proxy(target_params: ConnectionParams) -> Iterator[Proxy]:
    opened = Proxy(target_params.host, target_params.port)
    yield opened
    opened.close()


def ask_in_a_thread(params: ConnectionParams, query: str, proxy: Proxy) -> list[Exception]:
    """Lose the server's machine, ask, and return what comes of it within ten seconds."""
    failures: list[Exception] = []
    session = open_connection(params, purpose="test", autocommit=True)
    proxy.swallow()

    def ask() -> None:
        try:
            with closing(session), session.cursor() as cursor:
                cursor.execute(query)
        except psycopg2.Error as error:
            failures.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(10)
    return failures


def test_a_lost_machine_is_noticed_as_soon_as_the_options_of_a_connection_say(
    proxy: Proxy, target_params: ConnectionParams
) -> None:
    # The keepalives are for while nothing is on its way, the other is for while something is.
    options = {"keepalives_idle": "1", "keepalives_count": "1", "tcp_user_timeout": "2000"}
    params = replace(target_params, port=proxy.port, options=options)

    failures = ask_in_a_thread(params, "SELECT 1", proxy)

    assert [type(failure) for failure in failures] == [psycopg2.OperationalError]


def test_a_connection_that_is_cut_fails_at_once_and_the_next_one_works(
    proxy: Proxy, target_params: ConnectionParams
) -> None:
    params = replace(target_params, port=proxy.port)
    with closing(open_connection(params, purpose="test")) as session, session.cursor() as cursor:
        proxy.cut()
        with pytest.raises(psycopg2.OperationalError):
            cursor.execute("SELECT repeat('x', 100000)")

    with closing(open_connection(params, purpose="test")) as session, session.cursor() as cursor:
        cursor.execute("SELECT 1")
        assert cursor.fetchone() == (1,)
