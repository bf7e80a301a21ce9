"""A partitioned table of the source becomes one ordinary table of the target, exactly."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import pytest

from tenantferry.backfill.copying import read_heap_files
from tenantferry.connections import open_connection
from tenantferry.errors import PermanentError, TenantferryError
from tenantferry.moves.cutover import cutover
from tenantferry.moves.validate import MismatchError
from tenantferry.schema.catalog import read_tables
from tenantferry.stream.drift import DriftError

LAYOUTS = {
    "range": """
        CREATE TABLE events (id bigint, day integer, note text, PRIMARY KEY (id, day))
            PARTITION BY RANGE (day);
        CREATE TABLE events_1 PARTITION OF events FOR VALUES FROM (0) TO (10);
        CREATE TABLE events_2 PARTITION OF events FOR VALUES FROM (10) TO (20);
        CREATE TABLE events_rest PARTITION OF events DEFAULT""",
    "list": """
        CREATE TABLE events (id bigint, day integer, note text, PRIMARY KEY (id, day))
            PARTITION BY LIST (day);
        CREATE TABLE events_1 PARTITION OF events FOR VALUES IN (1, 2, 3);
        CREATE TABLE events_rest PARTITION OF events DEFAULT""",
    "hash": """
        CREATE TABLE events (id bigint PRIMARY KEY, day integer, note text)
            PARTITION BY HASH (id);
        CREATE TABLE events_0 PARTITION OF events FOR VALUES WITH (MODULUS 2, REMAINDER 0);
        CREATE TABLE events_1 PARTITION OF events FOR VALUES WITH (MODULUS 2, REMAINDER 1)""",
    "two levels, columns in another order": """
        CREATE TABLE events (gone integer, id bigint, day integer, note text,
            PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
        ALTER TABLE events DROP COLUMN gone;
        CREATE TABLE events_1 (note text, day integer NOT NULL, id bigint NOT NULL,
            PRIMARY KEY (id, day));
        ALTER TABLE events ATTACH PARTITION events_1 FOR VALUES FROM (0) TO (10);
        CREATE TABLE events_2 PARTITION OF events DEFAULT PARTITION BY LIST (day);
        CREATE TABLE events_2_10 PARTITION OF events_2 FOR VALUES IN (10);
        CREATE TABLE events_2_rest PARTITION OF events_2 DEFAULT""",
    "full": """
        CREATE TABLE events (id bigint, day integer, note text) PARTITION BY RANGE (day);
        CREATE TABLE events_1 PARTITION OF events FOR VALUES FROM (0) TO (10);
        CREATE TABLE events_2 PARTITION OF events DEFAULT;
        ALTER TABLE events REPLICA IDENTITY FULL;
        ALTER TABLE events_1 REPLICA IDENTITY FULL;
        ALTER TABLE events_2 REPLICA IDENTITY FULL""",
}
ROWS = "INSERT INTO events SELECT n, n % 25, 'old' || n FROM generate_series(1, 450) AS n"
WRITES = (
    "INSERT INTO events VALUES (1000 + {n}, {n} % 25, 'new')",
    "UPDATE events SET note = 'changed' || {n} WHERE id = {n} * 2",
    # Mostly into another partition.
    "UPDATE events SET day = (day + 7) % 25 WHERE id = {n} * 3",
    "DELETE FROM events WHERE id = 1000 + {n} - 5",
)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_partitioned_table_arrives_as_one_table(trip: Any, layout: str) -> None:
    trip.run(LAYOUTS[layout], ROWS)

    trip.travel(
        *WRITES,
        finally_run=(
            "CREATE TABLE fresh (LIKE events INCLUDING ALL)",
            "DROP TABLE fresh",
            "TRUNCATE events",
            ROWS,
            "DELETE FROM events WHERE id % 10 = 0",
        ),
    )


def test_a_partition_that_is_made_meanwhile_arrives(trip: Any) -> None:
    trip.run(
        LAYOUTS["range"], "DROP TABLE events_rest", "DELETE FROM events", ROWS.replace("25", "20")
    )

    trip.travel(
        finally_run=(
            "CREATE TABLE events_3 PARTITION OF events FOR VALUES FROM (20) TO (30)",
            "INSERT INTO events SELECT n, 20 + n % 10, 'late' FROM generate_series(1, 50) AS n",
            "UPDATE events SET note = 'later' WHERE day = 25",
        ),
    )


def test_stream_stops_at_a_partition_that_keeps_less_of_old_rows_than_its_root(trip: Any) -> None:
    """What it keeps of an old row would pass for the whole row, with its other values null."""
    trip.run(
        "CREATE TABLE events (id bigint, day integer, note text, PRIMARY KEY (id, day))"
        " PARTITION BY RANGE (day); ALTER TABLE events REPLICA IDENTITY FULL;"
        " ALTER TABLE events ALTER COLUMN note SET STORAGE EXTERNAL;"
        " CREATE TABLE events_1 PARTITION OF events FOR VALUES FROM (0) TO (10);"
        " ALTER TABLE events_1 REPLICA IDENTITY FULL"
    )
    trip.prepare()
    trip.backfill()

    with pytest.raises(DriftError, match="events_2"), trip.streaming() as host:
        trip.run(
            "CREATE TABLE events_2 PARTITION OF events FOR VALUES FROM (10) TO (20)",
            "INSERT INTO events VALUES (1, 11, repeat(md5('note'), 300))",
            "UPDATE events SET id = 2",
        )
        host.join(60)


BEHIND_THE_STREAM = {
    "truncate": "TRUNCATE events_1",
    "drop": "DROP TABLE events_1",
    "detach": "ALTER TABLE events DETACH PARTITION events_1",
    "attach": "CREATE TABLE events_3 (LIKE events INCLUDING ALL);"
    " INSERT INTO events_3 VALUES (7777, 33, 'unseen');"
    " ALTER TABLE events ATTACH PARTITION events_3 FOR VALUES FROM (30) TO (40)",
}

# Nothing of this shows in the partitions' files.
WHILE_AWAY = {
    "change while detached": "ALTER TABLE events DETACH PARTITION events_1;"
    " UPDATE events_1 SET note = 'changed'; DELETE FROM events_1 WHERE id % 2 = 0;"
    " ALTER TABLE events ATTACH PARTITION events_1 FOR VALUES FROM (0) TO (10)"
}


@pytest.mark.parametrize("change", BEHIND_THE_STREAM)
def test_copy_notices_partitions_that_change_under_its_snapshot(trip: Any, change: str) -> None:
    trip.run(LAYOUTS["range"], ROWS)
    tables = read_tables(trip.source, trip.move.tenant)
    before = read_heap_files(trip.source, tables)
    with closing(open_connection(trip.move.source, purpose="snapshot")) as copying:
        copying.set_session(isolation_level="REPEATABLE READ")
        with copying.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM pg_class")

        trip.run((BEHIND_THE_STREAM | WHILE_AWAY)[change])

        assert read_heap_files(copying, tables) != before


@pytest.mark.parametrize("change", BEHIND_THE_STREAM | WHILE_AWAY)
def test_rows_that_come_or_go_with_a_partition_are_a_mismatch(trip: Any, change: str) -> None:
    """No message tells of them: only the comparison does."""
    trip.run(LAYOUTS["range"], ROWS)
    trip.prepare()
    trip.backfill()
    with trip.streaming():
        trip.validate()
        trip.run((BEHIND_THE_STREAM | WHILE_AWAY)[change])
        trip.catch_up()

        # What was detached is a table of its own now, which was never copied.
        with pytest.raises(PermanentError if change == "detach" else MismatchError) as refused:
            trip.validate()

    assert ("lacks tables" in str(refused.value)) == (change == "detach")


@pytest.mark.parametrize("change", BEHIND_THE_STREAM | WHILE_AWAY)
def test_cutover_validates_again_when_partitions_changed(trip: Any, change: str) -> None:
    trip.run(LAYOUTS["range"], ROWS)
    trip.prepare()
    trip.backfill()
    with trip.streaming():
        trip.validate()
        trip.run((BEHIND_THE_STREAM | WHILE_AWAY)[change])

        with pytest.raises(PermanentError if change == "detach" else MismatchError):
            cutover(trip.move)


def test_cutover_is_undone_when_a_partition_is_truncated_just_before_the_fence(trip: Any) -> None:
    trip.run(LAYOUTS["range"], ROWS)
    trip.prepare()
    trip.backfill()
    steps: list[str] = []

    def truncate(step: str) -> None:
        steps.append(step)
        if step == "begun":
            trip.run("TRUNCATE events_1")

    with trip.streaming():
        trip.validate()

        with pytest.raises(MismatchError, match="written last"):
            cutover(trip.move, on_step=truncate)

        assert "drained" in steps
        assert "flipped" not in steps
        trip.run_anew("INSERT INTO events VALUES (5555, 5, 'the source is open again')")


def test_cutover_hands_over_when_partitions_stayed(trip: Any) -> None:
    trip.run(LAYOUTS["range"], ROWS)
    trip.prepare()
    trip.backfill()
    steps: list[str] = []

    with trip.streaming():
        trip.validate()
        with pytest.raises(TenantferryError):
            cutover(trip.move, on_step=steps.append)

    assert "flipped" in steps
