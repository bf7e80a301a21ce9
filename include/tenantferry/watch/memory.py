"""What former looks saw: a rate, and how long something has not been well, need more than one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import linear_regression

from psycopg2.extensions import connection
from psycopg2.extras import execute_values

from tenantferry.fleet.operation import Watch

# What is seen in less time says more about one backfill, or one batch, than about a rate.
RATE_SECONDS = 3600.0

_INSERT = "INSERT INTO tenantferry.observations (place, subject, is_well, bytes) VALUES %s"
_PRUNE = (
    "DELETE FROM tenantferry.observations"
    " WHERE seen_at < clock_timestamp() - make_interval(secs => %s)"
)
_SIZES = """
SELECT place, subject, is_well, bytes, extract(epoch FROM clock_timestamp() - seen_at)::float8
FROM tenantferry.observations
WHERE bytes IS NOT NULL
"""
_UNWELL = """
SELECT place, subject, extract(epoch FROM clock_timestamp() - min(seen_at))::float8
FROM tenantferry.observations AS unwell
WHERE NOT is_well AND NOT EXISTS (
    SELECT FROM tenantferry.observations AS later
    WHERE later.place = unwell.place AND later.subject = unwell.subject
        AND later.seen_at > unwell.seen_at AND later.is_well
)
GROUP BY place, subject
"""

Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Observation:
    """
    One look at one thing.

    :ivar place: address of a slot's server, or direction of a stream.
    :ivar subject: a slot, or the tenant of a stream.
    :ivar is_well: whether the slot is read, whether the stream's lag is known.
    :ivar bytes: log that the slot keeps back; ``None`` is unknown.
    :ivar age_seconds: how long ago it was; 0 is now.
    """

    place: str
    subject: str
    is_well: bool
    bytes: int | None = None
    age_seconds: float = 0.0

    @property
    def key(self) -> Key:
        """What was looked at."""
        return self.place, self.subject


def read_former_sizes(target: connection) -> dict[Key, list[Observation]]:
    """Return the former looks at each thing's size."""
    found: dict[Key, list[Observation]] = {}
    with target.cursor() as cursor:
        cursor.execute(_SIZES)
        for observation in (Observation(*row) for row in cursor):
            found.setdefault(observation.key, []).append(observation)
    return found


def read_unwell_seconds(target: connection) -> dict[Key, float]:
    """Return since when each thing that was not well at the last look has not been."""
    with target.cursor() as cursor:
        cursor.execute(_UNWELL)
        return {(place, subject): seconds for place, subject, seconds in cursor}


def remember(
    target: connection, observations: Iterable[Observation], *, keep_seconds: float
) -> None:
    """
    Keep this look, and forget looks that are older than *keep_seconds*.

    :param target: open transaction; the caller commits.
    """
    rows = [(o.place, o.subject, o.is_well, o.bytes) for o in observations]
    with target.cursor() as cursor:
        execute_values(cursor, _INSERT, rows)
        cursor.execute(_PRUNE, (keep_seconds,))


def keep_seconds(settings: Watch) -> float:
    """Return how long looks are kept: as long as any threshold is told from them, and more."""
    return 3 * max(RATE_SECONDS, settings.slot_inactive_seconds, settings.lag_seconds)


def measure_growth(now: Observation, former: Sequence[Observation]) -> float | None:
    """
    Return how fast something grows, in bytes per second: the slope of the line through all looks.

    :return: ``None`` is unknown: they do not reach back far enough.

    >>> measure_growth(Observation("db1", "slot", True, 7300), [
    ...     Observation("db1", "slot", True, 100, age_seconds=7200)])
    1.0
    """
    points = [(-look.age_seconds, look.bytes) for look in (*former, now) if look.bytes is not None]
    if now.bytes is None or not points or -min(points)[0] < RATE_SECONDS:
        return None
    ages, sizes = zip(*points, strict=True)
    return linear_regression(ages, sizes).slope
