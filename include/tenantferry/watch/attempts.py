"""Check: no attempt of a cutover or of a rollback is left behind by a machine that was lost."""

from __future__ import annotations

from dataclasses import replace

import psycopg2

from tenantferry.control.direction import Direction
from tenantferry.control.pauses import read_open_pause
from tenantferry.control.phases import AT_TARGET
from tenantferry.control.registry import require_registration
from tenantferry.errors import TenantferryError
from tenantferry.moves.former import settle_former
from tenantferry.moves.move import Move
from tenantferry.moves.sessions import StepBusyError, exclusive_step
from tenantferry.schema.findings import Finding, error
from tenantferry.watch.report import Report
from tenantferry.watch.standings import read_standings
from tenantferry.watch.watched import Watched, bound, open_look

CHECK = "attempts"
# Its guard acts ten seconds after the deadline.
MARGIN_SECONDS = 30.0
# A step that runs has settled what it found, or is the attempt itself.
_STEP_TIMEOUT_SECONDS = 0.1
BUSY_SECONDS = 120.0

_OPEN = """
SELECT tenant, direction, id, extract(epoch FROM clock_timestamp() - deadline)::float8
FROM tenantferry.write_pauses
WHERE undone_at IS NULL AND resumed_at IS NULL
ORDER BY id
"""


def check_attempts(watched: Watched) -> Report:
    """
    Look for attempts that are past their deadline, and bring them to their end.

    Clients may be waiting for it, at the router or before the fence. An attempt that is not flipped
    is undone, one that is flipped is finished.

    :raises TenantferryError: if the target cannot be asked.
    """
    report = Report()
    with open_look(watched.target, what=CHECK) as target:
        if not read_standings(target):
            return report
        with target.cursor() as cursor:
            cursor.execute(_OPEN)
            found = cursor.fetchall()
    for tenant, direction, number, late_seconds in found:
        name = "cutover" if direction == Direction.FORWARD else "rollback"
        subject = f'attempt {number}, a {name} of tenant "{tenant}"'
        report.see(subject, seconds_past_deadline=late_seconds)
        if late_seconds > MARGIN_SECONDS:
            report.findings += _settle(watched, tenant, subject, late_seconds)
    return report


def _settle(watched: Watched, tenant: str, subject: str, late_seconds: float) -> list[Finding]:
    late = f"It was left open {late_seconds:.0f} s past its deadline, as when a machine is lost."
    declared = watched.fleet.tenants.get(tenant)
    if declared is None:
        why = watched.unusable.get(f'tenant "{tenant}"', "The fleet file does not declare it.")
        hint = "Clients may be waiting. Declare the tenant so that it can be used; then clear this."
        return [error(CHECK, subject, f"{late} It could not be settled: {why}", hint)]
    try:
        side = _settle_alone(_bound(watched.move_of(declared)))
    except StepBusyError as busy:
        # Whoever has the tenant settles it first of all, unless it hangs.
        hint = "Clients may be waiting. End that session if it hangs; the next look settles it."
        found = error(CHECK, subject, f"{late} {_capitalize(busy.message)}.", hint)
        return [found] if late_seconds > BUSY_SECONDS else []
    except (TenantferryError, psycopg2.Error) as failure:
        return [
            error(
                CHECK,
                subject,
                f"{late} It could not be settled: {' '.join(str(failure).split())}",
                "Clients may be waiting. Mend that, then clear this task: it goes on settling.",
            )
        ]
    if side is None:
        return []
    return [
        error(
            CHECK,
            subject,
            f"{late} It is settled now: clients work on the {side}.",
            f'Look why no task settled it: see the runs of "migrate_{tenant}" and of'
            ' "rollback_tenant", and whether a worker is gone.',
        )
    ]


def _bound(move: Move) -> Move:
    return replace(move, source=bound(move.source), target=bound(move.target))


def _settle_alone(move: Move) -> str | None:
    """
    Settle what is still open.

    :return: the side that the tenant's clients work on; ``None``: somebody else was quicker.
    """
    key = move.tenant.key
    with exclusive_step(
        move.target, tenant=key, step="watch attempt", timeout_seconds=_STEP_TIMEOUT_SECONDS
    ) as target:
        with target:
            if read_open_pause(target, key) is None:
                return None
        settle_former(move, target)
        with target:
            phase = require_registration(target, key).phase
    return "target" if phase in AT_TARGET else "source"


def _capitalize(text: str) -> str:
    return text[:1].upper() + text[1:]
