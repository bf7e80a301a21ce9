"""The replication session: it reads the slot's changes and confirms what is durable."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from struct import Struct
from types import TracebackType
from typing import Self, TypeVar

import psycopg2

from tenantferry.connections import ConnectionParams, open_replication_connection
from tenantferry.errors import TransientError
from tenantferry.stream.copyboth import CopyBoth
from tenantferry.timelines import Timeline, read_timeline

_M = TypeVar("_M")
_DATA, _KEEPALIVE = b"wk"
# "w", start and end of the log data, time of sending.
_DATA_HEADER_BYTES = 25
_KEEPALIVE_BODY = Struct("!QqB").unpack_from
# Values that come as text must mean the same to the receiver.
_TEXT_SETTINGS = (
    "SET DateStyle = 'ISO, YMD'; SET IntervalStyle = 'postgres'; SET extra_float_digits = 1;"
    " SET bytea_output = 'hex'; SET TimeZone = 'UTC'; SET lc_monetary = 'C';"
    " SET search_path = pg_catalog"
)
_STATUS = Struct("!cQQQqB")
_EPOCH_OFFSET_SECONDS = 946_684_800  # 2000-01-01
_VERSION_WITH_ORIGIN_FILTER = 160000


class Walsender:
    """
    A started slot.

    :param slot: also the name of the publication.
    :param position: transactions with a lower ``commit_lsn`` are not sent.
    :param binary: ask for binary values of all types that have them, else for text of all.
    :param skip_replicated: ask for no transaction that came by replication itself. Servers before
        16 send these all the same, each with an `Origin`.
    :param timeline: that the server is expected to write; by default any.
    :ivar received: everything of ours that was committed before it has been returned.
    :ivar wants_reply: the server waits for a confirmation, e.g. in order to shut down.
    """

    def __init__(
        self,
        sender: ConnectionParams,
        *,
        slot: str,
        purpose: str,
        position: int,
        binary: bool,
        skip_replicated: bool = False,
        timeline: Timeline | None = None,
    ) -> None:
        self._session = open_replication_connection(sender, purpose=purpose)
        options = {
            "proto_version": "1",
            "publication_names": f'"{slot}"',
            "binary": "true" if binary else "false",
            "messages": "true",
        }
        if skip_replicated and self._session.server_version >= _VERSION_WITH_ORIGIN_FILTER:
            options["origin"] = "none"
        try:
            self._check_timeline(timeline)
            cursor = self._session.cursor()
            cursor.execute(_TEXT_SETTINGS)
            cursor.start_replication(
                slot_name=slot, decode=False, start_lsn=position, options=options
            )
        except psycopg2.Error as error:
            self._session.close()
            raise TransientError(
                f'could not start replication slot "{slot}"',
                detail=" ".join(str(error).split()),
            ) from None
        except TransientError:
            self._session.close()
            raise
        self._copy = CopyBoth(self._session)
        self.received = position
        self.wants_reply = False

    def _check_timeline(self, expected: Timeline | None) -> None:
        if expected is not None and not read_timeline(self._session).may_be(expected):
            raise TransientError(
                "the server that has the slot is not the one that was looked at",
                detail="It writes another timeline: a standby was promoted just now.",
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._session.close()

    def fileno(self) -> int:
        """Return the descriptor that is readable when `read` may have something."""
        return self._copy.fileno()

    def read(self, decode: Callable[[bytes, int], _M]) -> Iterator[tuple[_M, int]]:
        """
        Yield each message that has arrived, with its size in bytes; never wait.

        A caller may stop iterating at any message and go on with the next call.

        :param decode: returns the message that starts at a byte.
        :raises TransientError: if the session is lost.
        """
        copy = self._copy
        get = copy.get
        while True:
            data = get()
            if data is None:
                copy.consume()
                data = get()
                if data is None:
                    return
            kind = data[0]
            if kind == _DATA:
                yield decode(data, _DATA_HEADER_BYTES), len(data)
            elif kind == _KEEPALIVE:
                wal_end, _, reply = _KEEPALIVE_BODY(data, 1)
                self.received = max(self.received, wal_end)
                self.wants_reply = self.wants_reply or bool(reply)

    def confirm(self, lsn: int) -> None:
        """
        Tell the server that everything before *lsn* is durable here; it may delete its log.

        Also a sign of life, which the server wants every ``wal_sender_timeout``.

        :raises TransientError: if the session is lost.
        """
        now = int((time.time() - _EPOCH_OFFSET_SECONDS) * 1_000_000)
        self._copy.put(_STATUS.pack(b"r", max(lsn, self.received), lsn, lsn, now, 0))
        self.wants_reply = False
