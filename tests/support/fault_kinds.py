"""What can break in the middle of a step, and how it is mended."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import psycopg2

from fault_verbs import VerbProcess
from fault_world import World
from tenantferry.connections import open_connection

_DELAY_SECONDS = 0.03
_FILLER = "filler"


class Clients(Enum):
    """Whose requests a fault may fail: those of clients that are at this side."""

    NOBODY = "nobody"
    AT_SOURCE = "source"
    AT_TARGET = "target"
    EVERYBODY = "everybody"


@dataclass(frozen=True, slots=True)
class Fault:
    """
    Something that breaks.

    :ivar strike: breaks it, while a step stands at its point.
    :ivar heal: mends it. What breaks only what is open needs no mending.
    :ivar lasts_seconds: until it is mended, unless the step has ended before.
    :ivar clients: whose requests it may fail.
    :ivar may_refuse: whether the step that it strikes may ask for a person.
    """

    name: str
    strike: Callable[[World, VerbProcess], None]
    heal: Callable[[World], None] = lambda _: None
    lasts_seconds: float = 0.0
    clients: Clients = Clients.NOBODY
    may_refuse: bool = False

    def __str__(self) -> str:
        return self.name


def _delay(world: World, _: VerbProcess) -> None:
    for proxy in (world.source_proxy, world.target_proxy):
        proxy.delay(_DELAY_SECONDS)


def _undelay(world: World) -> None:
    for proxy in (world.source_proxy, world.target_proxy):
        proxy.heal()


def _fill_disk(world: World, _: VerbProcess) -> None:
    if world.disk is None:
        raise NotImplementedError
    with (world.disk / _FILLER).open("wb") as file:
        while free := _free_bytes(world.disk):
            # The server may take some of it meanwhile.
            with _no_space_suppressed():
                os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, free)


def _free_bytes(disk: Path) -> int:
    found = os.statvfs(disk)
    return found.f_bavail * found.f_frsize


@contextmanager
def _no_space_suppressed() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise


def _empty_disk(world: World) -> None:
    if world.disk is not None:
        (world.disk / _FILLER).unlink()
    # One that could not write its log has ended itself.
    world.target.start()


def _take_slots(world: World, _: VerbProcess) -> None:
    session = open_connection(world.source.superuser, purpose="slots", autocommit=True)
    number = 0
    try:
        with session.cursor() as cursor:
            while True:
                number += 1
                cursor.execute(
                    "SELECT pg_create_physical_replication_slot(%s)", (f"taken_{number}",)
                )
    except psycopg2.errors.ConfigurationLimitExceeded:  # that was the last one
        session.close()


def _give_slots_back(world: World) -> None:
    world.source.psql(
        "-c",
        r"SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots"
        r" WHERE slot_name LIKE 'taken\_%'",
    )


KILLED = Fault("process killed", lambda _, process: process.kill())
SOURCE_KILLED = Fault(
    "source killed",
    lambda world, _: world.source.kill(),
    lambda world: world.source.start(),
    clients=Clients.AT_SOURCE,
)
TARGET_KILLED = Fault(
    "target killed",
    lambda world, _: world.target.kill(),
    lambda world: world.target.start(),
    clients=Clients.AT_TARGET,
)
POOLER_KILLED = Fault(
    "pooler killed",
    lambda world, _: world.pooler.kill(),
    lambda world: world.pooler.start(),
    clients=Clients.EVERYBODY,
)
SOURCE_CUT = Fault("source cut off", lambda world, _: world.source_proxy.cut())
TARGET_CUT = Fault("target cut off", lambda world, _: world.target_proxy.cut())
SLOW = Fault("slow network", _delay, _undelay, lasts_seconds=2.0)
SOURCE_LOST = Fault("source half-open", lambda world, _: world.source_proxy.swallow())
TARGET_LOST = Fault("target half-open", lambda world, _: world.target_proxy.swallow())
DISK_FULL = Fault(
    "target disk full", _fill_disk, _empty_disk, lasts_seconds=3.0, clients=Clients.AT_TARGET
)
NO_FILES = Fault("own disk full", lambda _, process: process.go_on(without_files=True))
NO_SLOTS = Fault("no free slot", _take_slots, _give_slots_back, lasts_seconds=3.0, may_refuse=True)

FAULTS = (
    KILLED, SOURCE_KILLED, TARGET_KILLED, POOLER_KILLED, SOURCE_CUT, TARGET_CUT, SLOW, SOURCE_LOST,
    TARGET_LOST, DISK_FULL, NO_FILES, NO_SLOTS,
)  # fmt: skip
