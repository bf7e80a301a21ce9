"""One step of a move in a process of its own, that stops at a named point until it is told."""

from __future__ import annotations

import logging
import multiprocessing
import os
import resource
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from enum import Enum
from multiprocessing.connection import Connection

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import connection

from tenantferry import connections
from tenantferry.backfill.chunk import TEXT_SETTINGS
from tenantferry.connections import ConnectionParams, open_connection
from tenantferry.errors import PermanentError, TenantferryError
from tenantferry.failpoints import listening, reach
from tenantferry.local import client
from tenantferry.moves import cutover as cutover_step
from tenantferry.moves.backfill import backfill
from tenantferry.moves.cutover import cutover
from tenantferry.moves.move import Move
from tenantferry.moves.prepare import prepare
from tenantferry.moves.stream import stream
from tenantferry.moves.validate import validate
from tenantferry.schema.catalog import read_tables
from tenantferry.schema.model import Table
from tenantferry.stream import applier as applying
from tenantferry.stream import takeover
from tenantferry.stream.applier import Applier
from tenantferry.stream.batch import Batch
from tenantferry.stream.loop import Loop
from tenantferry.stream.netchange import KeyedChanges
from tenantferry.traffic import guard

# Processes of a server that has loaded everything: they start at once, and share no lock with us.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([__name__])

# As the engine's own, but a cell of the table shall not wait for a minute.
_PATIENCE = {
    "keepalives_idle": "1", "keepalives_interval": "1", "keepalives_count": "2",
    "tcp_user_timeout": "3000",
}  # fmt: skip
_SERVER_PATIENCE = {
    "tcp_keepalives_idle": "1", "tcp_keepalives_interval": "1", "tcp_keepalives_count": "2",
    "tcp_user_timeout": "3000",
}  # fmt: skip


class Outcome(Enum):
    """How a step ended."""

    FINISHED = "finished"
    FAILED = "failed, may be tried again"
    REFUSED = "failed for good"
    DIED = "was killed"


@dataclass(frozen=True, slots=True)
class Order:
    """
    What a process shall do.

    :ivar source: and *target*: the servers without a proxy, for looking at them.
    :ivar point: where it stops once; ``None``: nowhere.
    :ivar sabotage: how its engine is broken; ``None``: it is not.
    """

    verb: str
    move: Move
    source: ConnectionParams
    target: ConnectionParams
    point: str | None = None
    sabotage: str | None = None


@dataclass(frozen=True, slots=True)
class Compared:
    """Both sides were compared while clients were held; *differences* are told in sentences."""

    differences: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ended:
    """A step has ended, and why."""

    outcome: Outcome
    reason: str


class VerbProcess:
    """
    A process that carries out an order.

    :ivar is_stopped: it stands at its point.
    :ivar ended: how it ended, or ``None``.
    :ivar points: that it has reached.
    """

    def __init__(self, order: Order) -> None:
        self.order = order
        self.pipe, theirs = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=_carry_out, args=(order, theirs))
        self._process.start()
        theirs.close()
        self.is_stopped = False
        self.ended: Ended | None = None
        self.compared: list[Compared] = []
        self.points: set[str] = set()

    def take(self) -> None:
        """Take note of what it tells; waits for that."""
        try:
            told = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self.ended = self.ended or Ended(Outcome.DIED, "its process ended")
            self._process.join()
            return
        if isinstance(told, Compared):
            self.compared.append(told)
        elif isinstance(told, Ended):
            self.ended = told
        else:
            self.points.add(told)
            self.is_stopped = told == self.order.point

    def go_on(self, *, without_files: bool = False) -> None:
        """Let a stopped one go on; it cannot write a byte to a file any more, if so told."""
        self.is_stopped = False
        self.pipe.send(without_files)

    def kill(self) -> None:
        """End it as the kernel would."""
        self.is_stopped = False
        self._process.kill()
        self._process.join()


class ClientProcess:
    """The sample application, with a journal, that never stops writing."""

    def __init__(self, params: ConnectionParams, directory: str, *, rate: float) -> None:
        self._process = _CONTEXT.Process(target=_be_client, args=(params, directory, rate))
        self._process.start()

    def stop(self) -> None:
        """Let it finish what it does, and end."""
        self._process.terminate()
        self._process.join(90)
        assert self._process.exitcode == 0

    def kill(self) -> None:
        """End it, where its account is not asked for any more."""
        self._process.kill()
        self._process.join()


def _be_client(params: ConnectionParams, directory: str, rate: float) -> None:
    os.environ |= {
        "PGHOST": params.host, "PGPORT": str(params.port), "PGUSER": params.user,
        "PGPASSWORD": params.password, "PGDATABASE": params.database,
    }  # fmt: skip
    logging.disable()
    client.main(["--directory", directory, "--rate", str(rate)])


