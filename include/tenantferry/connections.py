"""The one place where the engine opens connections to Postgres."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import psycopg2
from psycopg2.extensions import connection
from psycopg2.extras import LogicalReplicationConnection

from tenantferry.errors import PermanentError, TransientError

_USER_TIMEOUT_MS = 60_000

# Of our end: a dead peer is noticed within about a minute, not after two hours. Keepalives do not
# count while something was sent that the peer has not answered.
KEEPALIVES: Mapping[str, str] = {
    "keepalives_idle": "20",
    "keepalives_interval": "10",
    "keepalives_count": "4",
    "tcp_user_timeout": str(_USER_TIMEOUT_MS),
}
# Of the server's end. A machine that is lost says no farewell: without them, its sessions keep
# their locks, and a step its tenant, for the two hours that a kernel waits by default.
SERVER_KEEPALIVES: Mapping[str, str] = {
    "tcp_keepalives_idle": "20",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "4",
    "tcp_user_timeout": str(_USER_TIMEOUT_MS),
}

# What a session of ours never takes from a role's or a database's defaults. Deparsed catalog
# text qualifies what is outside pg_catalog; apply is durable at COMMIT; nothing of ours is
# ended by a timeout meant for the application.
SESSION_SETTINGS: Mapping[str, str] = {
    "client_encoding": "UTF8",
    "search_path": "pg_catalog",
    "synchronous_commit": "on",
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    "default_transaction_read_only": "off",
    "row_security": "off",
    **SERVER_KEEPALIVES,
}

# libpq reports a refused login only as text. These fragments are not translated by servers
# running with English messages; another language makes the error transient, which is safe.
_PERMANENT_LOGIN_FAILURES = (
    "password authentication failed",
    "no pg_hba.conf entry",
    "does not exist",
    "is not permitted to log in",
    "permission denied for database",
    "no password supplied",
)


@dataclass(frozen=True, slots=True)
class ConnectionParams:
    """
    How to reach one Postgres database, or the admin console of one PgBouncer.

    :ivar options: further libpq parameters, e.g. ``{"sslmode": "verify-full"}``.
    """

    host: str
    port: int
    user: str
    database: str
    password: str = field(default="", repr=False)
    options: Mapping[str, str] = field(default_factory=dict)

    def with_database(self, database: str) -> ConnectionParams:
        """Return the same server and role, another database."""
        return replace(self, database=database)

    def describe(self) -> str:
        """Name the database without any secret, e.g. ``tenantferry@db1:5432/acme``."""
        return f"{self.user}@{self.host}:{self.port}/{self.database}"


def open_connection(
    params: ConnectionParams,
    *,
    purpose: str,
    autocommit: bool = False,
    settings: Mapping[str, str] | None = None,
) -> connection:
    """
    Open an ordinary session.

    :param purpose: what the session is for; shown as ``tenantferry <purpose>`` in
        ``pg_stat_activity``.
    :param settings: server settings on top of `SESSION_SETTINGS`.
    :raises TransientError: if the server could not be reached.
    :raises PermanentError: if the server refuses this login.
    """
    merged = {**SESSION_SETTINGS, **(settings or {})}
    opened: connection = _connect(params, purpose, options=_encode_settings(merged))
    opened.autocommit = autocommit
    return opened


def open_replication_connection(
    params: ConnectionParams, *, purpose: str
) -> LogicalReplicationConnection:
    """
    Open a session that speaks the replication protocol (a walsender bound to the database).

    :raises TransientError: if the server could not be reached.
    :raises PermanentError: if the server refuses this login.
    """
    settings = {
        "client_encoding": "UTF8",
        "statement_timeout": "0",
        "lock_timeout": "0",
        # A session that has exported a snapshot waits, within a transaction, until it is used.
        "idle_in_transaction_session_timeout": "0",
        "idle_session_timeout": "0",
        **SERVER_KEEPALIVES,
    }
    opened: LogicalReplicationConnection = _connect(
        params,
        purpose,
        options=_encode_settings(settings),
        connection_factory=LogicalReplicationConnection,
    )
    return opened


def open_client_connection(params: ConnectionParams, *, purpose: str) -> connection:
    """
    Open a session as an application does, also through PgBouncer: no setting of ours.

    :raises TransientError: if the database could not be reached.
    :raises PermanentError: if the login is refused.
    """
    opened: connection = _connect(params, purpose)
    return opened


def open_admin_console(params: ConnectionParams, *, purpose: str) -> connection:
    """
    Open a session with PgBouncer's admin console.

    It takes no startup options and knows no transactions.

    :raises TransientError: if PgBouncer could not be reached.
    :raises PermanentError: if PgBouncer refuses this login.
    """
    opened: connection = _connect(params, purpose)
    opened.autocommit = True
    return opened


def is_login_refused(reason: str) -> bool:
    """Tell whether a server or a pooler has refused a login, rather than not been there."""
    return any(fragment in reason for fragment in _PERMANENT_LOGIN_FAILURES)


def _connect(params: ConnectionParams, purpose: str, **arguments: Any) -> Any:
    try:
        return psycopg2.connect(
            host=params.host,
            port=params.port,
            user=params.user,
            password=params.password,
            dbname=params.database,
            # Postgres cuts a longer application_name at 63 bytes.
            application_name=f"tenantferry {purpose}"[:63],
            **{"connect_timeout": 10, **KEEPALIVES, **params.options, **arguments},
        )
    except psycopg2.OperationalError as error:
        reason = " ".join(str(error).split())
        message = f'could not connect to "{params.describe()}"'
        if is_login_refused(reason):
            raise PermanentError(
                message,
                detail=reason,
                hint="Check user, password and database of the Airflow connection,"
                " and pg_hba.conf of the server.",
            ) from None
        raise TransientError(
            message, detail=reason, hint="Check that the server runs and accepts connections."
        ) from None


def _encode_settings(settings: Mapping[str, str]) -> str:
    # libpq splits "options" at spaces; a backslash escapes one.
    return " ".join(
        f"-c {name}={value.replace(chr(92), chr(92) * 2).replace(' ', chr(92) + ' ')}"
        for name, value in settings.items()
    )
