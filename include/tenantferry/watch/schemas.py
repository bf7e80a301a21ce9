"""Check: source and target still describe the tables of every tenant on its way alike."""

from __future__ import annotations

from collections.abc import Iterator

from psycopg2.extensions import connection

from tenantferry.control.phases import Phase
from tenantferry.errors import TenantferryError
from tenantferry.fleet import Tenant
from tenantferry.schema.catalog import read_catalog
from tenantferry.schema.database import Catalog
from tenantferry.schema.findings import Finding, error, warning
from tenantferry.schema.left_behind import find_left_behind, left_behind_hint
from tenantferry.schema.retrofit import plan_retrofit
from tenantferry.watch.asking import Place, ask_each, find_places
from tenantferry.watch.report import Report
from tenantferry.watch.standings import IN_FLIGHT, Standing, read_standings
from tenantferry.watch.watched import Watched, open_look

CHECK = "schemas"

_PREPARED = IN_FLIGHT | {Phase.PREPARED}


def check_schemas(watched: Watched) -> Report:
    """
    Compare the catalogs of both sides, of tenants that are prepared and of those that can go back.

    :raises TenantferryError: if the target cannot be asked.
    """
    report = Report()
    with open_look(watched.target, what=CHECK) as target:
        standings = read_standings(target)
        compared = {
            key: standing
            for key, standing in standings.items()
            if standing.phase in _PREPARED or standing.in_grace
        }
        if not compared:
            return report
        theirs = read_catalog(target)
        places, _ = find_places(
            watched, [t for t in watched.fleet.tenants.values() if t.key in compared]
        )
        for answered in ask_each(places, _read_source, what=CHECK):
            tenant, answer = answered.place.tenant, answered.answer
            if tenant is None:
                continue
            if isinstance(answer, TenantferryError):
                report.see(str(answered.place), changes=None)
                report.findings.append(
                    warning(CHECK, str(answered.place), f"It is unknown: {answer.message}.")
                )
                continue
            standing = compared[tenant.key]
            changes = plan_retrofit(answer, theirs, tenant).changes
            report.see(f'tenant "{tenant.key}"', tables=len(answer.tables), changes=len(changes))
            report.findings += _judge_changes(standing, changes)
            report.findings += _find_left_behind(target, tenant, standing, answer, theirs)
    return report


def _read_source(session: connection, place: Place) -> Catalog:  # noqa: ARG001 - one of ask_each
    return read_catalog(session)


def _judge_changes(standing: Standing, changes: tuple[str, ...]) -> Iterator[Finding]:
    if not changes:
        return
    subject = f'tenant "{standing.tenant}"'
    detail = " ".join(changes)
    if standing.in_grace:
        yield error(
            CHECK,
            subject,
            f"Source and target are not alike any more, so it could not go back: {detail}",
            "Make the same change on its source, as the tables' owner with"
            " default_transaction_read_only = off; or keep the tenant on the target.",
        )
    else:
        yield error(
            CHECK,
            subject,
            f"The schema of its source changed since it was prepared: {detail}",
            'Undo the change on the source, or clear "preflight" of Dag'
            f' "migrate_{standing.tenant}" and those after it: the target is brought to it, or it'
            " says why that cannot be.",
        )


def _find_left_behind(
    target: connection, tenant: Tenant, standing: Standing, source: Catalog, theirs: Catalog
) -> Iterator[Finding]:
    """Find tables in which the tenant has rows that its source has no table for."""
    known = {table.qualified for table in source.tables}
    for label in find_left_behind(target, tenant, known, theirs.tables):
        fact = f'It has rows in table "{label}" of the target, and its source has no such table'
        subject = f'tenant "{tenant.key}"'
        if standing.in_grace:
            detail = f"{fact}: they would be left behind if it went back."
            hint = "Create the table on its source, or keep the tenant on the target."
        else:
            detail = f"{fact} any more: it cannot be validated."
            hint = left_behind_hint(tenant, [label])
        yield error(CHECK, subject, detail, hint)
