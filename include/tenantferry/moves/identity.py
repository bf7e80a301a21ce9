"""What a source is, whatever address it is reached by."""

from __future__ import annotations

from psycopg2.extensions import connection

from tenantferry.control.registry import Registration
from tenantferry.errors import PermanentError

_IDENTITY = "SELECT system_identifier::text || '/' || current_database() FROM pg_control_system()"


def read_source_identity(source: connection) -> str:
    """
    Return the system identifier of its cluster and its name.

    :param source: open transaction or autocommit; only read.
    """
    with source.cursor() as cursor:
        cursor.execute(_IDENTITY)
        row = cursor.fetchone()
    if row is None:
        raise PermanentError("the source does not tell its system identifier")
    identity: str = row[0]
    return identity


def check_same_source(source: connection, registration: Registration) -> None:
    """
    Check that this is the database that the tenant was prepared from.

    :param source: open transaction or autocommit; only read.
    :raises PermanentError: if it is another one.
    """
    identity = read_source_identity(source)
    if registration.source_identity != identity:
        raise PermanentError(
            f'the source of tenant "{registration.tenant}" is not the one that it was prepared'
            " from",
            detail=f'It is "{identity}", that was "{registration.source_identity}".',
            hint="Let the Airflow connection lead to the one it was prepared from. Nothing was"
            " changed on this one.",
        )
