"""
Each order of events that a row can live through while its tenant is copied in rounds.

There are 30 rows with the keys 1 to 30 in three chunks. A round copies one chunk, so after the
first round the keys up to 10 are copied, after the second those up to 20. Every round compares the
copied chunks with its snapshot (`Rounds`), `finish` the whole with the source.
"""

from __future__ import annotations

import pytest

from round_stage import Rounds, fetch, run
from tenantferry.stream.running import run_stream

# Larger than a page allows beside others: kept out of line, and not sent while it is not changed.
TOAST = "repeat(md5(id::text), 200)"


@pytest.fixture
def items(rounds: Rounds) -> Rounds:
    """A table of three chunks, of which none is copied."""
    rounds.pair(
        "items",
        "id bigint, name text, big text",
        source="ALTER TABLE items ALTER big SET STORAGE EXTERNAL",
    )
    rounds.write(
        "INSERT INTO items SELECT id, 'name ' || id, " + TOAST + " FROM generate_series(1, 30) id"
    )
    return rounds


def test_copy_update_catch_up(items: Rounds) -> None:
    items.copy_round()

    items.write("UPDATE items SET name = 'new' WHERE id = 5")
    items.copy_round()

    assert items.copied() == {"items": {1, 2}}
    items.finish()


def test_copy_update_twice_catch_up(items: Rounds) -> None:
    items.copy_round()

    items.write("UPDATE items SET name = 'new' WHERE id = 5")
    items.copy_round(before_snapshot=["UPDATE items SET name = 'newer' WHERE id = 5"])

    items.finish()


def test_update_copy_catch_up(items: Rounds) -> None:
    """The snapshot shows the change already; the stream must not bring it again."""
    items.copy_round()

    items.write("UPDATE items SET name = 'new' WHERE id = 15")
    items.copy_round()

    items.finish()


def test_copy_delete_catch_up(items: Rounds) -> None:
    items.copy_round()

    items.write("DELETE FROM items WHERE id = 5")

    items.finish()


def test_delete_copy_catch_up(items: Rounds) -> None:
    items.copy_round()

    items.write("DELETE FROM items WHERE id = 15")

    items.finish()


def test_copy_insert_catch_up(items: Rounds) -> None:
    items.copy_round()

    items.write("INSERT INTO items VALUES (-1, 'in the copied range', 'x')")

    items.finish()


def test_insert_copy_catch_up(items: Rounds) -> None:
    """A COPY would meet a row that the catch-up had inserted."""
    items.copy_round()

    items.write("INSERT INTO items VALUES (100, 'in no copied range', 'x')")

    items.finish()


def test_snapshot_change_copy_catch_up(items: Rounds) -> None:
    """What is committed after the snapshot is not copied, whenever its chunk is."""
    changes = [
        "UPDATE items SET name = 'late' WHERE id IN (5, 15, 25)",
        "DELETE FROM items WHERE id IN (6, 16, 26)",
        "INSERT INTO items VALUES (0, 'late', 'x'), (100, 'late', 'x')",
    ]
    items.copy_round(while_copying=changes)

    items.copy_round(while_copying=[change.replace("(", "(1 + ") for change in changes[:2]])

    items.finish()


def test_catch_up_change_snapshot_catch_up(items: Rounds) -> None:
    """What is committed between the first catch-up and the snapshot is for the second one."""
    items.copy_round()

    items.copy_round(
        before_snapshot=[
            "UPDATE items SET name = 'late' WHERE id IN (5, 15, 25)",
            "DELETE FROM items WHERE id IN (6, 16, 26)",
        ]
    )

    items.finish()


def test_update_out_of_copied_range_catch_up(items: Rounds) -> None:
    items.copy_round()

    items.write("UPDATE items SET id = 105 WHERE id = 5")

    items.finish()


def test_update_into_copied_range_catch_up(items: Rounds) -> None:
    """Every value of the row is sent, so it can be inserted."""
    items.copy_round()

    items.write("UPDATE items SET id = -25, big = 'short' WHERE id = 25")
    items.copy_round()

    assert items.copied() == {"items": {1, 2}}
    items.finish()


def test_update_into_copied_range_without_all_values_catch_up(items: Rounds) -> None:
    """A value that is not sent is known to nobody: the chunk is copied again."""
    items.copy_round()

    items.write("UPDATE items SET id = -25 WHERE id = 25")
    items.catch_up()

    assert items.copied() == {"items": set()}
    items.finish()


