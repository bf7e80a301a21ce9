"""
The messages of the output plugin ``pgoutput``: bytes in, values out, no connection.

A column value is kept as the field that binary COPY wants: four bytes of length, then the payload.
What the source sends so reaches the target without being understood or copied again.

Source: PostgreSQL documentation, "Logical Replication Message Formats", protocol version 1.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import NamedTuple, TypeAlias

from tenantferry.errors import PermanentError


class Text(bytes):
    """A field whose type has no binary output: the payload is its text."""

    __slots__ = ()


# A field of binary COPY; None stands for an unchanged TOAST value, which is not sent.
Field: TypeAlias = bytes | None
NULL = b"\xff\xff\xff\xff"
UNCHANGED = None


class Begin(NamedTuple):
    """
    The start of a transaction; they arrive in commit order.

    :ivar final_lsn: ``commit_lsn``: where its commit record starts.
    :ivar commit_time: microseconds since 2000-01-01 UTC.
    """

    final_lsn: int
    commit_time: int
    xid: int


class Commit(NamedTuple):
    """The end of a transaction; *end_lsn* is where its commit record ends."""

    commit_lsn: int
    end_lsn: int
    commit_time: int


class Origin(NamedTuple):
    """The transaction came into the source by replication."""

    commit_lsn: int
    name: str


class RelationColumn(NamedTuple):
    """One column as the source sends it; *in_key* if it belongs to the replica identity."""

    in_key: bool
    name: str
    type_oid: int
    typmod: int


class Relation(NamedTuple):
    """The shape of a table, sent before its first change and again after any change of it."""

    oid: int
    schema: str
    name: str
    identity: str
    columns: tuple[RelationColumn, ...]


class Type(NamedTuple):
    """A type that is not built in."""

    oid: int
    schema: str
    name: str


class Insert(NamedTuple):
    """A new row."""

    relation: int
    new: list[Field]


class Update(NamedTuple):
    """
    A changed row.

    :ivar old: the old key (all other columns NULL) if the key changed, the whole old row under
        replica identity FULL, else ``None``.
    :ivar is_whole: whether *old* is the whole row.
    """

    relation: int
    old: list[Field] | None
    new: list[Field]
    is_whole: bool


class Delete(NamedTuple):
    """A deleted row: its key, or the whole row under replica identity FULL."""

    relation: int
    old: list[Field]


class Truncate(NamedTuple):
    """Emptied tables."""

    relations: tuple[int, ...]
    cascade: bool
    restart_identity: bool


class LogicalMessage(NamedTuple):
    """What ``pg_logical_emit_message`` wrote."""

    transactional: bool
    lsn: int
    prefix: str
    content: bytes


Message: TypeAlias = (
    Begin | Commit | Origin | Relation | Type | Insert | Update | Delete | Truncate | LogicalMessage
)

_INT16 = Struct("!H").unpack_from
_INT32 = Struct("!I").unpack_from
_BEGIN = Struct("!QqI").unpack_from
_COMMIT = Struct("!BQQq").unpack_from
_ORIGIN = Struct("!Q").unpack_from
_COLUMN = Struct("!Ii").unpack_from
_TRUNCATE = Struct("!IB").unpack_from
_MESSAGE = Struct("!BQ").unpack_from


class ProtocolError(PermanentError):
    """The source sent something that the protocol does not have."""


def decode(data: bytes, at: int = 0) -> Message:
    """
    Return the message that starts at byte *at*.

    :raises ProtocolError: if it is none of protocol version 1.
    """
    try:
        decoder = _DECODERS[data[at]]
    except KeyError:
        raise ProtocolError(f"pgoutput sent an unknown message {chr(data[at])!r}") from None
    return decoder(data, at + 1)


def is_row_change(data: bytes, at: int) -> bool:
    """Tell whether the message that starts at byte *at* is an `Insert`, `Update` or `Delete`."""
    return data[at] in _ROW_CHANGES


def has_new_row_only(data: bytes, at: int) -> bool:
    """Tell whether a row change brings a new row and no old one; it ends with that then."""
    return data[at + 5] == _NEW


def peek_relation(data: bytes, at: int) -> int:
    """Return the relation of a row change, and understand nothing else of it."""
    relation: int = _INT32(data, at + 1)[0]
    return relation


def peek_column(data: bytes, at: int, column: int) -> tuple[Field, ...]:
    """
    Return one column of the old and the new row of a row change, as far as it has them.

    :param column: position in the relation.
    """
    at += 6
    if data[at - 1] == _NEW or data[at - 6] == _DELETE:
        return (_peek(data, at, column),)
    (count,) = _INT16(data, at)
    new = _skip(data, at + 2, count) + 1
    return _peek(data, at, column), _peek(data, new, column)


def _begin(data: bytes, at: int) -> Begin:
    return Begin(*_BEGIN(data, at))


def _commit(data: bytes, at: int) -> Commit:
    _, commit_lsn, end_lsn, commit_time = _COMMIT(data, at)
    return Commit(commit_lsn, end_lsn, commit_time)


def _origin(data: bytes, at: int) -> Origin:
    return Origin(_ORIGIN(data, at)[0], _string(data, at + 8)[0])


def _relation(data: bytes, at: int) -> Relation:
    oid = _INT32(data, at)[0]
    schema, at = _string(data, at + 4)
    name, at = _string(data, at)
    identity = chr(data[at])
    count = _INT16(data, at + 1)[0]
    at += 3
    columns = []
    for _ in range(count):
        in_key = bool(data[at] & 1)
        column, at = _string(data, at + 1)
        columns.append(RelationColumn(in_key, column, *_COLUMN(data, at)))
        at += 8
    # The empty string is how the protocol spells pg_catalog.
    return Relation(oid, schema or "pg_catalog", name, identity, tuple(columns))


def _type(data: bytes, at: int) -> Type:
    schema, end = _string(data, at + 4)
    return Type(_INT32(data, at)[0], schema or "pg_catalog", _string(data, end)[0])


def _insert(data: bytes, at: int) -> Insert:
    return Insert(_INT32(data, at)[0], _tuple(data, at + 5)[0])


def _update(data: bytes, at: int) -> Update:
    relation = _INT32(data, at)[0]
    at += 4
    old = None
    kind = data[at]
    if kind != _NEW:
        old, at = _tuple(data, at + 1)
    return Update(relation, old, _tuple(data, at + 1)[0], kind == _WHOLE)


def _delete(data: bytes, at: int) -> Delete:
    return Delete(_INT32(data, at)[0], _tuple(data, at + 5)[0])


def _truncate(data: bytes, at: int) -> Truncate:
    count, options = _TRUNCATE(data, at)
    relations = Struct(f"!{count}I").unpack_from(data, at + 5)
    return Truncate(relations, bool(options & 1), bool(options & 2))


def _logical_message(data: bytes, at: int) -> LogicalMessage:
    flags, lsn = _MESSAGE(data, at)
    prefix, at = _string(data, at + 9)
    size = _INT32(data, at)[0]
    return LogicalMessage(bool(flags & 1), lsn, prefix, data[at + 4 : at + 4 + size])


def _string(data: bytes, at: int) -> tuple[str, int]:
    end = data.index(0, at)
    return data[at:end].decode("utf-8"), end + 1


_WITH_BYTES = b"bt"
_ROW_CHANGES = b"IUD"
_DELETE = _ROW_CHANGES[2]
_NEW, _WHOLE, _BINARY, _NULL, _TEXT, _UNCHANGED = b"NObntu"


def _tuple(data: bytes, at: int) -> tuple[list[Field], int]:
    fields: list[Field] = []
    append = fields.append
    count = _INT16(data, at)[0]
    at += 2
    for _ in range(count):
        kind = data[at]
        at += 1
        if kind == _BINARY:
            end = at + 4 + _INT32(data, at)[0]
            append(data[at:end])
            at = end
        elif kind == _NULL:
            append(NULL)
        elif kind == _UNCHANGED:
            append(UNCHANGED)
        elif kind == _TEXT:
            end = at + 4 + _INT32(data, at)[0]
            append(Text(data[at:end]))
            at = end
        else:
            raise ProtocolError(f"pgoutput sent a column of unknown kind {chr(kind)!r}")
    return fields, at


def _peek(data: bytes, at: int, column: int) -> Field:
    at = _skip(data, at + 2, column)
    kind = data[at]
    if kind == _NULL:
        return NULL
    if kind == _UNCHANGED:
        return UNCHANGED
    return data[at + 1 : at + 5 + _INT32(data, at + 1)[0]]


def _skip(data: bytes, at: int, count: int) -> int:
    """Return where the field after so many others begins."""
    for _ in range(count):
        kind = data[at]
        at += 5 + _INT32(data, at + 1)[0] if kind in _WITH_BYTES else 1
    return at


_DECODERS: dict[int, Callable[[bytes, int], Message]] = {
    ord("B"): _begin,
    ord("C"): _commit,
    ord("O"): _origin,
    ord("R"): _relation,
    ord("Y"): _type,
    ord("I"): _insert,
    ord("U"): _update,
    ord("D"): _delete,
    ord("T"): _truncate,
    ord("M"): _logical_message,
}
