"""What the servers of a fleet say of their log and of our replication slots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from psycopg2.extensions import connection

from tenantferry.watch.asking import Answered, Place, ask_servers

_FOLDER = resources.files("tenantferry.watch")
_FACTS = _FOLDER.joinpath("server_facts.sql").read_text("utf-8")
_SLOTS = _FOLDER.joinpath("slots.sql").read_text("utf-8")


@dataclass(frozen=True, slots=True)
class SeenSlot:
    """
    One slot with a prefix of ours.

    :ivar reader: ``application_name`` of the session that uses it.
    :ivar reader_seconds: how long that session is there.
    :ivar inactive_seconds: for how long nobody has used it; ``None`` while somebody does, and on
        servers before 17, which do not know.
    :ivar kept_bytes: log that it keeps back; ``None`` is unknown.
    :ivar safe_bytes: log that can still be written before it may be lost; ``None``: no limit is
        set, or it is lost.
    :ivar lost_reason: what the server says of it.
    """

    name: str
    database: str
    is_temporary: bool
    is_active: bool
    reader: str | None
    reader_seconds: float | None
    inactive_seconds: float | None
    kept_bytes: int | None
    wal_status: str | None
    safe_bytes: int | None
    is_lost: bool
    lost_reason: str | None


@dataclass(frozen=True, slots=True)
class LogServer:
    """
    One server.

    :ivar system_identifier: who it is, whatever address it is reached by.
    :ivar database: the one that was asked.
    :ivar keep_bytes: ``max_slot_wal_keep_size``; ``None``: no limit.
    :ivar log_bytes: of its log on disk.
    """

    system_identifier: str
    database: str
    keep_bytes: int | None
    log_bytes: int
    slots: tuple[SeenSlot, ...]


def ask_log_servers(places: Sequence[Place]) -> list[Answered[LogServer]]:
    """Ask every server once, also where it is reached by two addresses."""
    found: dict[str, Answered[LogServer]] = {}
    for answered in ask_servers(places, _read_server, what="slots"):
        answer = answered.answer
        if isinstance(answer, LogServer):
            found.setdefault(answer.system_identifier, answered)
        else:
            found[answered.place.server] = answered
    return list(found.values())


def _read_server(session: connection, place: Place) -> LogServer:  # noqa: ARG001 - of ask_servers
    with session.cursor() as cursor:
        cursor.execute(_FACTS)
        system_identifier, database, keep_bytes, log_bytes = cursor.fetchone() or ("", "", None, 0)
        cursor.execute(_SLOTS)
        slots = tuple(SeenSlot(*row) for row in cursor)
    return LogServer(system_identifier, database, keep_bytes, log_bytes, slots)
