from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from tenantferry.fleet.window import Day, Window
from tenantferry.waves.windows import find_opening, is_open

BERLIN = ZoneInfo("Europe/Berlin")
NIGHT = Window.model_validate({"from": "22:00", "to": "05:00", "timezone": "Europe/Berlin"})
FRIDAYS = NIGHT.model_copy(update={"days": frozenset({Day.FRIDAY})})


def berlin(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=BERLIN)


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("moment", "expected"),
    [
        ("2026-11-20 21:59:59", False),
        ("2026-11-20 22:00", True),
        ("2026-11-20 23:59:59", True),
        ("2026-11-21 00:00", True),
        ("2026-11-21 04:59:59", True),
        ("2026-11-21 05:00", False),
    ],
)
def test_is_open_from_its_beginning_to_right_before_its_end_across_midnight(
    moment: str, expected: bool
) -> None:
    assert is_open(NIGHT, berlin(moment), timezone="UTC") is expected


@pytest.mark.parametrize(
    ("moment", "expected"),
    [
        ("2026-11-20 01:00", False),  # a Friday, but this night began on Thursday
        ("2026-11-20 23:00", True),
        ("2026-11-21 04:00", True),  # Saturday morning, of Friday's night
        ("2026-11-21 23:00", False),
    ],
)
def test_is_open_counts_the_hours_after_midnight_to_the_day_before(
    moment: str, expected: bool
) -> None:
    assert is_open(FRIDAYS, berlin(moment), timezone="UTC") is expected


def test_is_open_asks_the_clocks_of_the_windows_own_zone() -> None:
    in_utc = NIGHT.model_copy(update={"timezone": None})
    moment = berlin("2026-11-20 22:30")

    assert is_open(NIGHT, moment, timezone="UTC")
    assert not is_open(in_utc, moment, timezone="UTC")
    assert is_open(in_utc, moment, timezone="Europe/Berlin")


def test_a_window_that_ends_when_it_begins_lasts_a_whole_day() -> None:
    whole = Window.model_validate({"from": "22:00", "to": "22:00", "days": ["fri"]})

    moments = [utc("2026-11-20 22:00") + timedelta(hours=hours) for hours in (-1, 0, 23, 24)]

    assert [is_open(whole, m, timezone="UTC") for m in moments] == [False, True, True, False]


@pytest.mark.parametrize(
    ("night", "hours"), [("2026-03-28", 6), ("2026-10-24", 8), ("2026-11-20", 7)]
)
def test_a_night_in_which_the_clocks_change_is_an_hour_shorter_or_longer(
    night: str, hours: int
) -> None:
    noon = berlin(f"{night} 12:00").astimezone(UTC)

    open_minutes = sum(
        is_open(NIGHT, noon + timedelta(minutes=minute), timezone="UTC")
        for minute in range(24 * 60)
    )

    assert open_minutes == hours * 60


def test_find_opening_is_now_where_the_window_is_open_or_there_is_none() -> None:
    now = berlin("2026-11-20 23:00")

    assert find_opening(NIGHT, now, timezone="UTC") == now
    assert find_opening(None, now, timezone="UTC") == now


def test_find_opening_waits_for_the_right_day() -> None:
    opening = find_opening(FRIDAYS, berlin("2026-11-21 05:00"), timezone="UTC")

    assert opening == berlin("2026-11-27 22:00")


def test_find_opening_knows_that_a_beginning_may_be_skipped_or_come_twice() -> None:
    early = Window.model_validate({"from": "02:30", "to": "04:00", "timezone": "Europe/Berlin"})

    spring = find_opening(early, berlin("2026-03-29 00:00"), timezone="UTC")
    autumn = find_opening(early, berlin("2026-10-25 00:00"), timezone="UTC")

    assert spring == utc("2026-03-29 01:00")  # 03:00 there: 02:30 was never shown
    assert autumn == utc("2026-10-25 00:30")  # the first of two


def test_find_opening_skips_a_night_in_which_the_window_never_exists() -> None:
    short = Window.model_validate({"from": "02:15", "to": "02:45", "timezone": "Europe/Berlin"})

    opening = find_opening(short, berlin("2026-03-29 00:00"), timezone="UTC")

    assert opening == berlin("2026-03-30 02:15")


@pytest.mark.parametrize("zone", ["Europe/Berlin", "Africa/Cairo", "America/New_York", "UTC"])
def test_find_opening_is_the_first_open_minute(zone: str) -> None:
    chance = random.Random(zone)
    start = datetime(2026, 1, 1, tzinfo=UTC)
    for _ in range(60):
        window = Window.model_validate(
            {
                "from": f"{chance.randrange(24):02}:{chance.choice((0, 30)):02}",
                "to": f"{chance.randrange(24):02}:{chance.choice((0, 30)):02}",
                "days": chance.sample(list(Day), chance.randint(3, 7)),
            }
        )
        now = start + timedelta(minutes=30 * chance.randrange(365 * 48))

        opening = find_opening(window, now, timezone=zone)

        moments = (now + timedelta(minutes=30 * step) for step in range(6 * 48))
        expected = next((m for m in moments if is_open(window, m, timezone=zone)), None)
        assert opening == expected
