"""Positions in the write-ahead log: an ``int`` inside the engine, text at the edges."""

from __future__ import annotations

import re

_PG_LSN = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})")


def parse_lsn(text: str) -> int:
    """
    Convert a ``pg_lsn`` to a byte position in the write-ahead log.

    :param text: two hexadecimal numbers of up to 32 bits, e.g. ``"16/B374D848"``.
    :return: bytes from the start of the log, 0 to 2**64 - 1.
    :raises ValueError: if *text* is not a ``pg_lsn``.

    Source: PostgreSQL documentation, section "pg_lsn Type".

    >>> parse_lsn("16/B374D848")
    97500059720
    """
    match = _PG_LSN.fullmatch(text)
    if match is None:
        raise ValueError(f'invalid pg_lsn "{text}"')
    return (int(match[1], 16) << 32) | int(match[2], 16)


def format_lsn(lsn: int) -> str:
    """
    Convert a byte position to a ``pg_lsn``.

    :param lsn: bytes from the start of the log, 0 to 2**64 - 1.
    :raises ValueError: if *lsn* is out of that range.

    >>> format_lsn(97500059720)
    '16/B374D848'
    """
    if not 0 <= lsn < 1 << 64:
        raise ValueError(f"lsn out of range: {lsn}")
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"
