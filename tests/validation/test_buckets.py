"""Differing rows are found without reading the others of their chunk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from psycopg2.extensions import connection

from tenantferry.control.validations import MismatchKind
from tenantferry.validation import rows
from tenantferry.validation.rows import HashedRow

COLUMNS = {
    "integer": "id int PRIMARY KEY",
    "composite": "id int, part text DEFAULT 'ö', PRIMARY KEY (part, id)",
    "keyless": "id int",
}
CHANGES = (
    "UPDATE public.items SET name = 'changed' WHERE id = 7",
    "DELETE FROM public.items WHERE id = 8",
    "UPDATE public.items SET id = 900 WHERE id = 9",
)


def run(session: connection, statement: str) -> None:
    with session.cursor() as cursor:
        cursor.execute(statement)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[HashedRow]:
    """The rows that were compared one by one."""
    seen: list[HashedRow] = []
    original = rows.merge_rows

    def note(side: Iterable[HashedRow]) -> Iterator[HashedRow]:
        for row in side:
            seen.append(row)
            yield row

    monkeypatch.setattr(rows, "merge_rows", lambda *sides: original(*map(note, sides)))
    return seen


@pytest.mark.parametrize("key", COLUMNS)
@pytest.mark.parametrize("bucket_rows", [1, 10_000], ids=["many buckets", "one bucket"])
def test_find_differences_names_the_rows_whatever_the_buckets_are(
    copied: Any, monkeypatch: pytest.MonkeyPatch, key: str, bucket_rows: int
) -> None:
    both = copied(
        f"CREATE TABLE items ({COLUMNS[key]}, name text)",
        "ALTER TABLE items REPLICA IDENTITY FULL",
        "INSERT INTO items (id, name) SELECT n, 'n' || n FROM generate_series(1, 90) n",
    )
    for change in CHANGES:
        run(both.target, change)
    monkeypatch.setattr(rows, "BUCKET_ROWS", bucket_rows)

    found, mismatches = both.compare()

    # Without a key a changed row is one that is missing and one that is too many.
    kinds = sorted(difference.kind for difference in found)
    wanted = {MismatchKind.MISSING: 2, MismatchKind.EXTRA: 1, MismatchKind.DIFFERENT: 1}
    if key == "keyless":
        wanted = {MismatchKind.MISSING: 3, MismatchKind.EXTRA: 2}
    assert kinds == sorted(kind for kind, count in wanted.items() for _ in range(count))
    assert mismatches == len(kinds)


def test_find_differences_reads_hardly_more_than_the_rows_that_differ(
    copied: Any, monkeypatch: pytest.MonkeyPatch, read: list[HashedRow]
) -> None:
    both = copied(
        "CREATE TABLE items (id int, name text)",
        "ALTER TABLE items REPLICA IDENTITY FULL",
        "INSERT INTO items SELECT n, 'n' || n FROM generate_series(1, 5000) n",
    )
    run(both.target, CHANGES[0])
    monkeypatch.setattr(rows, "BUCKET_ROWS", 20)

    _, mismatches = both.compare()

    assert mismatches == 2
    # Two buckets of each side, of about twenty rows.
    assert 2 <= len(read) < 200
