"""
One application with its own database: it knows nothing of tenants, nor of any move.

Run as ``python -m tenantferry.local.client``; the database comes from libpq's own variables
(PGHOST, PGPASSWORD, ...). It runs until SIGTERM, finishes the transactions in hand and writes
its summary.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import random
import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psycopg2
from psycopg2.extensions import connection

from tenantferry.local.generic_workload import (
    GenericWorkload,
    read_foreign_tables,
    share_tables,
)
from tenantferry.local.journal import Journal, Outcome, Write
from tenantferry.local.measurements import Measurements, write_summary
from tenantferry.local.sample_workload import SampleWorkload, read_highest_ids
from tenantferry.local.workload import Request, UnexpectedAnswerError, Workload

JOURNAL_NAME = "journal.jsonl"
SUMMARY_NAME = "summary.json"

logger = logging.getLogger(__name__)

_WORKERS = 4
_SUMMARY_INTERVAL_SECONDS = 1.0
# Connection exceptions and an administrator's shutdown leave a COMMIT without an answer; any
# other error of a COMMIT, e.g. of a deferred constraint, is itself the answer.
_UNANSWERED_CLASSES = ("08", "57")


@dataclass(frozen=True, slots=True)
class Answer:
    """How one transaction ended, as its user sees it."""

    writes: tuple[Write, ...] = ()
    failure: str = ""


class Schedule:
    """Moments at which requests are due, *rate* a second; taken by all threads of a client."""

    def __init__(self, rate: float) -> None:
        self._interval = 1 / rate
        self._lock = threading.Lock()
        self._next = time.monotonic()

    def take(self) -> float:
        """Return the next due moment, in seconds of the monotonic clock."""
        with self._lock:
            due = self._next
            self._next += self._interval
            return due


class Session:
    """
    One connection of the application, opened again by the request after the one it died in.

    No transaction is ever tried twice.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._connection: connection | None = None

    def perform(self, request: Request) -> Answer:
        """Run one transaction; journal what it wrote before returning."""
        try:
            if self._connection is None:
                self._connection = connect()
            with self._connection.cursor() as cursor:
                writes = tuple(request.run(cursor))
        except (psycopg2.Error, UnexpectedAnswerError) as error:
            self._abandon(error)
            return Answer(failure=_tell(request, error))
        try:
            self._connection.commit()
        except psycopg2.Error as error:
            if writes and is_unanswered(error):
                self._journal.append(Outcome.UNKNOWN, request.name, writes)
            self._abandon(error)
            return Answer(failure=f"{_tell(request, error)} (at COMMIT)")
        if writes:
            self._journal.append(Outcome.ACKNOWLEDGED, request.name, writes)
        return Answer(writes)

    def close(self) -> None:
        """End the session."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _abandon(self, error: Exception) -> None:
        """Roll back; drop a connection that is of no use any more."""
        if isinstance(error, psycopg2.OperationalError | psycopg2.InterfaceError):
            self.close()
        elif self._connection is not None:
            try:
                self._connection.rollback()
            except psycopg2.Error:  # it died after all; the next request opens another
                self.close()


def connect() -> connection:
    """Open a connection as libpq's variables say."""
    opened: connection = psycopg2.connect("", connect_timeout=10, application_name="sample app")
    return opened


def is_unanswered(error: psycopg2.Error) -> bool:
    """Tell whether a failed COMMIT may have committed."""
    return error.pgcode is None or error.pgcode.startswith(_UNANSWERED_CLASSES)


def run_worker(
    session: Session,
    workload: Workload,
    schedule: Schedule,
    measurements: Measurements,
    stop: threading.Event,
) -> None:
    """Send requests when they are due, until *stop* is set."""
    with contextlib.closing(session):
        while True:
            due = schedule.take()
            if stop.wait(max(due - time.monotonic(), 0)):
                return
            answer = session.perform(workload.next_request())
            # From the due moment on: who waits behind a slow request, waits as well.
            latency = time.monotonic() - due
            measurements.record(latency, writes=len(answer.writes), failure=answer.failure)
            workload.learn(answer.writes)


def make_workloads(*, generic: bool, workers: int, seed: str) -> tuple[list[Workload], str]:
    """
    Look at the database once and share its rows among the workers.

    :return: one workload per worker, and a note on what they leave out, or nothing.
    """
    chances = [
        random.Random(f"{seed} {worker}")  # noqa: S311 - no secret: a workload to be repeated
        for worker in range(workers)
    ]
    with contextlib.closing(connect()) as opened:
        if not generic:
            highest = read_highest_ids(opened)
            return [
                SampleWorkload(highest, worker=worker, workers=workers, chance=chance)
                for worker, chance in enumerate(chances)
            ], ""
        tables = read_foreign_tables(opened, chance=chances[0])
    writable = any(table.columns and table.keys for table in tables)
    note = "" if writable else "no column can take a made-up value, so this client only reads"
    return [
        GenericWorkload(share_tables(tables, worker=worker, workers=workers), chance=chance)
        for worker, chance in enumerate(chances)
    ], note


def run_client(
    directory: Path, *, rate: float, generic: bool, workers: int, stop: threading.Event
) -> None:
    """
    Be the application until *stop* is set.

    :param directory: takes the journal and the summary.
    :param rate: transactions a second, over all workers.
    """
    seed = f"{directory.name} {os.environ.get('PGDATABASE', '')}"
    workloads, note = make_workloads(generic=generic, workers=workers, seed=seed)
    measurements = Measurements(note=note)
    schedule = Schedule(rate)
    summary_path = directory / SUMMARY_NAME
    with (
        Journal(directory / JOURNAL_NAME) as journal,
        ThreadPoolExecutor(len(workloads), "worker") as pool,
    ):
        running = [
            pool.submit(run_worker, Session(journal), workload, schedule, measurements, stop)
            for workload in workloads
        ]
        try:
            while not stop.wait(_SUMMARY_INTERVAL_SECONDS):
                write_summary(measurements.summarize(finished=False), summary_path)
                for worker in running:
                    if worker.done():  # a defect of ours: a client with fewer workers would lie
                        worker.result()
        finally:
            stop.set()
    for worker in running:
        worker.result()
    write_summary(measurements.summarize(finished=True), summary_path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(description="A single-tenant application under load.")
    parser.add_argument("--directory", type=Path, required=True, help="for journal and summary")
    parser.add_argument("--rate", type=float, default=50.0, help="transactions a second")
    parser.add_argument("--workers", type=int, default=_WORKERS, help="connections")
    parser.add_argument("--generic", action="store_true", help="the schema is not the sample's")
    options = parser.parse_args(arguments)

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    run_client(
        options.directory,
        rate=options.rate,
        generic=options.generic,
        workers=options.workers,
        stop=stop,
    )
    return 0


def _tell(request: Request, error: Exception) -> str:
    logger.warning("request failed name=%s error=%s", request.name, error)
    return f"{request.name}: {' '.join(str(error).split())}"


if __name__ == "__main__":
    raise SystemExit(main())
