"""Check: whose way back is lost, or ends soon."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime

from psycopg2.extensions import connection

from tenantferry.control.graces import Grace, read_graces
from tenantferry.errors import PermanentError
from tenantferry.schema.findings import Finding, error
from tenantferry.watch.report import Report
from tenantferry.watch.standings import read_standings
from tenantferry.watch.watched import Watched, open_look

CHECK = "graces"

_ACKNOWLEDGE = (
    "UPDATE tenantferry.graces SET loss_seen_at = coalesce(loss_seen_at, clock_timestamp())"
    " WHERE tenant = %s AND ended_at IS NULL AND lost_at IS NOT NULL"
)
_ACKNOWLEDGED = (
    "SELECT id FROM tenantferry.graces WHERE ended_at IS NULL AND loss_seen_at IS NOT NULL"
)
_ANNOUNCE = (
    "UPDATE tenantferry.graces SET announced_end = ends_at"
    " WHERE id = %s AND ends_at IS DISTINCT FROM announced_end"
)


def check_graces(watched: Watched) -> Report:
    """
    Look at the time in which live tenants can go back.

    That it ends soon is found once: nobody has to act on it.

    :raises TenantferryError: if the target cannot be asked.
    """
    report = Report()
    with open_look(watched.target, what=CHECK) as target:
        if not read_standings(target):
            return report
        graces = read_graces(target)
        with target.cursor() as cursor:
            cursor.execute(_ACKNOWLEDGED)
            acknowledged = {number for (number,) in cursor}
        now = datetime.now(UTC)
        for grace in graces:
            hours = (grace.ends_at - now).total_seconds() / 3600
            report.see(
                f'grace of tenant "{grace.tenant}"',
                began=f"{grace.started_at:%Y-%m-%d %H:%M %Z}",
                hours_left=round(hours, 2),
                lost=str(grace.lost_reason) if grace.lost_at else "no",
            )
            if grace.lost_at is not None:
                if grace.id not in acknowledged:
                    report.findings.append(_tell_loss(grace))
            elif 0 <= hours < watched.settings.grace_ends_hours and _announce(target, grace):
                report.findings.append(_tell_end(grace, hours))
    return report


def acknowledge_losses(target: connection, tenants: Collection[str]) -> None:
    """
    Record that a person knows of tenants that lost their way back. Knowing it twice is fine.

    :param target: open transaction; the caller commits.
    :raises PermanentError: if one of them has not lost it.
    """
    for tenant in tenants:
        with target.cursor() as cursor:
            cursor.execute(_ACKNOWLEDGE, (tenant,))
            if not cursor.rowcount:
                raise PermanentError(
                    f'tenant "{tenant}" has not lost its way back',
                    detail="There is nothing to take note of. Nothing was changed.",
                    hint="Give the keys of tenants as the check names them.",
                )


def _announce(target: connection, grace: Grace) -> bool:
    """Record that on-call is told when a grace ends, and tell whether that is news."""
    with target.cursor() as cursor:
        cursor.execute(_ANNOUNCE, (grace.id,))
        return bool(cursor.rowcount)


def _tell_loss(grace: Grace) -> Finding:
    return error(
        CHECK,
        f'tenant "{grace.tenant}"',
        f"It has lost its way back at {grace.lost_at:%Y-%m-%d %H:%M %Z}: {grace.lost_reason}"
        " It works on the target as before; its source lacks what was written since.",
        'To take note of it, trigger "watch_fleet" with its key in "acknowledge".',
    )


def _tell_end(grace: Grace, hours: float) -> Finding:
    return error(
        CHECK,
        f'tenant "{grace.tenant}"',
        f"Its way back ends in {hours:.1f} hours, at {grace.ends_at:%Y-%m-%d %H:%M %Z}.",
        'If it has to go back, trigger "rollback_tenant" before. Else there is nothing to do:'
        ' from then on "retire_tenants" may retire its source. This is told once.',
    )
