"""Airflow connections as the engine wants them: resolved here and nowhere else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg2
from psycopg2.extensions import make_dsn

from tenantferry.connections import ConnectionParams
from tenantferry.errors import PermanentError

if TYPE_CHECKING:
    from airflow.sdk import Connection

# The connection's own fields, or what the engine sets itself.
_RESERVED = frozenset(
    {"host", "port", "user", "password", "dbname", "application_name", "options", "client_encoding"}
)


def to_params(connection: Connection, *, database: str | None = None) -> ConnectionParams:
    """
    Convert an Airflow connection; its extras are libpq parameters such as ``sslmode``.

    :param database: which database, in place of the connection's own.
    :raises PermanentError: if it lacks a field, or an extra is not a libpq parameter.
    """
    wanted = database or connection.schema
    missing = [
        label
        for label, value in (
            ("host", connection.host),
            ("login", connection.login),
            ("schema (the database)", wanted),
        )
        if not value
    ]
    if missing:
        raise PermanentError(
            f'connection "{connection.conn_id}" lacks {", ".join(missing)}',
            hint="Set it in the Airflow connection.",
        )
    return ConnectionParams(
        host=connection.host or "",
        port=connection.port or 5432,
        user=connection.login or "",
        database=wanted or "",
        password=connection.password or "",
        options=_read_options(connection),
    )


def _read_options(connection: Connection) -> dict[str, str]:
    options = {name: str(value) for name, value in connection.extra_dejson.items()}
    refused = sorted(name for name in options if name in _RESERVED or not _is_libpq(name))
    if refused:
        raise PermanentError(
            f'connection "{connection.conn_id}" has extras that cannot be used:'
            f" {', '.join(refused)}",
            detail="An extra is a parameter of libpq, e.g. sslmode or sslrootcert.",
            hint="Remove them from the Airflow connection, or use a connection of its own.",
        )
    return options


def _is_libpq(name: str) -> bool:
    try:
        make_dsn(**{name: "0"})
    except psycopg2.ProgrammingError:
        return False
    return True
