"""Apply what was committed before a transaction that cannot be applied."""

from __future__ import annotations

import select
import threading

from tenantferry.stream.applier import Applier
from tenantferry.stream.reading import Reader
from tenantferry.stream.walsender import Walsender

_LONGEST_WAIT_SECONDS = 0.25


def apply_before(
    lsn: int,
    walsender: Walsender,
    reader: Reader,
    applier: Applier,
    *,
    batch_bytes: int,
    stop: threading.Event,
) -> None:
    """
    Apply every transaction with ``commit_lsn < lsn``, or end earlier where *stop* is set.

    :param lsn: of the commit of a transaction that the source has.
    :raises TenantferryError: if it could not be done; what is not committed is undone.
    """
    reader.limit = lsn
    while not (reader.has_reached_limit or stop.is_set()):
        if not reader.has_more:
            select.select([walsender], [], [], _LONGEST_WAIT_SECONDS)
        reader.read(byte_limit=batch_bytes, until_commit=False)
        if not reader.in_transaction or reader.batch.size_bytes >= batch_bytes:
            _apply(reader, applier)
        walsender.confirm(applier.position)


def _apply(reader: Reader, applier: Applier) -> None:
    if not reader.batch.is_empty:
        applier.apply(reader.take_batch())
