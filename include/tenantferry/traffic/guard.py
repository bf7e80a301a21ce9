"""
A process of its own that settles a cutover or a rollback whose process died.

Run as ``python -m tenantferry.traffic.guard``. It reads one JSON object from its standard input
(credentials are in no argument and no environment variable), says ``ready``, and then watches that
pipe: ``armed <attempt> <seconds>``, later ``flipping``, and at the end ``disarm``. Where the pipe
ends without that, it settles the attempt.

Where the time is over, it kills that process first. One that hangs inside a call would go on in the
middle of it: point an alias elsewhere, raise a fence, pause, when all of that is undone already. So
nothing is settled before the end of the pipe proves that the process is gone, and its sessions on
both servers are ended.

While the target cannot be reached, it lets the clients of a cutover go on at the source. Those of a
rollback wait: where they go back to is the target itself.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

import psycopg2

import tenantferry
from tenantferry.connections import ConnectionParams, open_connection
from tenantferry.control.direction import Direction
from tenantferry.errors import TenantferryError, TransientError
from tenantferry.traffic.fence import Fence
from tenantferry.traffic.router import Instance, Router
from tenantferry.traffic.settlement import (
    STEP_NAMES,
    Attempt,
    end_session,
    settle,
    undo_without_target,
)

logger = logging.getLogger(__name__)

_START_TIMEOUT_SECONDS = 30.0
_END_TIMEOUT_SECONDS = 5.0
# The step undoes itself at its deadline, and the end of a process is noticed at once: only one
# that hangs is still there after this.
DEADLINE_MARGIN_SECONDS = 10.0
# As long as clients may wait at all, and longer than a restart of the target takes.
_SETTLE_TIMEOUT_SECONDS = 300.0
_RETRY_SECONDS = 0.5
_GONE_RECHECK_SECONDS = 1.0


class Guard:
    """The end of the pipe that the guarded step holds."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe = pipe

    def arm(self, attempt: int, *, seconds: float) -> None:
        """
        Tell that clients are about to be paused.

        :param seconds: until the step must be through, or must have undone itself.
        :raises TransientError: if the guard is gone.
        """
        self.say(f"armed {attempt} {seconds + DEADLINE_MARGIN_SECONDS}")

    def say_flipping(self) -> None:
        """Tell that from now on only the target knows whom the tenant belongs to."""
        self.say("flipping")

    def disarm(self) -> None:
        """Tell that there is nothing left to settle."""
        # A guard that is gone needs not be told.
        with suppress(TransientError):
            self.say("disarm")

    def say(self, line: str) -> None:
        """
        Send one line.

        :raises TransientError: if the guard is gone.
        """
        try:
            self._pipe.write(f"{line}\n".encode())
            self._pipe.flush()
        except OSError as error:
            raise TransientError(
                "the guard of the write pause ended", detail=str(error), hint="Try again."
            ) from None


@contextmanager
def start_guard(attempt: Attempt, *, fence: Fence, target_pid: int) -> Iterator[Guard]:
    """
    Start a guard and wait until it stands by.

    :param attempt: its id is told later, by `Guard.arm`.
    :param target_pid: the step's session in the target. The guard ends it first, so that what
        it was about to commit is decided. It kills this process if that hangs.
    :raises TransientError: if the guard does not start.
    """
    packages = str(Path(tenantferry.__file__).parent.parent)
    process = subprocess.Popen(
        [sys.executable, "-m", "tenantferry.traffic.guard"],
        cwd="/",
        env={**os.environ, "PYTHONPATH": packages},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # What ends the cutover's process group must not end the guard.
        start_new_session=True,
    )
    try:
        if process.stdin is None or process.stdout is None:
            raise TransientError("the guard of the write pause has no pipe")
        guard = Guard(process.stdin)
        guard.say(_encode(attempt, fence, target_pid))
        readable, _, _ = select.select([process.stdout], [], [], _START_TIMEOUT_SECONDS)
        if not readable or process.stdout.readline() != b"ready\n":
            process.kill()
            raise TransientError(
                "the guard of the write pause did not start",
                hint="What it says stands in the log of this task.",
            )
        yield guard
    finally:
        for pipe in (process.stdin, process.stdout):
            # The end of its input makes it settle, unless it is disarmed.
            with suppress(OSError):
                if pipe is not None:
                    pipe.close()
        # One that is settling is left to it; it ends by itself.
        with suppress(subprocess.TimeoutExpired):
            process.wait(_END_TIMEOUT_SECONDS)


def main() -> None:
    """Stand by."""
    logging.basicConfig(level=logging.INFO, format="guard: %(message)s")
    # The reader of our log may die together with the step.
    logging.raiseExceptions = False
    lines = _Lines(sys.stdin.fileno())
    watched = _decode(lines.read(None) or "{}")
    if watched.parent_pid != os.getppid():
        return
    print("ready", flush=True)
    settle_until_done(_watch(lines, watched))


