"""Check: what is declared can be used, and every server that the fleet needs answers."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from psycopg2.extensions import connection

from tenantferry.control.phases import Phase
from tenantferry.errors import TenantferryError
from tenantferry.schema.findings import Finding, error
from tenantferry.watch.asking import Answered, Place, ask_each, find_places, group_by_server
from tenantferry.watch.report import Report
from tenantferry.watch.standings import IN_FLIGHT, Standing, read_standings
from tenantferry.watch.watched import UnreachableError, Watched, open_look

CHECK = "servers"


def check_servers(watched: Watched) -> Report:
    """
    Look whether the fleet's declaration and its servers can be used.

    A source is asked where its tenant is on its way or can go back. Of a server that has no such
    source, one that is to be moved is asked.
    """
    report = Report()
    for subject, why in sorted(watched.unusable.items()):
        report.findings.append(
            error(CHECK, subject, why, "Mend it in the fleet file or in Airflow's connections.")
        )
    standings = _look_at_target(watched, report)
    report.findings += _find_undeclared(watched, standings)
    wanted = [
        tenant for tenant in watched.fleet.tenants.values() if _is_wanted(standings.get(tenant.key))
    ]
    places, unknown = find_places(watched, wanted)
    for tenant, why in unknown.items():
        report.findings.append(
            error(CHECK, f'source of tenant "{tenant}"', why, "Mend the Airflow connection.")
        )
    answers = ask_each(_choose(places, standings), _time_question, what=CHECK)
    for answered in answers:
        milliseconds = None if isinstance(answered.answer, TenantferryError) else answered.answer
        report.see(str(answered.place), milliseconds=milliseconds)
    report.findings += _tell_failures(answers, places)
    return report


def _look_at_target(watched: Watched, report: Report) -> dict[str, Standing]:
    place = Place(watched.target, watched.fleet.target.conn_id)
    try:
        with open_look(watched.target, what=CHECK) as target:
            report.see(str(place), milliseconds=_time_question(target, place))
            return read_standings(target)
    except TenantferryError as failure:
        report.see(str(place), milliseconds=None)
        report.findings.append(
            error(
                CHECK,
                "target",
                _describe(failure),
                "All tenants that are live stand still with it. Bring it back; then every stream"
                " goes on by itself.",
            )
        )
        return {}


def _find_undeclared(watched: Watched, standings: dict[str, Standing]) -> Iterable[Finding]:
    for standing in standings.values():
        is_kept = standing.phase in IN_FLIGHT or standing.in_grace
        if is_kept and standing.tenant not in watched.fleet.tenants:
            yield error(
                CHECK,
                f'tenant "{standing.tenant}"',
                f'It is in phase "{standing.phase}", and the fleet file does not declare it, or not'
                " so that it can be used. Its slot keeps log until a disk is full.",
                'Declare it again; then go on with its move, or trigger "abort_tenant".',
            )


def _is_wanted(standing: Standing | None) -> bool:
    return standing is None or standing.phase is Phase.REGISTERED or standing.is_moving


def _choose(places: Sequence[Place], standings: dict[str, Standing]) -> list[Place]:
    moving = {standing.tenant for standing in standings.values() if standing.is_moving}
    chosen: list[Place] = []
    for group in group_by_server(places).values():
        needed = [place for place in group if place.tenant and place.tenant.key in moving]
        chosen += needed or group[:1]
    return chosen


def _time_question(session: connection, place: Place) -> float:  # noqa: ARG001 - one of ask_each
    began = time.monotonic()
    with session.cursor() as cursor:
        cursor.execute("SELECT 1")
    return round((time.monotonic() - began) * 1000, 2)


def _tell_failures(
    answers: Sequence[Answered[float]], places: Sequence[Place]
) -> Iterable[Finding]:
    """Tell a server that is gone once, with all whose sources it holds."""
    servers = group_by_server(places)
    told: set[TenantferryError] = set()
    for place, failure in ((answered.place, answered.answer) for answered in answers):
        if not isinstance(failure, TenantferryError) or failure in told:
            continue
        told.add(failure)
        is_server = isinstance(failure, UnreachableError)
        concerned = servers[place.server] if is_server else [place]
        keys = ", ".join(sorted(other.tenant.key for other in concerned if other.tenant))
        yield error(
            CHECK,
            f"server {place.server}" if is_server else str(place),
            f"{_describe(failure)} Tenants: {keys}.",
            f'Bring it back, or mend Airflow connection "{place.conn_id}". Streams from it and to'
            " it go on by themselves.",
        )


def _describe(failure: TenantferryError) -> str:
    return f"{failure.message[:1].upper()}{failure.message[1:]}. {failure.detail}".strip()
