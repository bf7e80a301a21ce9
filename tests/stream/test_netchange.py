"""The net change of every sequence of changes, compared with applying them one by one."""

from __future__ import annotations

import random

import pytest

from tenantferry.stream.netchange import BrokenStreamError, KeyedChanges, KeylessChanges
from tenantferry.stream.pgoutput import UNCHANGED, Field

Rows = dict[bytes, list[Field]]


def apply_net(changes: KeyedChanges, rows: Rows) -> Rows:
    """Do what the target does: delete, update by original key, insert."""
    result = dict(rows)
    for key in changes.deletes():
        del result[key]  # type: ignore[arg-type]
    updates = [(row, result.pop(row.original)) for row in changes.updates()]  # type: ignore[arg-type]
    for row, old in updates:
        image = [o if f is UNCHANGED else f for f, o in zip(row.fields, old, strict=True)]
        assert image[0] not in result
        result[image[0]] = image  # type: ignore[index]
    for image in changes.inserts():
        assert image[0] not in result
        result[image[0]] = image  # type: ignore[index]
    return result


@pytest.mark.parametrize("seed", range(20))
def test_net_change_equals_the_changes_one_by_one(seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(50):
        rows: Rows = {b"%d" % i: [b"%d" % i, b"a%d" % i, b"t%d" % i] for i in range(4)}
        before = dict(rows)
        changes = KeyedChanges([0])
        for step in range(chance.randrange(12)):
            key = b"%d" % chance.randrange(6)
            if key not in rows:
                rows[key] = [key, b"i%d" % step, b"T%d" % step]
                changes.insert(rows[key])
            elif chance.random() < 0.4:
                del rows[key]
                changes.delete([key, b"", b""])
            else:
                free = b"%d" % chance.randrange(6)
                new_key = key if free in rows else free
                sent: list[Field] = [new_key, b"u%d" % step, UNCHANGED]
                old = rows.pop(key)
                rows[new_key] = [new_key, sent[1], old[2]]
                changes.update(None if new_key == key else [key, b"", b""], sent)

        assert apply_net(changes, before) == rows


def test_a_row_inserted_and_deleted_in_the_run_is_no_change() -> None:
    changes = KeyedChanges([0])

    changes.insert([b"1", b"a"])
    changes.update([b"1", b""], [b"2", b"a"])
    changes.delete([b"2", b""])

    assert not changes.live
    assert not changes.gone


def test_an_unchanged_value_comes_from_the_old_row_only_if_that_is_whole() -> None:
    by_key, whole = KeyedChanges([0]), KeyedChanges([0])

    by_key.update([b"1", b""], [b"2", UNCHANGED])
    whole.update([b"1", b"long"], [b"2", UNCHANGED], is_whole=True)

    assert [row.fields for row in by_key.updates()] == [[b"2", UNCHANGED]]
    assert [row.fields for row in whole.updates()] == [[b"2", b"long"]]


def test_a_second_row_under_a_key_is_refused() -> None:
    changes = KeyedChanges([0])
    changes.insert([b"1", b"a"])

    with pytest.raises(BrokenStreamError):
        changes.insert([b"1", b"b"])


def test_rows_without_a_key_are_counted_by_image() -> None:
    changes = KeylessChanges()

    changes.insert([b"a", b"long"])
    changes.update([b"b", b"long"], [b"c", UNCHANGED], is_whole=True)
    changes.delete([b"a", b"long"])
    changes.delete([b"d", b"x"])
    changes.delete([b"d", b"x"])

    assert changes.counts == {(b"b", b"long"): -1, (b"c", b"long"): 1, (b"d", b"x"): -2}
