"""The points at which the model kills a step, and how it does."""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from model_script import Verb
from tenantferry.backfill import admitting, copying, running
from tenantferry.backfill import rounds as engine
from tenantferry.stream.applier import Applier
from tenantferry.stream.loop import Loop
from tenantferry.stream.progress import TargetProgress
from tenantferry.stream.staging import Stage
from tenantferry.validation import alignment

_ROUND = frozenset({Verb.ROUND})
_APPLY = frozenset({Verb.ROUND, Verb.STREAM, Verb.HOLD})
_HOLD = frozenset({Verb.HOLD})


@dataclass(frozen=True, slots=True)
class Point:
    """
    A call in whose place, or behind which, a process dies.

    :ivar verbs: the steps that come there.
    """

    place: Any
    name: str
    is_after: bool
    verbs: frozenset[Verb]


POINTS: dict[str, Point] = {
    "chunks_planned": Point(engine, "store_chunks", False, _ROUND),
    "position_reset": Point(engine, "reset_stream", True, _ROUND),
    "chunks_forgotten": Point(admitting, "delete_rows", False, _ROUND),
    "rows_deleted": Point(admitting, "delete_rows", True, _ROUND),
    "new_chunks_planned": Point(admitting, "store_chunks", False, _ROUND),
    "tables_admitted": Point(running, "admit_tables", True, _ROUND),
    "caught_up_to_now": Point(engine, "drop_slot", False, _ROUND),
    "snapshot_taken": Point(engine, "start_round", False, _ROUND),
    "caught_up_to_the_snapshot": Point(engine, "assign_chunks", False, _ROUND),
    "chunks_assigned": Point(engine, "_copy", False, _ROUND),
    "rows_written": Point(copying, "mark_chunk_done", False, _ROUND),
    "chunk_marked": Point(copying, "mark_chunk_done", True, _ROUND),
    "chunk_committed": Point(engine, "_finish", False, _ROUND),
    "round_recorded": Point(engine, "_finish", True, _ROUND),
    "changes_staged": Point(Stage, "load", True, _APPLY),
    "changes_written": Point(TargetProgress, "record", False, _APPLY),
    "position_written": Point(TargetProgress, "record", True, _APPLY),
    "changes_committed": Point(Applier, "_commit", True, _APPLY),
    "confirmed": Point(Loop, "_confirm", True, _APPLY),
    "stream_holds": Point(alignment, "exported_snapshot", False, _HOLD),
    "stream_advances": Point(alignment, "advance", False, _HOLD),
    "stream_stands_at_the_snapshot": Point(alignment, "export_snapshot", False, _HOLD),
    "both_sides_seen": Point(alignment, "open_lane", False, _HOLD),
}


def in_process_that_dies(act: Callable[[], object], *, at: str, nth: int) -> bool:
    """
    Run something in a process that is killed, as by the kernel, where it comes to a point.

    :param at: name of one of `POINTS`.
    :param nth: it dies when it comes there for the *nth* time.
    :return: whether it came so far.
    :raises BaseException: what it failed with before.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_act, args=(act, POINTS[at], nth, sender))
    process.start()
    sender.close()
    with receiver:
        try:
            failure = receiver.recv()
        except EOFError:  # it died
            failure = None
    process.join()
    if failure is not None:
        raise failure
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def _act(act: Callable[[], object], point: Point, nth: int, sender: Connection) -> None:
    original = getattr(point.place, point.name)
    calls = 0

    def call_and_die(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == nth and not point.is_after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **kwargs)
        if calls == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(point.place, point.name, call_and_die)
    try:
        act()
    except BaseException as failure:  # noqa: BLE001 - a process' boundary: the test's own raises it
        failure.add_note(traceback.format_exc())
        sender.send(failure)
