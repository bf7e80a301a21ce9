"""A session that asks one statement again and again, and may be lost in between."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import psycopg2
from psycopg2.extensions import connection

from tenantferry.connections import ConnectionParams, open_connection
from tenantferry.errors import TransientError

# What takes longer is not worth waiting for: the next look comes soon.
_SETTINGS = {"statement_timeout": "3s", "lock_timeout": "2s"}
_OPTIONS = {"connect_timeout": "3", "tcp_user_timeout": "5000"}


class Session:
    """
    Opened with the first statement, and anew after a failure.

    :param doing: what fails, for messages: "could not <doing>".
    """

    def __init__(self, params: ConnectionParams, *, purpose: str, doing: str) -> None:
        self._params = replace(params, options={**_OPTIONS, **params.options})
        self._purpose, self._doing = purpose, doing
        self._opened: connection | None = None

    def run(self, statement: str, values: Mapping[str, object]) -> tuple[Any, ...] | None:
        """
        Run a statement, and return its first row.

        :raises TransientError: if it failed, or the server could not be reached.
        :raises PermanentError: if the server refuses the login.
        """
        if self._opened is None:
            self._opened = open_connection(
                self._params, purpose=self._purpose, autocommit=True, settings=_SETTINGS
            )
        try:
            with self._opened.cursor() as cursor:
                cursor.execute(statement, values)
                return cursor.fetchone() if cursor.description else None
        except psycopg2.Error as error:
            self.close()
            raise TransientError(
                f"could not {self._doing}", detail=" ".join(str(error).split())
            ) from None

    def close(self) -> None:
        """End it; the next statement opens another."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None
