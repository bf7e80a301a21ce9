"""Clients that never stop writing through a pooler."""

from __future__ import annotations

import threading
from contextlib import closing

import psycopg2

from tenantferry.connections import ConnectionParams, open_client_connection
from tenantferry.local.postgres import PostgresServer


class Writers:
    """Clients of an alias, each with one session that it never opens again."""

    def __init__(self, params: list[ConnectionParams]) -> None:
        self.acknowledged: list[int] = []
        self.errors: list[str] = []
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._write, args=(one, number))
            for number, one in enumerate(params)
        ]

    def __enter__(self) -> Writers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, more: int, timeout_seconds: float = 30) -> None:
        """Wait until so many further writes are acknowledged."""
        wanted = len(self.acknowledged) + more
        waited = threading.Event()
        for _ in range(int(timeout_seconds * 100)):
            if len(self.acknowledged) >= wanted or self.errors:
                return
            waited.wait(0.01)
        raise AssertionError(f"clients wrote {len(self.acknowledged)} of {wanted} rows")

    def _write(self, params: ConnectionParams, number: int) -> None:
        row = number
        with closing(open_client_connection(params, purpose="client")) as client:
            while not self._stop.is_set():
                row += len(self._threads)
                try:
                    with client, client.cursor() as cursor:
                        cursor.execute("INSERT INTO public.written (id) VALUES (%s)", (row,))
                except psycopg2.Error as error:
                    self.errors.append(str(error))
                    return
                with self._lock:
                    self.acknowledged.append(row)
                self._stop.wait(0.01)


def read_written(server: PostgresServer, database: str) -> list[int]:
    """Return what is in the table, as a superuser sees it."""
    text = server.psql("-c", "SELECT id FROM public.written ORDER BY id", database=database)
    return [int(line) for line in text.splitlines()]
