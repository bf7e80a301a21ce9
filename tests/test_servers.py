from __future__ import annotations

import pytest
from psycopg2.extensions import connection

from tenantferry.connections import ConnectionParams, open_connection
from tenantferry.errors import PermanentError


def test_open_connection_fails_for_good_when_the_password_is_wrong(
    source_params: ConnectionParams,
) -> None:
    wrong = ConnectionParams(
        source_params.host, source_params.port, source_params.user, source_params.database, "no"
    )

    with pytest.raises(PermanentError, match="could not connect"):
        open_connection(wrong, purpose="test")


def test_source_and_target_are_ready(source: connection, target: connection) -> None:
    for side in (source, target):
        with side.cursor() as cursor:
            cursor.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user")
            assert cursor.fetchone() == (False,)