def test_update_out_of_copied_range_then_back_catch_up(items: Rounds) -> None:
    """What comes together is netted: the copied row has changed, and its large value is there."""
    items.copy_round()

    items.write(
        "BEGIN; UPDATE items SET id = 105, name = 'new' WHERE id = 5;"
        " UPDATE items SET id = 5 WHERE id = 105; COMMIT"
    )
    items.copy_round()

    assert items.copied() == {"items": {1, 2}}
    items.finish()


def test_update_out_of_copied_range_catch_up_then_back_catch_up(items: Rounds) -> None:
    """Between the catch-ups the row is not in the target: its large value is lost there."""
    items.copy_round()

    items.write("UPDATE items SET id = 105 WHERE id = 5")
    items.catch_up()
    items.write("UPDATE items SET id = 5 WHERE id = 105")
    items.catch_up()

    assert items.copied() == {"items": set()}
    items.finish()


def test_update_into_copied_range_then_out_catch_up(items: Rounds) -> None:
    items.copy_round()

    items.write(
        "BEGIN; UPDATE items SET id = -25 WHERE id = 25; UPDATE items SET id = 25 WHERE id = -25;"
        " COMMIT"
    )
    items.copy_round()

    assert items.copied() == {"items": {1, 2}}
    items.finish()


def test_row_that_moves_twice_across_catch_ups(items: Rounds) -> None:
    """From chunk 1 to chunk 3, which is not copied, and on to chunk 2, which is."""
    items.copy_round()
    items.copy_round()

    items.write("UPDATE items SET id = 1000, big = 'known' WHERE id = 5")
    items.catch_up()
    items.write("DELETE FROM items WHERE id = 15", "UPDATE items SET id = 15 WHERE id = 1000")
    items.catch_up()

    assert items.copied() == {"items": {1, 2}}
    items.finish()


def test_update_within_copied_ranges_catch_up(items: Rounds) -> None:
    """A large value that is not sent is kept from the copied row, also under a new key."""
    items.copy_round()
    items.copy_round()

    items.write("UPDATE items SET id = 0 WHERE id = 15")
    items.catch_up()

    assert items.copied() == {"items": {1, 2}}
    items.finish()


def test_reopened_chunk_reopens_the_next_one(items: Rounds) -> None:
    """Chunk 1 is given up, so a row that came from there is unknown to chunk 2, too."""
    items.copy_round()
    items.copy_round()

    items.write(
        "BEGIN; DELETE FROM items WHERE id = 15; UPDATE items SET id = 15 WHERE id = 5;"
        " UPDATE items SET id = 5 WHERE id = 25; COMMIT"
    )
    items.catch_up()

    assert items.copied() == {"items": set()}
    items.finish()


def test_reopened_chunk_forgets_its_other_changes(items: Rounds) -> None:
    items.copy_round()
    items.copy_round()

    items.write(
        "BEGIN; UPDATE items SET name = 'new' WHERE id = 3; INSERT INTO items VALUES (0, 'x', 'x');"
        " DELETE FROM items WHERE id = 4; UPDATE items SET id = -25 WHERE id = 25;"
        " UPDATE items SET name = 'new' WHERE id = 12; COMMIT"
    )
    items.catch_up()

    assert items.copied() == {"items": {2}}
    items.finish()


def test_reopened_chunk_leaves_other_tenants_alone(items: Rounds) -> None:
    other = "22222222-2222-2222-2222-222222222222"
    run(items.target, "INSERT INTO public.items VALUES (5, 'theirs', 'x', %s)", other)
    items.copy_round()

    items.write("UPDATE items SET id = -25 WHERE id = 25")
    items.finish()

    query = f"SELECT id, name FROM public.items WHERE tenant_id = '{other}'"
    assert fetch(items.target, query) == [(5, "theirs")]


def test_delete_insert_of_the_same_key_catch_up(items: Rounds) -> None:
    items.copy_round()

    items.write("DELETE FROM items WHERE id IN (5, 15)")
    items.write("INSERT INTO items VALUES (5, 'again', 'x'), (15, 'again', 'x')")

    items.finish()


