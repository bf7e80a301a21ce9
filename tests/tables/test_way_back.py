"""What a live tenant writes in the target reaches its source, whatever its tables are there."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from reverse_stage import drop_slot
from tenantferry.control.direction import Direction
from tenantferry.errors import TenantferryError
from tenantferry.local.postgres import PostgresServer
from tenantferry.moves.cutover import cutover
from tenantferry.reverse.running import LaneSource, run_reverse
from tenantferry.stream.handshake import wait_for_position
from tenantferry.stream.marker import emit_marker

WIDE = ", ".join(f"c{n} smallint" for n in range(1597))
# Of each kind: what the source has, and what the tenant does to it in the target.
KINDS: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "partitioned": (
        (
            "CREATE TABLE events (id bigint, day integer, note text, PRIMARY KEY (id, day))"
            " PARTITION BY RANGE (day);"
            " CREATE TABLE events_1 PARTITION OF events FOR VALUES FROM (0) TO (10);"
            " CREATE TABLE events_2 (note text, id bigint NOT NULL, day integer NOT NULL);"
            " ALTER TABLE events ATTACH PARTITION events_2 DEFAULT",
            "INSERT INTO events SELECT n, n % 20, 'old' FROM generate_series(1, 100) AS n",
        ),
        (
            "INSERT INTO events VALUES (1000, 3, 'new'), (1001, 13, 'new')",
            "UPDATE events SET day = 19 - day WHERE id < 50",
            "DELETE FROM events WHERE id % 3 = 0",
        ),
    ),
    "inherited": (
        (
            "CREATE TABLE places (id integer PRIMARY KEY, name text);"
            " CREATE TABLE cities (people integer, PRIMARY KEY (id)) INHERITS (places)",
            "INSERT INTO places SELECT n, 'place' FROM generate_series(1, 30) AS n",
            "INSERT INTO cities SELECT n, 'city', n FROM generate_series(1, 30) AS n",
        ),
        (
            "UPDATE ONLY places SET name = name || id WHERE id < 10",
            "DELETE FROM ONLY places WHERE id > 25",
            "UPDATE places SET name = 'both' WHERE id = 15",
            "INSERT INTO cities VALUES (100, 'new city', 5)",
        ),
    ),
    "wide": (
        (
            f"CREATE TABLE wide (id integer, part text, {WIDE}, PRIMARY KEY (id, part))",
            "INSERT INTO wide (id, part, c1596) SELECT n, 'p', n FROM generate_series(1, 20) AS n",
        ),
        (
            "UPDATE wide SET c0 = 5, c1595 = 7 WHERE id < 5",
            "UPDATE wide SET id = id + 100 WHERE id > 15",
            "DELETE FROM wide WHERE id = 10",
        ),
    ),
    "without a key": (
        (
            "CREATE TABLE log (line text, weight numeric)",
            "ALTER TABLE log REPLICA IDENTITY FULL",
            "INSERT INTO log SELECT 'line', n % 3 FROM generate_series(1, 30) AS n",
        ),
        (
            "DELETE FROM log WHERE ctid = (SELECT min(ctid) FROM log WHERE weight = 1)",
            "INSERT INTO log VALUES ('line', 1.0), (NULL, NULL)",
        ),
    ),
    "filled in by the server": (
        (
            "CREATE TABLE items (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, size integer,"
            ' area integer GENERATED ALWAYS AS (size * size) STORED, "100% ü" text)',
            "INSERT INTO items (size) SELECT n FROM generate_series(1, 30) AS n",
        ),
        (
            "INSERT INTO items (size, \"100% ü\") VALUES (7, '%s')",
            "UPDATE items SET size = size + 1 WHERE size < 10",
        ),
    ),
}


@contextmanager
def _going_back(trip: Any) -> Iterator[None]:
    """Host the reverse streams beside the block."""
    stop = threading.Event()
    failures: list[BaseException] = []

    def host() -> None:
        try:
            run_reverse(
                trip.move.target,
                lambda _: LaneSource(trip.move.tenant, trip.move.source),
                stop=stop,
                wal_budget_bytes=1 << 40,
            )
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            failures.append(error)

    thread = threading.Thread(target=host, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(60)
    assert failures == []


def test_what_a_tenant_writes_goes_back_into_tables_of_every_kind(
    trip: Any, target_server: PostgresServer, request: pytest.FixtureRequest
) -> None:
    request.addfinalizer(lambda: drop_slot(target_server))
    for statements, _ in KINDS.values():
        trip.run(*statements)
    trip.prepare()
    trip.backfill()
    with trip.streaming():
        trip.validate()
        # It goes live; that the application has no pooler here is what it complains of then.
        with pytest.raises(TenantferryError):
            cutover(trip.move)
    tenant = trip.move.tenant

    with _going_back(trip), trip.target.cursor() as client:
        client.execute(
            f"SET ROLE {tenant.role}; SET row_security = on;"
            f" SET search_path = {tenant.schema_name}, public"
        )
        for _, writes in KINDS.values():
            for statement in writes:
                client.execute(statement)
        client.execute("RESET ROLE; RESET row_security; RESET search_path")
        wait_for_position(
            trip.move.target,
            tenant.key,
            emit_marker(trip.target, tenant),
            timeout_seconds=60,
            direction=Direction.REVERSE,
        )

    trip.compare()