def _carry_out(order: Order, pipe: Connection) -> None:
    logging.disable()
    connections.KEEPALIVES = _PATIENCE
    connections.SERVER_KEEPALIVES = _SERVER_PATIENCE
    connections.SESSION_SETTINGS = {**connections.SESSION_SETTINGS, **_SERVER_PATIENCE}
    guard.DEADLINE_MARGIN_SECONDS = 2.0
    if order.sabotage is not None:
        _SABOTAGE[order.sabotage]()
    listener = _Listener(order, pipe)
    try:
        with listening(listener.reach):
            _VERBS[order.verb](order, listener)
    except PermanentError as error:
        pipe.send(Ended(Outcome.REFUSED, str(error)))
    except (TenantferryError, psycopg2.Error) as error:
        pipe.send(Ended(Outcome.FAILED, str(error)))
    else:
        pipe.send(Ended(Outcome.FINISHED, ""))


class _Listener:
    """Tells the parent of every point, and waits for it at one, the first time."""

    def __init__(self, order: Order, pipe: Connection) -> None:
        self._order, self._pipe = order, pipe
        self._lock = threading.Lock()
        self._told: set[str] = set()

    def reach(self, point: str) -> None:
        # Another thread that gets there meanwhile waits, too: it would go on behind the fault.
        with self._lock:
            if point in self._told:
                return
            self._told.add(point)
            self._pipe.send(str(point))
            if point == self._order.point and self._pipe.recv():
                limit = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
                resource.setrlimit(resource.RLIMIT_FSIZE, (0, limit))

    def step(self, name: str) -> None:
        # Clients are held and the stream has applied the last change: both sides must be equal.
        if name == "sequences":
            self._pipe.send(Compared(tuple(compare(self._order))))
        self.reach(f"cutover.{name}")


def compare(order: Order) -> Iterator[str]:
    """Compare all rows of both sides, as text. Nobody may write meanwhile."""
    with (
        closing(open_connection(order.source, purpose="compare", settings=TEXT_SETTINGS)) as source,
        closing(open_connection(order.target, purpose="compare", settings=TEXT_SETTINGS)) as target,
    ):
        for table in read_tables(source, order.move.tenant):
            ours, theirs = _read_rows(source, table), _read_rows(target, table)
            if ours != theirs:
                missing, extra = set(ours) - set(theirs), set(theirs) - set(ours)
                yield (
                    f"{table.label}: {len(ours)} and {len(theirs)} rows;"
                    f" missing {sorted(missing)[:3]}, extra {sorted(extra)[:3]}"
                )


def _read_rows(session: connection, table: Table) -> list[str]:
    columns = sql.SQL(", ").join(sql.Identifier(column.name) for column in table.copied_columns)
    with session.cursor() as cursor:
        cursor.execute(
            sql.SQL("SELECT ROW({})::text FROM {} ORDER BY 1").format(
                columns, sql.Identifier(*table.qualified)
            )
        )
        return [row for (row,) in cursor]


_VERBS: dict[str, Callable[[Order, _Listener], object]] = {
    "prepare": lambda order, _: prepare(order.move),
    "backfill": lambda order, _: backfill(order.move, report=lambda _: None),
    "stream": lambda order, _: stream(order.move, stop=threading.Event()),
    "validate": lambda order, _: validate(order.move),
    "cutover": lambda order, listener: cutover(order.move, on_step=listener.step),
}


def _confirm_before_commit() -> None:
    submit = Loop._submit

    # Afterwards, it could be killed between the two, with nothing confirmed.
    def confirm_and_submit(loop: Loop) -> None:
        loop._walsender.confirm(loop._reader._position)
        submit(loop)

    _replace(Loop, "_submit", confirm_and_submit)
    # Or the next start would notice what this one has done.
    _replace(takeover, "_check_confirmed", lambda *_, **__: None)
    _stop_only_where_rows_come()


def _commit_the_position_first() -> None:
    apply = Applier.apply

    def move_and_apply(applier: Applier, batch: Batch) -> None:
        if batch.is_complete:
            applier.move(batch.position)
        apply(applier, batch)

    _replace(Applier, "apply", move_and_apply)
    _stop_only_where_rows_come()


def _stop_only_where_rows_come() -> None:
    """
    Let the applier be stopped only in a batch that brings new rows.

    A lost update may be made good by the next one of that row; a lost row stays lost.
    """
    apply = Applier.apply

    def apply_and_tell(applier: Applier, batch: Batch) -> None:
        keyed = (c for _, c in batch.steps() if isinstance(c, KeyedChanges))
        brings_rows = any(True for changes in keyed for _ in changes.inserts())
        _replace(applying, "reach", reach if brings_rows else lambda _: None)
        apply(applier, batch)

    _replace(Applier, "apply", apply_and_tell)


def _raise_no_fence() -> None:
    _replace(cutover_step, "raise_fence", lambda *_, **__: None)
    _replace(cutover_step, "check_alone", lambda *_: None)


def _replace(owner: object, name: str, value: object) -> None:
    getattr(owner, name)  # it must be there
    setattr(owner, name, value)


_SABOTAGE: dict[str, Callable[[], None]] = {
    "confirm before commit": _confirm_before_commit,
    "commit the position first": _commit_the_position_first,
    "raise no fence": _raise_no_fence,
}