def test_key_is_taken_over_by_a_row_from_elsewhere_catch_up(items: Rounds) -> None:
    """Key 5 goes out of the copied range, and a row from there takes its place."""
    items.copy_round()

    items.write(
        "BEGIN; UPDATE items SET id = 1000 WHERE id = 5;"
        " UPDATE items SET id = 5, big = 'known' WHERE id = 25; COMMIT"
    )
    items.copy_round()

    assert items.copied() == {"items": {1, 2}}
    items.finish()


def test_rows_swap_keys_across_the_edge_catch_up(items: Rounds) -> None:
    items.copy_round()

    items.write(
        "BEGIN; UPDATE items SET id = 1000, big = 'a' WHERE id = 5;"
        " UPDATE items SET id = 5, big = 'b' WHERE id = 25;"
        " UPDATE items SET id = 25 WHERE id = 1000; COMMIT"
    )
    items.copy_round()

    assert items.copied() == {"items": {1, 2}}
    items.finish()


def test_rows_swap_keys_within_the_copied_range_catch_up(items: Rounds) -> None:
    items.copy_round()

    items.write(
        "BEGIN; UPDATE items SET id = 1000 WHERE id = 5; UPDATE items SET id = 5 WHERE id = 6;"
        " UPDATE items SET id = 6 WHERE id = 1000; COMMIT"
    )
    items.copy_round()

    assert items.copied() == {"items": {1, 2}}
    items.finish()


def test_large_transaction_catch_up(items: Rounds, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is applied in many steps of one transaction; in the middle of it a chunk is given up."""
    defaults = {**(run_stream.__kwdefaults__ or {}), "batch_bytes": 3_000}
    monkeypatch.setattr(run_stream, "__kwdefaults__", defaults)
    items.copy_round()
    items.copy_round()

    items.write(
        "BEGIN; UPDATE items SET name = 'one';"
        " INSERT INTO items SELECT -id, 'two', 'x' FROM generate_series(1, 30) id;"
        " UPDATE items SET id = -1000 WHERE id = 25; UPDATE items SET name = 'three';"
        " UPDATE items SET id = 5000 WHERE id = 12; COMMIT"
    )
    items.catch_up()

    assert items.copied() == {"items": {2}}
    items.finish()


@pytest.fixture
def members(rounds: Rounds) -> Rounds:
    """A table of three chunks with a unique column."""
    unique = "CREATE UNIQUE INDEX members_email ON public.members ({}email)"
    rounds.pair(
        "members",
        "id bigint, email text",
        source=unique.format(""),
        target=unique.format("tenant_id, "),
    )
    rounds.write("INSERT INTO members SELECT id, 'm' || id FROM generate_series(1, 30) id")
    return rounds


def _swap(first: int, second: int) -> str:
    return (
        f"BEGIN; UPDATE members SET email = 'free' WHERE id = {first};"
        f" UPDATE members SET email = 'm{first}' WHERE id = {second};"
        f" UPDATE members SET email = 'm{second}' WHERE id = {first}; COMMIT"
    )


def test_copied_rows_swap_unique_values_catch_up(members: Rounds) -> None:
    members.copy_round()

    members.write(_swap(4, 5))

    members.finish()


def test_copied_and_uncopied_row_swap_unique_values_catch_up(members: Rounds) -> None:
    members.copy_round()

    members.write(_swap(5, 25))

    members.finish()


def test_unique_value_passes_between_copied_and_uncopied_rows_catch_up(members: Rounds) -> None:
    """From a deleted row of one chunk to a row of another one, in both directions."""
    members.copy_round()

    members.write(
        "BEGIN; DELETE FROM members WHERE id IN (5, 25);"
        " UPDATE members SET email = 'm5' WHERE id = 15;"
        " UPDATE members SET email = 'm25' WHERE id = 6; COMMIT"
    )

    members.finish()


def test_unique_value_moves_with_its_row_across_the_edge_catch_up(members: Rounds) -> None:
    members.copy_round()

    members.write(
        "BEGIN; UPDATE members SET id = 1000 WHERE id = 5;"
        " INSERT INTO members VALUES (5, 'new'); UPDATE members SET id = -1 WHERE id = 25;"
        " UPDATE members SET email = 'm15x' WHERE id = 15;"
        " UPDATE members SET email = 'm15' WHERE id = -1; COMMIT"
    )

    members.finish()
