"""Bring the reverse stream of a source to its end, and take back what it keeps there."""

from __future__ import annotations

import logging

from psycopg2 import errors
from psycopg2.extensions import connection

logger = logging.getLogger(__name__)


def close_positions(source: connection) -> None:
    """
    Let no reverse stream apply anything to this source any more, whatever process it is in.

    Waits until what is being applied is committed.

    :param source: session in autocommit.
    """
    with source.cursor() as cursor:
        cursor.execute("SELECT to_regclass('tenantferry.reverse_positions') IS NULL")
        if cursor.fetchone() == (False,):
            cursor.execute(
                "UPDATE tenantferry.reverse_positions SET closed_at = clock_timestamp()"
                " WHERE closed_at IS NULL"
            )


def drop_positions(source: connection) -> None:
    """
    Drop the positions of the reverse stream and their schema, if they are there.

    :param source: session in autocommit.
    """
    with source.cursor() as cursor:
        cursor.execute("DROP TABLE IF EXISTS tenantferry.reverse_positions")
        try:
            cursor.execute("DROP SCHEMA IF EXISTS tenantferry")
        except errors.DependentObjectsStillExist as error:  # somebody else put something there
            logger.warning(
                'schema "tenantferry" of the source stays: %s',
                " ".join((error.diag.message_detail or "").split()),
            )
