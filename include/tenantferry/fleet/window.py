"""When a tenant may be touched: a part of the day, on some days of the week."""

from __future__ import annotations

from datetime import time
from enum import StrEnum
from typing import Annotated
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BeforeValidator, Field

from tenantferry.fleet.base import Declared


class Day(StrEnum):
    """A day of the week, in the order of `datetime.date.weekday`."""

    MONDAY = "mon"
    TUESDAY = "tue"
    WEDNESDAY = "wed"
    THURSDAY = "thu"
    FRIDAY = "fri"
    SATURDAY = "sat"
    SUNDAY = "sun"


def _check_timezone(name: str) -> str:
    try:
        ZoneInfo(name)
    # A name that leads out of the folder of time zones, or to one of its folders.
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(
            f'there is no time zone "{name}"; write one such as Europe/Berlin'
        ) from None
    return name


def _require_text(value: object) -> object:
    # YAML reads 22:00 without quotes as the number 1320, which pydantic takes for seconds.
    if isinstance(value, int):
        raise ValueError("put the time in quotes, e.g. '22:00'")  # noqa: TRY004 - pydantic takes it
    return value


def _require_local(value: time) -> time:
    if value.tzinfo is not None:
        raise ValueError("say the time zone in the field timezone")
    return value


Timezone = Annotated[str, AfterValidator(_check_timezone)]
LocalTime = Annotated[time, BeforeValidator(_require_text), AfterValidator(_require_local)]


class Window(Declared):
    """
    When a wave may start a tenant's move.

    :ivar start: field ``from``; by the clocks on the wall there, whatever the season.
    :ivar end: field ``to``, exclusive. Not after ``from``: it is on the next day.
    :ivar days: on which it begins; what lies after midnight belongs to the day before.
    :ivar timezone: by default that of ``waves``.
    """

    start: LocalTime = Field(alias="from")
    end: LocalTime = Field(alias="to")
    days: Annotated[frozenset[Day], Field(min_length=1)] = frozenset(Day)
    timezone: Timezone | None = None
