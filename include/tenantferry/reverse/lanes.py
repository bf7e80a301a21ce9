"""All lanes: one per tenant that can go back."""

from __future__ import annotations

import os
import queue
import time
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import suppress

from tenantferry.control.graces import Grace
from tenantferry.reverse.change import Shape
from tenantferry.reverse.duty import Duty
from tenantferry.reverse.follower import Follower, LaneSource
from tenantferry.reverse.lane import Lane

# About what one source transaction takes in memory while it is put together; a few times that.
_BATCH_BYTES = 8 * 1024 * 1024
_LEAST_BYTES = 256 * 1024
# A source's commit that is under way when the process ends may take so long.
_END_SECONDS = 3.0


class Lanes:
    """
    The lanes by the number of their grace, and the threads that empty them.

    :param find_source: looks a tenant up; called in a follower's thread.
    :param read_copied: returns the tables that a tenant went live with; called there, too.
    :param memory_bytes: what all lanes together may take.
    """

    def __init__(
        self,
        shapes: list[Shape],
        find_source: Callable[[str], LaneSource],
        read_copied: Callable[[str], AbstractSet[tuple[str, str]]],
        *,
        memory_bytes: int,
        idle_seconds: float,
    ) -> None:
        self._shapes = shapes
        self._find_source = find_source
        self._read_copied = read_copied
        self._memory_bytes = memory_bytes
        self._idle_seconds = idle_seconds
        self._duties: dict[int, Duty] = {}
        self._by_tenant: dict[str, Duty] = {}
        self._followers: dict[int, Follower] = {}
        self._leaving: list[Follower] = []
        self._poked: queue.SimpleQueue[Lane] = queue.SimpleQueue()
        self._readable, self._writable = os.pipe()
        os.set_blocking(self._readable, False)
        os.set_blocking(self._writable, False)
        self._is_closed = False

    def fileno(self) -> int:
        """Return the descriptor that is readable when a follower has done something."""
        return self._readable

    def __iter__(self) -> Iterator[Duty]:
        """Iterate over what each lane is told."""
        return iter(list(self._duties.values()))

    def __len__(self) -> int:
        """Return the number of lanes."""
        return len(self._duties)

    def __contains__(self, grace: int) -> bool:
        """Tell whether a grace has a lane."""
        return grace in self._duties

    def of(self, tenant: str) -> Duty | None:
        """Return what the lane of a tenant is told."""
        return self._by_tenant.get(tenant)

    def open(self, grace: Grace, *, source_position: int) -> Lane:
        """
        Open a lane.

        :param source_position: the source has recorded it once.
        """
        lane = Lane(
            grace,
            self._shapes,
            source_position=source_position,
            memory_bytes=self._share,
            poke=self._poke,
        )
        self._duties[grace.id] = self._by_tenant[grace.tenant] = Duty(lane)
        self._share_memory()
        return lane

    def drop(self, lane: Lane) -> None:
        """Close a lane; what waits in it is forgotten."""
        self._duties.pop(lane.grace.id, None)
        self._by_tenant.pop(lane.grace.tenant, None)
        lane.forget()
        if (follower := self._followers.pop(lane.grace.id, None)) is not None:
            self._leaving.append(follower)
        self._share_memory()

    def collect(self) -> None:
        """Take note of what the followers have done."""
        with suppress(BlockingIOError):
            while os.read(self._readable, 4096):
                pass
        while not self._poked.empty():
            self.start(self._poked.get())

    def start(self, lane: Lane) -> None:
        """Start a follower where there is work and none is there."""
        if lane.grace.id in self._duties and lane.needs_follower():
            follower = Follower(
                lane,
                self._find_source,
                self._read_copied,
                batch_bytes=max(_LEAST_BYTES, min(_BATCH_BYTES, self._share)),
                idle_seconds=self._idle_seconds,
            )
            self._followers[lane.grace.id] = follower
            follower.start()

    def start_all(self) -> None:
        """Do so for every lane: a failed one is tried again when its time has come."""
        for duty in self:
            self.start(duty.lane)
        self._leaving = [follower for follower in self._leaving if not follower.join(0)]

    def end(self) -> None:
        """End all followers at a commit of their source, or without one if that takes too long."""
        for duty in self:
            duty.lane.end()
        followers = [*self._followers.values(), *self._leaving]
        deadline = time.monotonic() + _END_SECONDS
        late = [f for f in followers if not f.join(max(0.0, deadline - time.monotonic()))]
        for follower in late:
            follower.abort()
        stuck = [follower for follower in late if not follower.join(1.0)]
        # A thread that did not end may still write to it.
        if not stuck and not self._is_closed:
            self._is_closed = True
            os.close(self._readable)
            os.close(self._writable)

    @property
    def _share(self) -> int:
        """Half of the memory is for what waits, half for what is being applied."""
        return self._memory_bytes // (2 * max(1, len(self._duties)))

    def _share_memory(self) -> None:
        for duty in self:
            duty.lane.limit_memory(self._share)

    def _poke(self, lane: Lane) -> None:
        self._poked.put(lane)
        # A full pipe is readable already: whoever reads it looks at the whole queue.
        with suppress(BlockingIOError):
            os.write(self._writable, b"!")
