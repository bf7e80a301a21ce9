"""Whether the server that answers as the source has all that the target has of it."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass

from tenantferry.connections import ConnectionParams, open_replication_connection
from tenantferry.control.streams import StreamRecord
from tenantferry.errors import CopyAgainError
from tenantferry.lsn import format_lsn
from tenantferry.timelines import read_switch_point, read_timeline

COPY_AGAIN = 'The tenant must be copied again: clear the task "backfill" and those after it.'


class ForkedError(CopyAgainError):
    """The source failed over to a server that never had all that the target has."""


@dataclass(frozen=True, slots=True)
class Standing:
    """
    Where a stream stands on the timeline of its source.

    :ivar confirmed: LSN beyond which we never confirmed a slot on this timeline.
    :ivar switch_point: where the server left the timeline that the stream followed before; ``None``
        if it follows the same one still.
    """

    timeline: int
    confirmed: int
    switch_point: int | None


def find_standing(source_params: ConnectionParams, record: StreamRecord) -> Standing:
    """
    Check that P is a position in the log of the server that is the source now.

    A standby that was promoted goes on from where it had got to. What the old primary committed
    after that is not on it, but may be in the target; its own log uses the same positions again.

    :raises ForkedError: if P is beyond what the two servers share.
    """
    purpose = f"stream {record.tenant} timeline"
    with closing(open_replication_connection(source_params, purpose=purpose)) as walsender:
        timeline = read_timeline(walsender)
        if record.timeline in (None, timeline):
            return Standing(timeline, record.confirmed, None)
        switch_point = read_switch_point(walsender, former=record.timeline, timeline=timeline)
    if switch_point is None or record.position > switch_point:
        left = "never" if switch_point is None else f"only up to {format_lsn(switch_point)}"
        raise ForkedError(
            f'source of tenant "{record.tenant}" lacks transactions that the target has',
            detail=f"It failed over: it is on timeline {timeline}, and was {left} on timeline"
            f" {record.timeline}, of which the target has all before"
            f" {format_lsn(record.position)}.",
            hint=f"{COPY_AGAIN} Synchronous replication, or from PostgreSQL 17 on"
            " synchronized_standby_slots, keeps a standby from falling behind the target.",
        )
    return Standing(timeline, min(record.confirmed, switch_point), switch_point)
