"""
Whether a tenant's window is open, and when it opens next.

Everything is decided by the clocks on the wall of its time zone, as people mean it: a window from
22:00 to 05:00 has seven hours, and one more or less in the nights in which the clocks change.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from tenantferry.fleet.window import Day, Window

_WEEK = tuple(Day)
_MINUTE = timedelta(minutes=1)


def is_open(window: Window, now: datetime, *, timezone: str) -> bool:
    """
    Tell whether a move may be started.

    :param now: with a time zone, whichever.
    :param timezone: for a window that names none.
    """
    local = now.astimezone(ZoneInfo(window.timezone or timezone))
    wall, today = local.time(), local.date()
    if window.start < window.end:
        return _begins_on(window, today) and window.start <= wall < window.end
    # It ends on the day after, or lasts a whole day.
    began_yesterday = wall < window.end and _begins_on(window, today - timedelta(days=1))
    return began_yesterday or (wall >= window.start and _begins_on(window, today))


def find_opening(window: Window | None, now: datetime, *, timezone: str) -> datetime | None:
    """
    Return the first moment from *now* on, in UTC, at which a move may be started.

    :param window: ``None``: always open.
    :return: *now* itself where it is open; ``None`` if it does not open within a week and a day.
    """
    if window is None or is_open(window, now, timezone=timezone):
        return now.astimezone(UTC)
    zone = ZoneInfo(window.timezone or timezone)
    today = now.astimezone(zone).date()
    # Eight days: today's beginning may be over, or be one that the clocks skip.
    for offset in range(9):
        opening = _find_beginning(today + timedelta(days=offset), window.start, zone)
        if opening > now and is_open(window, opening, timezone=timezone):
            return opening
    return None


def show_time(moment: datetime | None, *, timezone: str) -> str:
    """Return a moment as the clocks of *timezone* show it."""
    if moment is None:
        return "an unknown time"
    return f"{moment.astimezone(ZoneInfo(timezone)):%Y-%m-%d %H:%M %Z}"


def _begins_on(window: Window, day: date) -> bool:
    return _WEEK[day.weekday()] in window.days


def _find_beginning(day: date, start: time, zone: ZoneInfo) -> datetime:
    """Return when the clocks first show *start*, or a later time where they skip it."""
    # Of two equal times in an autumn night it is the first. In a spring night these two lie
    # before and after the hour that the clocks skip.
    wall = datetime.combine(day, start)
    moment, latest = sorted(wall.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
    while moment < latest and moment.astimezone(zone).replace(tzinfo=None) < wall:
        moment += _MINUTE
    return moment
