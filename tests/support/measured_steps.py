"""One step of a move in a process of its own: tell how much memory it took at its most."""

from __future__ import annotations

import json
import resource
import sys
import threading
from typing import Any

from tenantferry.connections import ConnectionParams
from tenantferry.fleet import Tenant
from tenantferry.moves.backfill import backfill
from tenantferry.moves.move import Move
from tenantferry.moves.stream import stream
from tenantferry.moves.validate import validate
from tenantferry.stream.handshake import wait_for_position
from tenantferry.traffic.router import Router


def main(order: dict[str, Any]) -> None:
    """
    Take a step, and print the megabytes by which this process grew.

    :param order: step, source, target, tenant; of a stream also the LSN to reach.
    """
    source, target = (ConnectionParams(**order[side]) for side in ("source", "target"))
    move = Move(
        tenant=Tenant.model_validate(order["tenant"]),
        target_regions=frozenset(),
        source=source,
        target=target,
        router=Router([]),
        target_address=(target.host, target.port, target.database),
        probe=source,
        run_id="test",
    )
    before = _peak_megabytes()
    if order["step"] == "backfill":
        backfill(move, report=lambda _: None)
    elif order["step"] == "validate":
        validate(move)
    else:
        _stream_to(move, order["lsn"])
    sys.stdout.write(json.dumps(_peak_megabytes() - before))


def _stream_to(move: Move, lsn: int) -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stream, args=(move,), kwargs={"stop": stop})
    thread.start()
    try:
        wait_for_position(move.target, move.tenant.key, lsn, timeout_seconds=600)
    finally:
        stop.set()
        thread.join()


def _peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main(json.load(sys.stdin))
