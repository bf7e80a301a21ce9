"""A value of 200 MB travels, and no process of ours holds more of it than libpq makes it."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tenantferry.stream.marker import emit_marker

ROOT = Path(__file__).parents[2]
VALUE_MEGABYTES = 200
TEXT = "repeat('x', 200 * 1024 * 1024)"


def _measure(trip: Any, step: str, **order: Any) -> float:
    """Return the megabytes by which a process that takes one step grows."""
    move = trip.move
    process = subprocess.run(
        [sys.executable, ROOT / "tests/support/measured_steps.py"],
        input=json.dumps(
            {
                "step": step,
                "source": dataclasses.asdict(move.source),
                "target": dataclasses.asdict(move.target),
                "tenant": json.loads(move.tenant.model_dump_json()),
                **order,
            }
        ),
        env={"PYTHONPATH": str(ROOT / "include")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    return float(json.loads(process.stdout))


@pytest.mark.timeout(900)
def test_a_value_of_200_mb_arrives_in_bounded_memory(trip: Any) -> None:
    """Costs half a minute of two processors that are idle, and 1 GB of memory in the servers."""
    trip.run(
        "CREATE TABLE files (id integer PRIMARY KEY, data bytea, body text)",
        f"INSERT INTO files (id, data) VALUES (1, convert_to({TEXT}, 'UTF8'))",
    )
    trip.prepare()

    copying = _measure(trip, "backfill")
    trip.run(
        f"INSERT INTO files (id, body) VALUES (2, {TEXT})", "UPDATE files SET id = 3 WHERE id = 1"
    )
    streaming = _measure(trip, "stream", lsn=emit_marker(trip.source, trip.move.tenant))
    with trip.streaming():
        comparing = _measure(trip, "validate")

    trip.compare("md5({}::text)")
    # libpq holds a message twice, while it is read; the driver hands over a third copy.
    assert copying < 3.3 * VALUE_MEGABYTES
    assert streaming < 3.3 * VALUE_MEGABYTES
    assert comparing < 0.3 * VALUE_MEGABYTES
