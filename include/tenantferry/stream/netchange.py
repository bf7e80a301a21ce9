"""
What a run of changes comes to, row by row: at most one change per row, whatever happened between.

A row is followed by a handle, not by its key, for keys move. Invariant: at every moment ``live``
holds each touched row that exists, under the key it has now, and ``gone`` the key that each touched
row had before the run if it does not exist any more. A replica identity is never deferrable, so two
rows never share a key, not even within a transaction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import TypeAlias

from tenantferry.errors import CopyAgainError
from tenantferry.stream.pgoutput import UNCHANGED, Field, Text

# The fields of the key columns; one field stands for itself.
Key: TypeAlias = Field | tuple[Field, ...]


class BrokenStreamError(CopyAgainError):
    """The changes contradict each other or the target: the one invariant does not hold."""


class Row:
    """
    A touched row.

    :ivar original: the key that it had before the run; ``None`` if it did not exist.
    :ivar fields: its image now; UNCHANGED where only the target knows the value.
    """

    __slots__ = ("fields", "original")

    def __init__(self, original: Key | None, fields: list[Field]) -> None:
        self.original = original
        self.fields = fields


class KeyedChanges:
    """
    The net changes of a table whose rows have a key.

    :param key: positions of the key columns.
    """

    def __init__(self, key: Sequence[int]) -> None:
        self._key = frozenset(key)
        self._key_of = itemgetter(*key)
        self.live: dict[Key, Row] = {}
        self.gone: dict[Key, None] = {}
        self.text_columns: set[int] = set()

    def insert(self, new: list[Field]) -> None:
        """Follow a new row."""
        key = self._key_of(new)
        if key in self.live:
            raise BrokenStreamError(f"a row was inserted twice under the key {key!r}")
        # Under the key of a row that went within this run it takes that row's place.
        original = None
        if key in self.gone:
            del self.gone[key]
            original = key
        self._note_text(new)
        self.live[key] = Row(original, new)

    def update(self, old: list[Field] | None, new: list[Field], *, is_whole: bool = False) -> None:
        """
        Follow a changed row, also to another key.

        :param old: the old key, or with *is_whole* the whole old row; ``None`` if the key stays.
        """
        if old is not None and UNCHANGED in new:
            # Of a key too large for its row the new value, where it is the old one, is not sent.
            new = [old[i] if f is UNCHANGED and i in self._key else f for i, f in enumerate(new)]
        key = self._key_of(new)
        old_key = key if old is None else self._key_of(old)
        row = self.live.pop(old_key, None)
        if key in self.live:
            raise BrokenStreamError(f"a row was updated to the key {key!r} of another row")
        if UNCHANGED in new:
            # The last image in this run; without one what the source knows, and only under
            # replica identity FULL it tells. Else the value stays "keep".
            known = row.fields if row is not None else old if is_whole else None
            if known is not None:
                new = [k if f is UNCHANGED else f for f, k in zip(new, known, strict=True)]
        self._note_text(new)
        if row is None:
            self.live[key] = Row(old_key, new)
        else:
            row.fields = new
            self.live[key] = row

    def delete(self, old: list[Field]) -> None:
        """Follow a row to its end."""
        key = self._key_of(old)
        row = self.live.pop(key, None)
        if row is None:
            self.gone[key] = None
        elif row.original is not None:
            self.gone[row.original] = None

    def _note_text(self, fields: list[Field]) -> None:
        if Text in map(type, fields):
            self.text_columns.update(i for i, field in enumerate(fields) if type(field) is Text)

    def keys(self) -> set[Key]:
        """Return every key that a touched row had before the run or has now."""
        originals = {row.original for row in self.live.values() if row.original is not None}
        return originals.union(self.live, self.gone)

    def deletes(self) -> Iterator[Key]:
        """Yield the original keys of the rows that are gone."""
        return iter(self.gone)

    def updates(self) -> Iterator[Row]:
        """Yield the rows that were there before and still are."""
        return (row for row in self.live.values() if row.original is not None)

    def inserts(self) -> Iterator[list[Field]]:
        """Yield the images of the rows that are new."""
        return (row.fields for row in self.live.values() if row.original is None)

    def images(self) -> Iterator[Sequence[Field]]:
        """Yield the images of all rows that are there now."""
        return (row.fields for row in self.live.values())


class KeylessChanges:
    """
    The net changes of a table without a key: how many rows of an image come, how many go.

    Such a table has replica identity FULL, or it only ever grows.
    """

    def __init__(self) -> None:
        self.counts: dict[tuple[Field, ...], int] = {}
        self.text_columns: set[int] = set()

    def insert(self, new: list[Field]) -> None:
        """Count one row more."""
        self._add(tuple(new), 1)

    def update(self, old: list[Field] | None, new: list[Field], *, is_whole: bool = False) -> None:
        """Count one row of the old image less, one of the new image more."""
        if old is None or not is_whole:
            raise BrokenStreamError("an update of a table without a key came without its old row")
        self._add(tuple(old), -1)
        # The old row is complete under FULL, TOAST values included.
        self._add(tuple(old[i] if f is UNCHANGED else f for i, f in enumerate(new)), 1)

    def delete(self, old: list[Field]) -> None:
        """Count one row less."""
        self._add(tuple(old), -1)

    def images(self) -> Iterator[Sequence[Field]]:
        """Yield the images of all rows, those that go included."""
        return iter(self.counts)

    def _add(self, image: tuple[Field, ...], count: int) -> None:
        if Text in map(type, image):
            self.text_columns.update(i for i, field in enumerate(image) if type(field) is Text)
        total = self.counts.get(image, 0) + count
        if total:
            self.counts[image] = total
        else:
            del self.counts[image]


Changes: TypeAlias = KeyedChanges | KeylessChanges
