"""A tenant whose source and target have the same, empty tables; streams of it in threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any
from uuid import UUID

import pytest
from psycopg2 import sql
from psycopg2.extensions import connection

from stream_thread import StreamThread
from tenantferry.backfill.running import run_backfill
from tenantferry.connections import ConnectionParams, open_connection
from tenantferry.control.registry import ensure_registered
from tenantferry.control.streams import StreamRecord, require_stream, reset_stream
from tenantferry.fleet import Source, Tenant
from tenantferry.lsn import parse_lsn
from tenantferry.schema.catalog import read_tables
from tenantferry.schema.publication import ensure_publication, read_entries
from tenantferry.stream.catching_up import catch_up
from tenantferry.stream.marker import emit_marker
from tenantferry.stream.running import StreamResult, run_stream

ACME_ID = UUID("11111111-1111-1111-1111-111111111111")
OTHER_ID = UUID("22222222-2222-2222-2222-222222222222")

Pair = Callable[..., None]


def execute(session: connection, statement: str, *values: Any) -> list[tuple[Any, ...]]:
    """Run one statement and return its rows."""
    with session.cursor() as cursor:
        cursor.execute(statement, values or None)
        return cursor.fetchall() if cursor.description else []


class Streaming(StreamThread[StreamResult]):
    """One run of the stream."""

    def __init__(self, move: Move, **options: Any) -> None:
        super().__init__()
        self.move = move
        self._options = options

    def call(self) -> StreamResult:
        """Stream until told to stop."""
        move = self.move
        return run_stream(
            move.source_params,
            move.target_params,
            move.tenant,
            read_tables(move.source, move.tenant),
            stop=self.stop,
            **self._options,
        )

    def catch_up(self, timeout: float = 30) -> None:
        """Wait until everything committed so far is applied."""
        move = self.move
        lsn = emit_marker(move.source, move.tenant)
        self.wait_for(move.target_params, move.tenant.key, lsn, timeout=timeout)


class Move:
    """Both sides of one tenant."""

    def __init__(
        self,
        tenant: Tenant,
        sessions: tuple[connection, connection, connection],
        params: tuple[ConnectionParams, ConnectionParams],
    ) -> None:
        self.tenant = tenant
        self.source, self.owner, self.target = sessions
        self.source_params, self.target_params = params
        self.later_sessions = ExitStack()

    def pair(
        self, name: str, columns: str, *, key: str = "id", source: str = "", target: str = ""
    ) -> None:
        """
        Create one table on both sides.

        :param source: statements that run on the source only, e.g. a unique index.
        :param target: the same of the target.
        """
        narrow = f", PRIMARY KEY ({key})" if key else ""
        wide = f", PRIMARY KEY (tenant_id, {key})" if key else ""
        execute(self.owner, f"CREATE TABLE public.{name} ({columns}{narrow}); {source}")
        execute(self.target, "SET search_path = public")
        execute(
            self.target,
            f"CREATE TABLE public.{name} ({columns}, tenant_id uuid NOT NULL{wide}); {target}",
        )
        execute(self.target, "SET search_path = pg_catalog")

    def begin(self) -> None:
        """Publish the tables, create the slot, and let the stream begin there."""
        ensure_publication(self.source, self.tenant, read_tables(self.source, self.tenant))
        [(lsn,)] = execute(
            self.source,
            "SELECT lsn::text FROM pg_create_logical_replication_slot(%s, 'pgoutput')",
            self.tenant.slot,
        )
        reset_stream(self.target, self.tenant.key, parse_lsn(lsn))
        for (schema, name), entry in read_entries(self.source, self.tenant).items():
            # A stream leaves out what is not copied.
            execute(
                self.target,
                "INSERT INTO tenantferry.chunks (tenant, table_schema, table_name, chunk,"
                " key_columns, estimated_rows, done_at, published_as)"
                " VALUES (%s, %s, %s, 1, '{}', 0, now(), %s) ON CONFLICT DO NOTHING",
                self.tenant.key, schema, name, entry,
            )  # fmt: skip

    def stream(self, **options: Any) -> Streaming:
        """Return a run of the stream; enter it to start."""
        return Streaming(self, **options)

    def run(self, *statements: str) -> None:
        """Run statements on the source as the application, each in its own transaction."""
        for statement in statements:
            execute(self.owner, statement)

    @property
    def record(self) -> StreamRecord:
        """The stream's row."""
        return require_stream(self.target, self.tenant.key)

    execute = staticmethod(execute)

    def backfill(self) -> None:
        """Publish the tables, copy them, and let the stream begin there."""
        tables = read_tables(self.source, self.tenant)
        ensure_publication(self.source, self.tenant, tables)
        run_backfill(
            self.source_params, self.target_params, self.tenant, tables,
            catch_up=partial(
                catch_up, self.source_params, self.target_params, self.tenant, tables
            ),
            report=lambda _: None,
        )  # fmt: skip

    def reach_source(self, port: int) -> None:
        """Open the sessions with the source anew: it was started again, or is another server."""
        self.source_params = replace(self.source_params, port=port)
        self.source = self.later_sessions.enter_context(
            closing(open_connection(self.source_params, purpose="test", autocommit=True))
        )
        owner = replace(self.source_params, user="app_owner", password="owner")
        self.owner = self.later_sessions.enter_context(
            closing(
                open_connection(
                    owner, purpose="test client", autocommit=True,
                    settings={"search_path": "public"},
                )
            )
        )  # fmt: skip

    @contextmanager
    def writing(self, *, writers: int = 3) -> Iterator[None]:
        """Let clients insert, update and delete ``items`` until the block ends."""
        done = threading.Event()

        def write(number: int) -> None:
            params = self.source_params
            with closing(open_connection(params, purpose="writer", autocommit=True)) as session:
                execute(session, "SET ROLE app_owner; SET search_path = public")
                step = 0
                while not done.is_set():
                    step += 1
                    key = number * 1_000_000 + step
                    execute(session, "INSERT INTO items VALUES (%s, 'new')", key)
                    execute(
                        session, "UPDATE items SET name = %s WHERE id = %s", f"s{step}", key - 3
                    )
                    execute(session, "DELETE FROM items WHERE id = %s", key - 7)

        threads = [threading.Thread(target=write, args=(number,)) for number in range(writers)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            done.set()
            for thread in threads:
                thread.join()

    def rows(self, name: str, *, tenant_id: UUID = ACME_ID) -> list[str]:
        """Return the tenant's rows in the target, as text."""
        names = self._columns(name)
        query = sql.SQL("SELECT ROW({})::text FROM public.{} WHERE tenant_id = {}").format(
            names, sql.Identifier(name), sql.Literal(str(tenant_id))
        )
        return sorted(row[0] for row in execute(self.target, query.as_string(self.target)))

    def rows_of_ids(self, name: str) -> list[int]:
        """Return the ids of the tenant's rows in the target."""
        rows = execute(self.target, f"SELECT id FROM public.{name} WHERE tenant_id = %s ORDER BY 1",
                       str(ACME_ID))  # fmt: skip
        return [row[0] for row in rows]

    def source_rows(self, name: str) -> list[str]:
        """Return the rows of the source, as text."""
        query = sql.SQL("SELECT ROW({})::text FROM public.{}").format(
            self._columns(name), sql.Identifier(name)
        )
        return sorted(row[0] for row in execute(self.source, query.as_string(self.source)))

    def _columns(self, name: str) -> sql.Composed:
        rows = execute(
            self.source,
            "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0"
            " AND NOT attisdropped ORDER BY attnum",
            f"public.{name}",
        )
        return sql.SQL(", ").join(sql.Identifier(row[0]) for row in rows)


@pytest.fixture
def move(
    source: connection,
    source_owner: connection,
    target: connection,
    source_params: ConnectionParams,
    target_params: ConnectionParams,
) -> Iterator[Move]:
    """A registered tenant without tables yet."""
    acme = Tenant(key="acme", id=ACME_ID, source=Source(conn_id="acme"))
    ensure_registered(
        target,
        tenant=acme.key,
        tenant_id=acme.id,
        source_identity=f"1/{source_params.database}",
        run_id=None,
    )
    execute(source, "SET extra_float_digits = 1")
    execute(target, "SET extra_float_digits = 1")
    made = Move(acme, (source, source_owner, target), (source_params, target_params))
    with made.later_sessions:
        yield made
