"""A fleet that works has no finding, whatever its tenant is about."""

from __future__ import annotations

from collections.abc import Callable

from move_stage import Stage
from tenantferry.moves.cutover import cutover
from tenantferry.moves.rollback import rollback
from tenantferry.watch.checks import CHECKS
from tenantferry.watch.watched import Watched

Declare = Callable[..., Watched]


def find(watched: Watched) -> list[str]:
    return [
        f"{name}: {found.subject}: {found.detail}"
        for name, check in CHECKS.items()
        for found in check(watched).findings
    ]


def test_a_tenant_on_its_way(stage: Stage, declare: Declare) -> None:
    assert find(declare(move=stage.move)) == []


def test_a_tenant_that_went_live_and_one_that_went_back(stage: Stage, declare: Declare) -> None:
    watched = declare(move=stage.move)
    with stage.reversing():
        cutover(stage.move)
        in_grace = find(watched)
        rollback(stage.move)
        with stage.streaming(run_id=None):
            back = find(watched)

    assert in_grace == []
    assert back == []


def test_an_outage_is_told_by_the_check_it_belongs_to(stage: Stage, declare: Declare) -> None:
    watched = declare(move=stage.move, stalled_seconds=0.001)
    with stage.reversing():
        cutover(stage.move)
    # Nobody reads the reverse slot any more.
    assert {finding.partition(":")[0] for finding in find(watched)} == {"lag_and_streams"}
