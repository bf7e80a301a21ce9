from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from psycopg2.extensions import connection

from tenantferry.errors import PermanentError
from tenantferry.watch.graces import acknowledge_losses, check_graces
from tenantferry.watch.watched import Watched

Declare = Callable[..., Watched]
Register = Callable[..., None]
Run = Callable[..., list[tuple[Any, ...]]]


@pytest.fixture
def grace(run: Run, register: Register) -> Callable[[str], None]:
    """A tenant that can go back for a while."""

    def grace(left: str) -> None:
        register("live")
        run(
            "INSERT INTO tenantferry.write_pauses (tenant, deadline, resumed_at)"
            " VALUES ('acme', now(), now())"
        )
        run(
            "INSERT INTO tenantferry.graces (tenant, attempt, start_lsn, ends_at)"
            " SELECT 'acme', max(id), '0/1', now() + %s::interval FROM tenantferry.write_pauses",
            left,
        )

    return grace


def lose(run: Run) -> None:
    run("UPDATE tenantferry.graces SET lost_at = now(), lost_reason = 'The slot is gone.'")


def find(watched: Watched) -> list[str]:
    return [f"{found.subject}: {found.detail}" for found in check_graces(watched).problems]


@pytest.mark.parametrize("left", ["25 hours", "-1 hour"], ids=["long", "over"])
def test_a_grace_that_does_not_end_soon_is_no_finding(
    declare: Declare, grace: Callable[[str], None], left: str
) -> None:
    grace(left)

    report = check_graces(declare())

    assert report.findings == []
    assert report.looks[0].subject == 'grace of tenant "acme"'


def test_a_grace_that_ends_soon_is_a_finding(
    declare: Declare, grace: Callable[[str], None]
) -> None:
    grace("23 hours")

    assert find(declare(grace_ends_hours=0)) == []
    (finding,) = find(declare())

    assert finding.startswith('tenant "acme": Its way back ends in 23.0 hours')


def test_the_end_of_a_grace_is_told_once_and_again_where_it_is_moved(
    declare: Declare, grace: Callable[[str], None], run: Run
) -> None:
    grace("23 hours")
    assert len(find(declare())) == 1
    assert find(declare()) == []

    run("UPDATE tenantferry.graces SET ends_at = ends_at - interval '1 hour'")

    assert len(find(declare())) == 1
    assert find(declare()) == []


def test_a_lost_way_back_is_a_finding_until_a_person_takes_note_of_it(
    declare: Declare, grace: Callable[[str], None], run: Run, target: connection
) -> None:
    grace("7 days")
    lose(run)

    (finding,) = find(declare())
    acknowledge_losses(target, ["acme"])

    assert "has lost its way back" in finding
    assert "The slot is gone." in finding
    assert find(declare()) == []


def test_taking_note_twice_keeps_the_first_time(
    grace: Callable[[str], None], run: Run, target: connection
) -> None:
    grace("7 days")
    lose(run)

    acknowledge_losses(target, ["acme"])
    first = run("SELECT loss_seen_at FROM tenantferry.graces")
    acknowledge_losses(target, ["acme"])

    assert run("SELECT loss_seen_at FROM tenantferry.graces") == first


@pytest.mark.parametrize("tenant", ["acme", "no such"])
def test_only_a_loss_can_be_taken_note_of(
    grace: Callable[[str], None], target: connection, tenant: str
) -> None:
    grace("7 days")

    with pytest.raises(PermanentError, match="has not lost its way back"):
        acknowledge_losses(target, [tenant])
