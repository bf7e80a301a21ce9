from __future__ import annotations

from contextlib import closing
from typing import Any

import psycopg2
import pytest
from psycopg2.extensions import connection

from tenantferry.connections import (
    ConnectionParams,
    open_connection,
    open_replication_connection,
)
from tenantferry.traffic.settlement import end_session

KEEPALIVES = {
    "tcp_keepalives_idle": "20",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "4",
    "tcp_user_timeout": "60000",
}


def show(session: connection, name: str) -> Any:
    with session.cursor() as cursor:
        cursor.execute("SELECT current_setting(%s)", (name,))
        return (cursor.fetchone() or (None,))[0]


def test_end_session_ends_a_cutover_and_leaves_another_alone(
    source: connection, source_params: ConnectionParams
) -> None:
    with (
        closing(open_connection(source_params, purpose="cutover acme")) as acme,
        closing(open_connection(source_params, purpose="cutover globex")) as globex,
    ):
        for session in (acme, globex):
            end_session(source, session.info.backend_pid, tenant="acme")

        with pytest.raises(psycopg2.OperationalError):
            show(acme, "search_path")
        assert show(globex, "search_path") == "pg_catalog"


def test_server_notices_within_a_minute_that_our_machine_is_lost(
    source: connection, source_params: ConnectionParams
) -> None:
    with closing(open_replication_connection(source_params, purpose="test")) as walsender:
        for name, value in KEEPALIVES.items():
            assert show(source, name) == value
            assert show(walsender, name) == value
