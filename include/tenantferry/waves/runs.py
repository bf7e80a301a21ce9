"""What a wave asks of Airflow, which it does not know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tenantferry.waves.standings import RunLook


class Runs(Protocol):
    """
    The runs of ``migrate_<tenant>``.

    Every method raises `TransientError` if it cannot tell.
    """

    def look(self, tenant: str, run_id: str) -> RunLook | None:
        """Return how a run stands; ``None`` if there is no such run."""

    def find_open(self, tenant: str) -> RunLook | None:
        """Return how the open run of a tenant's Dag stands; ``None`` if there is none."""

    def start(self, tenant: str, run_id: str, *, note: str) -> str:
        """Start a run, unless there is one of this id; return why it cannot be, or nothing."""


@dataclass(frozen=True, slots=True)
class Watched:
    """A run to watch, and how it stood."""

    tenant: str
    run_id: str
    look: RunLook


@dataclass(frozen=True, slots=True)
class Wait:
    """
    A wave waits until one of its runs stands differently, or time has passed.

    :ivar seconds: ``None``: for as long as it takes.
    """

    watched: tuple[Watched, ...]
    seconds: float | None
