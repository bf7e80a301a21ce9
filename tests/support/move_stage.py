"""What a test of a whole move looks at."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from psycopg2.extensions import connection

from tenantferry.connections import ConnectionParams, open_client_connection
from tenantferry.errors import TransientError
from tenantferry.local.pgbouncer import PgBouncer
from tenantferry.moves.move import Move
from tenantferry.moves.stream import stream
from tenantferry.reverse.running import LaneSource, run_reverse
from tenantferry.reverse.slot import ensure_reverse

APP_PASSWORD = "owner"
ACME_ID = UUID("11111111-1111-1111-1111-111111111111")


def rows(session: connection, query: str, *values: Any) -> list[tuple[Any, ...]]:
    with session.cursor() as cursor:
        cursor.execute(query, values or None)
        return cursor.fetchall() if cursor.description else []


def with_tenant(move: Move, **changes: Any) -> Move:
    return replace(move, tenant=move.tenant.model_copy(update=changes))


@dataclass
class Stage:
    """
    A move and what a test needs to look at it.

    :ivar client: the application through PgBouncer.
    """

    move: Move
    pooler: PgBouncer
    source: connection
    target: connection

    @property
    def client(self) -> ConnectionParams:
        return self.pooler.client("acme", "app_owner", APP_PASSWORD)

    def ask(self, query: str) -> list[tuple[Any, ...]]:
        """Ask as the application does, in a session of its own."""
        with closing(open_client_connection(self.client, purpose="ask")) as client, client:
            return rows(client, query)

    def phase(self) -> str:
        query = "SELECT phase FROM tenantferry.tenants WHERE tenant = %s"
        [(phase,)] = rows(self.target, query, self.move.tenant.key)
        return str(phase)

    def acl(self) -> list[str]:
        [(acl,)] = rows(
            self.source,
            "SELECT datacl::text FROM pg_database WHERE datname = current_database()",
        )
        return sorted(str(acl).strip("{}").split(","))

    @contextmanager
    def streaming(self, *, run_id: str | None = "test") -> Iterator[None]:
        """Host the stream beside the block, as a task of its own."""
        move = replace(self.move, run_id=run_id)
        with _hosting(lambda stop: stream(move, stop=stop)):
            yield

    @contextmanager
    def streaming_again(self, *cleared: type[Exception]) -> Iterator[None]:
        """
        Host the stream beside the block; start it again when it ends, as Airflow does.

        :param cleared: errors after which on-call does it.
        """

        def run(stop: threading.Event) -> None:
            while not stop.is_set():
                with suppress(TransientError, *cleared):
                    stream(self.move, stop=stop)
                stop.wait(0.1)  # the retry's delay

        with _hosting(run):
            yield

    @contextmanager
    def reversing(self) -> Iterator[None]:
        """
        Host the reverse streams beside the block.

        They end when the last tenant has gone back; the Dag waits for the next, and so does this.
        """
        source = LaneSource(self.move.tenant, self.move.source)
        ensure_reverse(self.move.target)

        def run(stop: threading.Event) -> None:
            while not stop.is_set():
                run_reverse(self.move.target, lambda _: source, stop=stop, wal_budget_bytes=1 << 30)
                stop.wait(0.1)

        with _hosting(run):
            yield


def written(stage: Stage, side: str) -> list[int]:
    session = stage.source if side == "source" else stage.target
    return [row for (row,) in rows(session, "SELECT id FROM public.written ORDER BY id")]


def may_log_in(stage: Stage) -> bool:
    [(can,)] = rows(
        stage.target, "SELECT rolcanlogin FROM pg_roles WHERE rolname = %s", stage.move.tenant.role
    )
    return bool(can)


@contextmanager
def _hosting(run: Callable[[threading.Event], object]) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=lambda: run(stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(30)
        assert not thread.is_alive()
