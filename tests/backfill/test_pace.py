from __future__ import annotations

from tenantferry.backfill.pace import Allowance, Pace


def test_next_allows_the_budget_while_rounds_get_ahead() -> None:
    pace = Pace(60.0)

    assert [pace.next(pending) for pending in (9, 7, 6, 1)] == [Allowance(60.0, 1)] * 4


def test_next_allows_twice_as_much_after_a_round_that_did_not_get_ahead() -> None:
    pace = Pace(60.0)

    assert [pace.next(pending).seconds for pending in (9, 9, 10, 8)] == [60.0, 120.0, 240.0, 240.0]
    assert pace.next(8).chunks == 8