@dataclass(frozen=True, slots=True)
class _Watched:
    """
    What a guard knows of the step that it watches.

    :ivar fence: of the source.
    :ivar parent_pid: the process of the step.
    :ivar is_flipping: the target may say that the tenant belongs to the other side.
    """

    attempt: Attempt
    fence: Fence
    target_pid: int
    parent_pid: int
    is_flipping: bool = False


class _Lines:
    """Lines of a pipe, each waited for until a deadline."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._read = b""
        self.is_over = False

    def read(self, deadline: float | None) -> str | None:
        """Return the next line; ``None`` at the pipe's end, or at the deadline."""
        while b"\n" not in self._read:
            seconds = None if deadline is None else max(deadline - time.monotonic(), 0)
            readable, _, _ = select.select([self._descriptor], [], [], seconds)
            data = os.read(self._descriptor, 65536) if readable else b""
            if not data:
                self.is_over = bool(readable)
                return None
            self._read += data
        line, _, self._read = self._read.partition(b"\n")
        return line.decode()


def _watch(lines: _Lines, watched: _Watched) -> _Watched | None:
    """Return what is left behind by a step that is gone, or ``None`` where all is well."""
    deadline: float | None = None
    while True:
        line = lines.read(deadline)
        if line is None:
            # Either proves that it is gone, all its threads included. While it lives, however long
            # it takes to go, it may do anything.
            if lines.is_over or os.getppid() != watched.parent_pid:
                break
            _kill(watched)
            deadline = time.monotonic() + _GONE_RECHECK_SECONDS
            continue
        verb, *values = line.split()
        if verb == "armed":
            watched = replace(watched, attempt=replace(watched.attempt, id=int(values[0])))
            deadline = time.monotonic() + float(values[1])
        elif verb == "flipping":
            watched = replace(watched, is_flipping=True)
        elif verb == "disarm":
            return None
    return watched if watched.attempt.id else None


def _kill(watched: _Watched) -> None:
    """End a step that hangs."""
    logger.warning(
        "the %s of tenant %s hangs; killing process %s",
        STEP_NAMES[watched.attempt.direction],
        watched.attempt.tenant,
        watched.parent_pid,
    )
    # It is our parent still, so its id cannot be another's.
    with suppress(ProcessLookupError):
        os.kill(watched.parent_pid, signal.SIGKILL)


def settle_until_done(watched: _Watched | None) -> None:
    """Settle what is left behind; try again where a server does not answer, for a while."""
    if watched is None:
        return
    attempt = watched.attempt
    logger.warning("%s of tenant %s ended early; settling it", attempt.name, attempt.tenant)
    deadline = time.monotonic() + _SETTLE_TIMEOUT_SECONDS
    while True:
        try:
            _settle_once(watched)
        except (TenantferryError, psycopg2.Error) as failure:
            logger.warning("%s", failure)
            if time.monotonic() > deadline:
                return
            time.sleep(_RETRY_SECONDS)  # until a server that is down comes back
        else:
            logger.info("done")
            return


def _settle_once(watched: _Watched) -> None:
    attempt = watched.attempt
    try:
        target = open_connection(attempt.target, purpose=f"guard {attempt.tenant}")
    except TenantferryError:
        # Nobody but the step itself could have flipped it, and it had not begun to.
        if not watched.is_flipping:
            undo_without_target(attempt, watched.fence)
        raise
    with closing(target):
        # Its last words could otherwise still arrive.
        end_session(target, watched.target_pid, tenant=attempt.tenant, direction=attempt.direction)
        settle(attempt, target, reason="its process ended, or its time was over")


def _encode(attempt: Attempt, fence: Fence, target_pid: int) -> str:
    return json.dumps(
        {
            "direction": attempt.direction,
            "tenant": attempt.tenant,
            "alias": attempt.alias,
            "slot": attempt.slot,
            "run_id": attempt.run_id,
            "source": _encode_params(attempt.source),
            "target": _encode_params(attempt.target),
            "instances": [
                {
                    "name": instance.name,
                    "admin": _encode_params(instance.admin),
                    "aliases_file": str(instance.aliases_file.resolve()),
                }
                for instance in attempt.router.instances
            ],
            "fence": fence.to_json(),
            "source_pid": attempt.source_pid,
            "target_pid": target_pid,
            "parent_pid": os.getpid(),
        }
    )


def _encode_params(params: ConnectionParams) -> dict[str, Any]:
    return {**asdict(params), "options": dict(params.options)}


def _decode(text: str) -> _Watched:
    told: Mapping[str, Any] = json.loads(text)
    instances = [
        Instance(told["name"], ConnectionParams(**told["admin"]), Path(told["aliases_file"]))
        for told in told["instances"]
    ]
    attempt = Attempt(
        id=0,
        direction=Direction(told["direction"]),
        tenant=told["tenant"],
        alias=told["alias"],
        slot=told["slot"],
        source=ConnectionParams(**told["source"]),
        target=ConnectionParams(**told["target"]),
        router=Router(instances),
        run_id=told["run_id"],
        source_pid=told["source_pid"],
    )
    return _Watched(attempt, Fence.from_json(told["fence"]), told["target_pid"], told["parent_pid"])


if __name__ == "__main__":
    main()
