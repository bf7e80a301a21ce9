"""An engine that is broken on purpose is found out."""

from __future__ import annotations

import threading
from contextlib import closing, suppress
from pathlib import Path

import psycopg2
import pytest

from fault_cell import CellLostError, open_cell
from fault_kinds import KILLED
from fault_matrix import POINTS
from fault_world import World
from tenantferry.connections import ConnectionParams, open_client_connection
from tenantferry.errors import TenantferryError
from tenantferry.failpoints import Point
from tenantferry.local.auditor import audit
from tenantferry.local.journal import Journal, Kind, Outcome, Write


class StaleClient:
    """A forgotten job that writes straight to the source, and never stops trying."""

    def __init__(self, params: ConnectionParams, journal: Path) -> None:
        self._params, self._path = params, journal
        self._stop = threading.Event()
        self._tried = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> StaleClient:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def see_tries(self, tries: int) -> None:
        """Wait until it has tried so many times more, well or not."""
        while self._tried.acquire(blocking=False):
            pass
        for _ in range(tries):
            assert self._tried.acquire(timeout=30)

    def _run(self) -> None:
        with Journal(self._path) as journal:
            while not self._stop.wait(0.1):
                # Behind the fence it is refused, as it should be.
                with suppress(psycopg2.Error, TenantferryError):
                    self._write(journal)
                self._tried.release()

    def _write(self, journal: Journal) -> None:
        with closing(open_client_connection(self._params, purpose="stale")) as client:
            with client, client.cursor() as cursor:
                cursor.execute("INSERT INTO accounts (name) VALUES ('stale') RETURNING id::text")
                (key,) = cursor.fetchone() or ("",)
            written = Write("public", "accounts", Kind.INSERT, {"id": key}, {"name": "stale"})
            journal.append(Outcome.ACKNOWLEDGED, "stale", [written])


def move_beside_a_stale_client(
    world: World, journals: Path, *, sabotage: str | None
) -> frozenset[str]:
    """
    Move a tenant one of whose clients goes past the pooler.

    :return: the points that were reached.
    :raises CellLostError: if any of them is lost.
    """
    journal = journals / "stale.jsonl"
    with open_cell(world, journals, sabotage=sabotage) as (cell, stay):
        with StaleClient(stay.past_the_pooler, journal) as stale:
            survived = cell.run(None, None)
            stale.see_tries(3)
        with closing(open_client_connection(stay.client, purpose="audit")) as tenant:
            audited = audit(tenant, journal)
    if audited.lost_writes:
        raise CellLostError("; ".join(audited.differences))
    assert audited.acknowledged_writes > 0
    return survived.points


@pytest.mark.parametrize("sabotage", ["confirm before commit", "commit the position first"])
def test_a_broken_stream_is_found_out(world: World, journals: Path, sabotage: str) -> None:
    with (
        open_cell(world, journals, sabotage=sabotage) as (cell, _),
        pytest.raises(CellLostError, match=r"^(stream|validate) failed for good"),
    ):
        cell.run(KILLED, Point.STAGED)


def test_a_sound_engine_loses_no_write_of_a_stale_client_and_reaches_every_point(
    world: World, journals: Path
) -> None:
    assert move_beside_a_stale_client(world, journals, sabotage=None) == set(POINTS)


def test_a_missing_fence_is_found_out(world: World, journals: Path) -> None:
    with pytest.raises(CellLostError, match="accounts"):
        move_beside_a_stale_client(world, journals, sabotage="raise no fence")
