"""While all tenants write and everything fails, each source is the target at one position."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest
from psycopg2 import sql

from reverse_stage import Following, Side, Way, execute
from tenantferry.backfill.snapshot import exported_snapshot, import_snapshot
from tenantferry.connections import open_connection
from tenantferry.control.direction import Direction
from tenantferry.errors import TransientError
from tenantferry.stream.handshake import advance, hold, release

REVERSE = Direction.REVERSE
TABLES = ("items", "log")
SECONDS = 12.0


class Client:
    """One tenant's application: several rows per transaction, keys that move, some rollbacks."""

    def __init__(self, way: Way, side: Side, seed: int) -> None:
        self._way, self._side = way, side
        self._chance = random.Random(seed)
        self.commits = 0

    def run(self, done: threading.Event) -> None:
        params = self._way.target_params
        with closing(open_connection(params, purpose="client", autocommit=True)) as session:
            tenant = self._side.tenant
            execute(session, f"SET row_security = on; SET ROLE {tenant.role}")
            execute(session, f"SET search_path = {tenant.schema_name}, public")
            while not done.is_set():
                execute(session, "BEGIN")
                for _ in range(self._chance.randint(1, 6)):
                    self._write(session)
                ending = "ROLLBACK" if self._chance.random() < 0.1 else "COMMIT"
                execute(session, ending)
                self.commits += ending == "COMMIT"
                if self._chance.random() < 0.3:
                    done.wait(self._chance.random() * 0.02)

    def _write(self, session: object) -> None:
        key, other = self._chance.randrange(300), self._chance.randrange(300)
        statements = (
            ("INSERT INTO items VALUES (%s, %s, NULL) ON CONFLICT DO NOTHING", (key, "new")),
            ("UPDATE items SET name = %s WHERE id = %s", (f"n{other}", key)),
            (
                "UPDATE items SET id = %s WHERE id = %s"
                " AND NOT EXISTS (SELECT FROM items WHERE id = %s)",
                (other, key, other),
            ),
            ("UPDATE items SET body = repeat(md5(%s), 200) WHERE id = %s", (str(other), key)),
            ("DELETE FROM items WHERE id = %s", (key,)),
            ("INSERT INTO log VALUES (%s, %s)", (key % 5, "x")),
            ("DELETE FROM log WHERE ctid = (SELECT min(ctid) FROM log WHERE id = %s)", (key % 5,)),
        )
        statement, values = self._chance.choice(statements)
        execute(session, statement, *values)  # type: ignore[arg-type]  # a connection


@contextmanager
def applications(way: Way) -> Iterator[list[Client]]:
    """Let every tenant's application run until the block ends."""
    done = threading.Event()
    clients = [Client(way, side, seed) for seed, side in enumerate(way.sides.values())]
    threads = [threading.Thread(target=client.run, args=(done,)) for client in clients]
    for thread in threads:
        thread.start()
    try:
        yield clients
    finally:
        done.set()
        for thread in threads:
            thread.join()


def compare_at_one_position(way: Way, key: str) -> None:
    """Stop a source at an LSN, and compare it with the target as of that LSN."""
    hold(way.target_params, key, lease_seconds=30, timeout_seconds=20, direction=REVERSE)
    with exported_snapshot(
        way.target_params, slot=f"compare_{key}", temporary=True, timeout_seconds=20
    ) as snapshot:
        lsn = snapshot.consistent_point
        advance(
            way.target_params, key, lsn, lease_seconds=30, timeout_seconds=20, direction=REVERSE
        )
        with closing(open_connection(way.target_params, purpose="compare")) as session:
            import_snapshot(session, snapshot)
            for table in TABLES:
                names = sql.SQL("id, name, body" if table == "items" else "id, name")
                query = sql.SQL("SELECT ROW({})::text FROM public.{} WHERE tenant_id = {}").format(
                    names, sql.Identifier(table), sql.Literal(str(way[key].tenant.id))
                )
                expected = sorted(row for (row,) in execute(session, query.as_string(session)))
                assert way[key].rows(table) == expected
    release(way.target_params, key, direction=REVERSE)


def disturb(way: Way, following: Following, chance: random.Random) -> None:
    """Let one of the things fail that fail."""
    key = chance.choice(list(way.sides))
    if chance.random() < 0.5:
        execute(
            way[key].source,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s",
            f"tenantferry reverse {key}",
        )
        return
    with way.away(key):
        following.stop.wait(0.2)


@pytest.mark.timeout(200)
def test_each_source_is_the_target_at_one_position_whatever_fails(empty_way: Way) -> None:
    way = empty_way
    for key in ("acme", "globex", "initech"):
        way.add(key)
    way.table("items", "id integer, name text, body text")
    way.table("log", "id integer, name text", key="")
    way.ensure()
    way.go_live()
    chance = random.Random(3)
    compared = 0

    deadline = time.monotonic() + SECONDS
    with applications(way) as clients:
        while time.monotonic() < deadline:
            # A new process each time, with little memory, so that much of it waits on disk.
            with way.follow(memory_bytes=1 << 16, idle_seconds=0.05) as following:
                for _ in range(3):
                    disturb(way, following, chance)
                    try:
                        compare_at_one_position(way, chance.choice(list(way.sides)))
                        compared += 1
                    except TransientError as error:
                        # A source that was away for too long; the next one may not be.
                        assert following.error is None, error
    with way.follow() as following:
        following.catch_up()

    for side in way.sides.values():
        for table in TABLES:
            assert side.rows(table) == side.target_rows(table)
    assert compared >= 3
    assert min(client.commits for client in clients) > 50
