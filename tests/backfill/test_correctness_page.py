from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "correctness.md"


def test_every_test_that_the_page_names_is_there() -> None:
    named = set(re.findall(r"`(test_\w+)`", PAGE.read_text("utf-8")))
    written = {
        name
        for file in HERE.glob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", file.read_text("utf-8"), re.MULTILINE)
    }

    assert named - written == set()


def test_the_page_tells_of_every_order_of_events_that_is_tested() -> None:
    page = PAGE.read_text("utf-8")
    orders = [
        name
        for file in (
            "test_rounds_orders.py",
            "test_rounds_tables.py",
            "test_rounds_new_tables.py",
            "test_rounds_guards.py",
        )
        for name in re.findall(r"^def (test_\w+)", (HERE / file).read_text("utf-8"), re.MULTILINE)
        if not name.startswith("test_without_")
    ]

    assert [name for name in orders if name not in page] == []
