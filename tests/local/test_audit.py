from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from psycopg2.extensions import connection

from tenantferry.errors import PermanentError
from tenantferry.local.auditor import audit
from tenantferry.local.journal import Journal, Kind, Outcome, Write, read_journal

if TYPE_CHECKING:
    from tests.local.conftest import Application


@pytest.fixture
def notes(empty_shop: Application) -> Application:
    empty_shop.execute(
        "CREATE TABLE notes"
        " (region text, id bigint, body text, scan bytea, PRIMARY KEY (region, id));"
        "GRANT ALL ON notes TO shop_app;"
        r"INSERT INTO notes VALUES ('eu', 1, 'first', '\x01'), ('eu', 2, NULL, '\x02')"
    )
    return empty_shop


@pytest.fixture
def reader(notes: Application) -> Iterator[connection]:
    with closing(notes.connect()) as opened:
        yield opened


def _note(kind: Kind, number: int, body: str | None = None, *, scan: str = "") -> Write:
    values = {} if kind is Kind.DELETE else {"body": body}
    digests = {"scan": scan} if scan else {}
    return Write("public", "notes", kind, {"region": "eu", "id": str(number)}, values, digests)


def _journal(path: Path, *entries: tuple[Outcome, Write]) -> None:
    with Journal(path) as journal:
        for outcome, write in entries:
            journal.append(outcome, "test", [write])


_ACKNOWLEDGED, _UNKNOWN = Outcome.ACKNOWLEDGED, Outcome.UNKNOWN
_SHA256_OF_01 = "4bf5122f344554c53bde2ebb8cd2b7e3d1600ad631c385a5d7cce23c7785459a"


def test_audit_is_green_when_every_row_is_in_its_last_state(
    notes: Application, reader: connection
) -> None:
    _journal(
        notes.journal,
        (_ACKNOWLEDGED, _note(Kind.UPDATE, 1, "older")),
        (_ACKNOWLEDGED, _note(Kind.UPDATE, 1, "first", scan=_SHA256_OF_01)),
        (_ACKNOWLEDGED, _note(Kind.UPDATE, 2, None)),
        (_ACKNOWLEDGED, _note(Kind.INSERT, 3, "third")),
        (_ACKNOWLEDGED, _note(Kind.DELETE, 3)),
    )

    result = audit(reader, notes.journal)

    assert result.lost_writes == 0
    assert result.acknowledged_writes == 5
    assert result.rows == 3


@pytest.mark.parametrize(
    "statement",
    [
        pytest.param("DELETE FROM notes WHERE id = 1", id="row deleted"),
        pytest.param("UPDATE notes SET body = 'older' WHERE id = 1", id="value reverted"),
        pytest.param("UPDATE notes SET body = NULL WHERE id = 1", id="value gone"),
        pytest.param("UPDATE notes SET body = '' WHERE id = 2", id="empty text in place of null"),
        pytest.param("UPDATE notes SET scan = scan || scan WHERE id = 1", id="bytes changed"),
        pytest.param("INSERT INTO notes VALUES ('eu', 3, 'third')", id="deleted row is back"),
        pytest.param("UPDATE notes SET region = 'us' WHERE id = 1", id="key changed"),
    ],
)
def test_audit_names_the_row_when_a_write_is_lost(
    notes: Application, reader: connection, statement: str
) -> None:
    _journal(
        notes.journal,
        (_ACKNOWLEDGED, _note(Kind.UPDATE, 1, "older")),
        (_ACKNOWLEDGED, _note(Kind.UPDATE, 1, "first", scan=_SHA256_OF_01)),
        (_ACKNOWLEDGED, _note(Kind.UPDATE, 2, None)),
        (_ACKNOWLEDGED, _note(Kind.DELETE, 3)),
    )

    notes.execute(statement)

    result = audit(reader, notes.journal)
    assert result.lost_writes == 1
    assert result.differences[0].startswith("public.notes region=eu, id=")


def test_audit_fails_when_the_journal_knows_a_row_more(
    notes: Application, reader: connection
) -> None:
    _journal(notes.journal, (_ACKNOWLEDGED, _note(Kind.INSERT, 7, "seventh")))

    result = audit(reader, notes.journal)

    assert result.differences == ("public.notes region=eu, id=7: the row is gone",)


@pytest.mark.parametrize(
    ("outcome_unknown", "lost"),
    [
        pytest.param(_note(Kind.UPDATE, 1, "second"), 0, id="update not done"),
        pytest.param(_note(Kind.DELETE, 1), 0, id="delete not done"),
        pytest.param(_note(Kind.INSERT, 9, "ninth"), 0, id="insert not done"),
        pytest.param(_note(Kind.INSERT, 2, "other"), 1, id="insert done with another value"),
    ],
)
def test_audit_accepts_both_states_when_a_commit_got_no_answer(
    notes: Application, reader: connection, outcome_unknown: Write, lost: int
) -> None:
    _journal(
        notes.journal,
        (_ACKNOWLEDGED, _note(Kind.UPDATE, 1, "first")),
        (_UNKNOWN, outcome_unknown),
    )

    assert audit(reader, notes.journal).lost_writes == lost


def test_audit_accepts_the_later_state_when_a_commit_got_no_answer(
    notes: Application, reader: connection
) -> None:
    _journal(
        notes.journal,
        (_ACKNOWLEDGED, _note(Kind.UPDATE, 1, "zeroth")),
        (_UNKNOWN, _note(Kind.UPDATE, 1, "first")),
    )

    assert audit(reader, notes.journal).lost_writes == 0


def test_audit_forgets_the_unknown_when_a_later_write_is_acknowledged(
    notes: Application, reader: connection
) -> None:
    _journal(
        notes.journal,
        (_UNKNOWN, _note(Kind.UPDATE, 1, "first")),
        (_ACKNOWLEDGED, _note(Kind.UPDATE, 1, "second")),
    )

    assert audit(reader, notes.journal).lost_writes == 1


def test_audit_looks_at_more_rows_than_one_query_takes(
    notes: Application, reader: connection
) -> None:
    notes.execute("INSERT INTO notes SELECT 'eu', n, 'v' FROM generate_series(100, 1300) AS n")
    with Journal(notes.journal) as journal:
        for number in range(100, 1302):
            journal.append(_ACKNOWLEDGED, "test", [_note(Kind.INSERT, number, "v")])

    result = audit(reader, notes.journal)

    assert result.rows == 1202
    assert result.lost_writes == 1


def test_read_journal_leaves_out_a_last_line_without_its_end(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    _journal(path, (_ACKNOWLEDGED, _note(Kind.INSERT, 1, "v")))
    with path.open("ab") as file:
        file.write(b'{"at": 1, "outc')

    assert len(list(read_journal(path))) == 1


def test_read_journal_refuses_a_damaged_line(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'{"at": 1}\n')

    with pytest.raises(PermanentError, match="damaged"):
        list(read_journal(path))
