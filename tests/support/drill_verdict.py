"""How a drill must end: nothing lost, the tenant on exactly one side, in a phase it may be in."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass

from live_fleet import DrillFailedError, LiveFleet
from tenantferry.connections import ConnectionParams, open_client_connection
from tenantferry.control.phases import AT_TARGET, NEXT, Phase
from tenantferry.errors import PermanentError
from tenantferry.local.auditor import Audit
from tenantferry.local.demo import audit_tenant
from tenantferry.local.measurements import Summary

# So many requests in a row must succeed before the end.
_LAST_REQUESTS = 40
_RECOVERY_SECONDS = 60.0

_TRAIL = """
SELECT from_phase, to_phase FROM tenantferry.phase_changes WHERE tenant = %s ORDER BY id
"""
_PASSWORD = "SELECT rolcanlogin AND rolpassword IS NOT NULL FROM pg_authid WHERE rolname = '{}'"


@dataclass(frozen=True, slots=True)
class Conclusion:
    """What a client and its database looked like in the end."""

    phase: Phase | None
    summary: Summary
    audit: Audit


def conclude(
    fleet: LiveFleet, key: str, *, phase: Phase | None = Phase.LIVE, may_fail: bool = False
) -> Conclusion:
    """
    Stop a tenant's client and check what a drill must end with.

    :param phase: where the tenant must be; ``None``: its move never began.
    :param may_fail: whether requests were to fail, as when the client's server or pooler ended:
        then what was acknowledged must be there, and what was not answered may be.
    :raises DrillFailedError: if anything is not as it must be.
    """
    _see_it_work(fleet, key)
    client = fleet.past_clients[key] = fleet.clients.pop(key)
    client.ask_to_stop()
    summary = client.wait()
    audited = audit_tenant(fleet.local, fleet.tenant(key), client.journal)
    problems = [
        *_judge_client(summary, audited, may_fail=may_fail),
        *_judge_phase(fleet, key, phase),
        *_judge_sides(fleet, key, phase),
    ]
    if any(attempt.is_open for attempt in fleet.attempts(key)):
        problems.append("an attempt is open")
    if problems:
        raise DrillFailedError(f"{key}: {'; '.join(problems)}")
    return Conclusion(phase, summary, audited)


def _see_it_work(fleet: LiveFleet, key: str) -> None:
    """Wait until a number of requests in a row succeed."""
    client = fleet.clients[key]
    deadline = time.monotonic() + _RECOVERY_SECONDS
    while True:
        before = client.summary()
        if before is None:
            raise DrillFailedError(f"the client of {key} says nothing")
        client.wait_for_requests(
            before.requests + _LAST_REQUESTS, timeout_seconds=_RECOVERY_SECONDS
        )
        after = client.summary()
        if after is not None and after.failed == before.failed:
            return
        if time.monotonic() > deadline:
            failures = after.failures if after is not None else ()
            raise DrillFailedError(f"requests of {key} still fail: {failures}")


def _judge_client(summary: Summary, audited: Audit, *, may_fail: bool) -> list[str]:
    problems = [f"lost: {difference}" for difference in audited.differences]
    if audited.lost_writes and not problems:
        problems.append(f"{audited.lost_writes} writes are lost")
    if not audited.acknowledged_writes:
        problems.append("the client wrote nothing")
    if summary.failed and not may_fail:
        problems.append(f"{summary.failed} requests failed: {summary.failures}")
    if audited.unknown_writes and not may_fail:
        problems.append(f"{audited.unknown_writes} writes got no answer")
    return problems


def _judge_phase(fleet: LiveFleet, key: str, wanted: Phase | None) -> list[str]:
    found = fleet.phase(key) or None
    problems = [] if found == wanted else [f"phase is {found}, not {wanted}"]
    before: str | None = None
    for start, end in fleet.query(_TRAIL, key):
        is_legal = start == before and (
            end == Phase.REGISTERED if start is None else Phase(end) in NEXT[Phase(start)]
        )
        if not is_legal:
            problems.append(f"went from {before} over {start} to {end}")
        before = end
    if before != found:
        problems.append(f"the trail ends in {before}, the phase is {found}")
    return problems


def _judge_sides(fleet: LiveFleet, key: str, phase: Phase | None) -> list[str]:
    """Check that exactly the right side takes the application's writes."""
    tenant = fleet.tenant(key)
    server = fleet.local.source.superuser
    source = ConnectionParams(server.host, server.port, tenant.app, key, tenant.password)
    at_source = _take_write(source) is not None
    at_target = fleet.local.target.psql("-c", _PASSWORD.format(f"tenant_{key}")) == "t"
    through_pooler = _take_write(fleet.local.client_params(tenant))
    is_moved = phase in AT_TARGET
    wanted = fleet.local.target_params.database if is_moved else key
    problems = []
    if (at_source, at_target) != (not is_moved, is_moved):
        problems.append(f"takes writes: source {at_source}, target {at_target}")
    if through_pooler != wanted:
        problems.append(f'the application writes to "{through_pooler}", not "{wanted}"')
    return problems


def _take_write(params: ConnectionParams) -> str | None:
    """Return which database takes a write of the application; none of it stays."""
    try:
        session = open_client_connection(params, purpose="test")
    except PermanentError:
        return None
    with closing(session), session.cursor() as cursor:
        cursor.execute("UPDATE customers SET name = name WHERE id = 1 RETURNING current_database()")
        (database,) = cursor.fetchone() or ("",)
        session.rollback()
    return str(database)
