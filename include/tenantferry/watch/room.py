"""How much log a slot keeps back, and when there is no room for more."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tenantferry.fleet.operation import Watch
from tenantferry.schema.findings import Finding, error
from tenantferry.watch.log_servers import LogServer, SeenSlot

CHECK = "slots and wal"
# While a backfill, or another step, has the slot, it keeps back what is written; that ends with the
# step. Only what cannot wait for that is told.
MOVING_HOURS = 3.0
_GIB = 1024**3


@dataclass(frozen=True, slots=True)
class Room:
    """
    What is left for the log that one slot keeps.

    :ivar bytes: until the slot is lost or the disk is full; ``None``: nothing says it.
    :ivar growth: bytes per second by which what it keeps has grown; ``None`` is unknown.
    :ivar end: what happens when there is none left.
    """

    bytes: int | None
    growth: float | None
    end: str

    @property
    def hours(self) -> float | None:
        """Until there is none left; infinite where nothing grows, ``None`` where unknown."""
        if self.bytes is None:
            return None
        if self.bytes <= 0:
            return 0.0
        if self.growth is None:
            return None
        return self.bytes / self.growth / 3600 if self.growth > 0 else float("inf")


def measure_room(
    server: LogServer, slot: SeenSlot, *, disk_bytes: int | None, growth: float | None
) -> Room:
    """
    Find out which comes first.

    :param disk_bytes: how large the server's log may get; ``None``: nobody has declared it.
    """
    rooms = []
    if slot.safe_bytes is not None:
        rooms.append((slot.safe_bytes, "the slot is lost (max_slot_wal_keep_size)"))
    if disk_bytes is not None:
        rooms.append((disk_bytes - server.log_bytes, "the disk of the log is full"))
    left, end = min(rooms, default=(None, "nothing says when"))
    return Room(left, growth, end)


def judge_room(
    subject: str, slot: SeenSlot, room: Room, settings: Watch, *, is_moving: bool
) -> Iterator[Finding]:
    """
    Tell a slot that is about to be lost, or to fill a disk.

    :param is_moving: whether a step of its tenant runs.
    """
    limit_hours = min(settings.wal_hours, MOVING_HOURS) if is_moving else settings.wal_hours
    if slot.is_lost or slot.kept_bytes is None:
        return
    kept = f"It keeps back {_tell(slot.kept_bytes)} of log"
    hint = "Make its reader go on, or drop the slot. Else raise the limit, or enlarge the disk."
    if slot.wal_status == "unreserved":
        yield error(CHECK, subject, f"{kept}; the next checkpoint takes it away.", hint)
    elif room.hours is not None and room.hours < limit_hours:
        rate = "" if room.growth is None else f", {_tell(room.growth * 3600)} more per hour"
        yield error(
            CHECK,
            subject,
            f"{kept}{rate}. In {room.hours:.1f} hours {room.end}: {_tell(room.bytes or 0)} are"
            " left.",
            hint,
        )
    elif room.bytes is None and slot.kept_bytes > settings.wal_kept_bytes:
        yield error(
            CHECK,
            subject,
            f"{kept}, more than wal_kept_bytes ({_tell(settings.wal_kept_bytes)}). How much room is"
            " left is unknown.",
            f"{hint} Set max_slot_wal_keep_size there, or declare its wal_disk_bytes.",
        )


def _tell(size: float) -> str:
    return f"{size / _GIB:.2f} GiB" if abs(size) >= _GIB / 100 else f"{size:.0f} bytes"
