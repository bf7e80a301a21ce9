"""Each message as PostgreSQL 15 sent it."""

from __future__ import annotations

import pytest

from tenantferry.stream.pgoutput import (
    NULL,
    UNCHANGED,
    Begin,
    Commit,
    Delete,
    Insert,
    LogicalMessage,
    Message,
    Origin,
    ProtocolError,
    Relation,
    RelationColumn,
    Text,
    Truncate,
    Type,
    Update,
    decode,
    has_new_row_only,
    is_row_change,
    peek_column,
    peek_relation,
)

ONE, TWO, SEVEN = (b"\x00\x00\x00\x04" + n.to_bytes(4, "big") for n in (1, 2, 7))
ACL = Text(b"\x00\x00\x00\x15app_owner=r/app_owner")
OK = b"\x00\x00\x00\x02ok"

CAPTURED: dict[str, tuple[str, Message]] = {
    "begin": (
        "420000000005ff0018000303c0bc1b7cfa000003af",
        Begin(0x5FF0018, 848_551_254_654_202, 943),
    ),
    "commit": (
        "43000000000005ff00180000000005ff0048000303c0bc1b7cfa",
        Commit(0x5FF0018, 0x5FF0048, 848_551_254_654_202),
    ),
    "origin": ("4f0000000005ff0018746865726500", Origin(0x5FF0018, "there")),
    "type": ("59000040eb7075626c6963006d6f6f6400", Type(16619, "public", "mood")),
    "relation": (
        "52000040e17075626c696300646f6373006400050169640000000017ffffffff006e616d650000000019"
        "ffffffff0061636c0000000409ffffffff00626f64790000000019ffffffff006d00000040ebffffffff",
        Relation(
            16609,
            "public",
            "docs",
            "d",
            (
                RelationColumn(True, "id", 23, -1),
                RelationColumn(False, "name", 25, -1),
                RelationColumn(False, "acl", 1033, -1),
                RelationColumn(False, "body", 25, -1),
                RelationColumn(False, "m", 16619, -1),
            ),
        ),
    ),
    "insert": (
        "49000040e14e00056200000004000000076200000001626e6e6e",
        Insert(16609, [SEVEN, b"\x00\x00\x00\x01b", NULL, NULL, NULL]),
    ),
    "update with unchanged toast and a text value": (
        "55000040e14e00056200000004000000016e74000000156170705f6f776e65723d722f6170705f6f776e6572"
        "7562000000026f6b",
        Update(16609, None, [ONE, NULL, ACL, UNCHANGED, OK], False),
    ),
    "update of the key": (
        "55000040e14b00056200000004000000016e6e6e6e4e00056200000004000000026e74000000156170705f6f"
        "776e65723d722f6170705f6f776e65727562000000026f6b",
        Update(16609, [ONE, NULL, NULL, NULL, NULL], [TWO, NULL, ACL, UNCHANGED, OK], False),
    ),
    "delete of a whole row": (
        "44000040e14f00056200000004000000026e6e62000000017862000000026f6b",
        Delete(16609, [TWO, NULL, NULL, b"\x00\x00\x00\x01x", OK]),
    ),
    "delete by key": (
        "44000040e14b00056200000004000000076e6e6e6e",
        Delete(16609, [SEVEN, NULL, NULL, NULL, NULL]),
    ),
    "truncate": ("540000000101000040e1", Truncate((16609,), True, False)),
    "logical message": (
        "4d010000000005ff2f5874656e616e746665727279000000000661636d652031",
        LogicalMessage(True, 0x5FF2F58, "tenantferry", b"acme 1"),
    ),
}


@pytest.mark.parametrize("name", CAPTURED)
def test_decode_reads_what_a_server_sent(name: str) -> None:
    data, expected = CAPTURED[name]

    message = decode(bytes.fromhex(data))

    assert message == expected
    assert type(message) is type(expected)


def test_decode_starts_at_an_offset() -> None:
    data = b"header" + bytes.fromhex(CAPTURED["begin"][0])

    assert decode(data, 6) == CAPTURED["begin"][1]


def test_decode_marks_a_whole_old_row() -> None:
    old = bytes.fromhex(CAPTURED["delete of a whole row"][0])[5:]
    new = bytes.fromhex(CAPTURED["insert"][0])[5:]

    message = decode(b"U" + (16609).to_bytes(4, "big") + old + new)

    assert isinstance(message, Update)
    assert message.is_whole
    assert message.old == [TWO, NULL, NULL, b"\x00\x00\x00\x01x", OK]


ROW_CHANGES = [
    "insert",
    "update with unchanged toast and a text value",
    "update of the key",
    "delete of a whole row",
    "delete by key",
]


@pytest.mark.parametrize("name", ROW_CHANGES)
@pytest.mark.parametrize("column", range(5))
def test_peek_column_reads_one_column_of_each_row(name: str, column: int) -> None:
    data, message = CAPTURED[name]
    parts = (getattr(message, "old", None), getattr(message, "new", None))

    found = peek_column(b"header" + bytes.fromhex(data), 6, column)

    assert found == tuple(row[column] for row in parts if row is not None)
    assert peek_relation(b"header" + bytes.fromhex(data), 6) == 16609
    assert has_new_row_only(b"header" + bytes.fromhex(data), 6) == (parts[0] is None)


@pytest.mark.parametrize("name", CAPTURED)
def test_is_row_change_tells_what_can_be_peeked_at(name: str) -> None:
    assert is_row_change(bytes.fromhex(CAPTURED[name][0]), 0) == (name in ROW_CHANGES)


@pytest.mark.parametrize("data", [b"S\0", b"I\0\0\0\1N\0\1x"], ids=["message", "column"])
def test_decode_refuses_what_it_does_not_know(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(data)
