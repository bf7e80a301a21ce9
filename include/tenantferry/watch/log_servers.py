"""What the servers of a fleet say of their log and of our replication slots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
    One server that runs.

    :ivar system_identifier: which data it holds, or held once: a promoted replica has that of the
        server that it was a replica of.
    :ivar started: when it was started, as it tells it. Two servers that share their identifier
        were not started within the same microsecond.
    :ivar addresses: that it was reached by; people know it by the first.
    :ivar database: the one that was asked.
    :ivar keep_bytes: ``max_slot_wal_keep_size``; ``None``: no limit.
    :ivar log_bytes: of its log on disk.
    """

    system_identifier: str
    started: str
    addresses: tuple[str, ...]
    database: str
    keep_bytes: int | None
    log_bytes: int
    slots: tuple[SeenSlot, ...]

    @property
    def where(self) -> str:
        """What people call it."""
        return self.addresses[0]


def ask_log_servers(places: Sequence[Place]) -> list[Answered[LogServer]]:
    """Ask every server once, also where it is reached by two addresses."""
    found: dict[tuple[str, ...], Answered[LogServer]] = {}
    for answered in ask_servers(places, _read_server, what="slots"):
        answer = answered.answer
        if not isinstance(answer, LogServer):
            found[(answered.place.server,)] = answered
            continue
        former = found.setdefault((answer.system_identifier, answer.started), answered)
        if former is not answered and isinstance(former.answer, LogServer):
            addresses = (*former.answer.addresses, *answer.addresses)
            merged = replace(former.answer, addresses=addresses)
            found[answer.system_identifier, answer.started] = Answered(former.place, merged)
    return list(found.values())


def _read_server(session: connection, place: Place) -> LogServer:
    with session.cursor() as cursor:
        cursor.execute(_FACTS)
        identifier, started, database, keep_bytes, log_bytes = cursor.fetchone() or (
            "",
            "",
            "",
            None,
            0,
        )
        cursor.execute(_SLOTS)
        slots = tuple(SeenSlot(*row) for row in cursor)
    return LogServer(
        system_identifier=identifier,
        started=started,
        addresses=(place.server,),
        database=database,
        keep_bytes=keep_bytes,
        log_bytes=log_bytes,
        slots=slots,
    )
