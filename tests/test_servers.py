from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import closing

import pytest
from psycopg2.extensions import connection

from tenantferry.connections import (
    ConnectionParams,
    open_connection,
    open_replication_connection,
)
from tenantferry.errors import PermanentError


def test_open_connection_fails_for_good_when_the_password_is_wrong(
    source_params: ConnectionParams,
) -> None:
    wrong = ConnectionParams(
        source_params.host, source_params.port, source_params.user, source_params.database, "no"
    )

    with pytest.raises(PermanentError, match="could not connect"):
        open_connection(wrong, purpose="test")


@pytest.mark.parametrize(
    "open_session", [open_connection, open_replication_connection], ids=["ordinary", "replication"]
)
def test_a_peer_that_is_gone_without_a_word_is_noticed_within_a_minute(
    target_params: ConnectionParams, open_session: Callable[..., connection]
) -> None:
    with (
        closing(open_session(target_params, purpose="test")) as session,
        socket.socket(fileno=os.dup(session.fileno())) as own,
    ):
        unanswered_ms = own.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)

    assert unanswered_ms == 60_000


def test_source_and_target_are_ready(source: connection, target: connection) -> None:
    for side in (source, target):
        with side.cursor() as cursor:
            cursor.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user")
            assert cursor.fetchone() == (False,)
