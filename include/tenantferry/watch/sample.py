"""Check: the rows of both sides are the same, of a few tenants in each run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from importlib import resources

import psycopg2
from psycopg2.extensions import connection

from tenantferry.connections import ConnectionParams, open_connection
from tenantferry.control.direction import Direction
from tenantferry.control.graces import record_source_files, require_way_back
from tenantferry.control.phases import Phase
from tenantferry.control.validations import ValidationResult, record_tables
from tenantferry.errors import TenantferryError, TransientError
from tenantferry.fleet import Tenant
from tenantferry.moves.sessions import StepBusyError, exclusive_step, open_source
from tenantferry.schema.catalog import read_tables
from tenantferry.schema.findings import Finding, Verdict, error, warning
from tenantferry.schema.table_states import (
    RowFiles,
    TableState,
    read_states_and_files,
)
from tenantferry.validation.running import TenantComparison, compare_tenant, record_comparison
from tenantferry.watch.report import Number, Report
from tenantferry.watch.standings import STREAMED, Standing, read_standings
from tenantferry.watch.watched import Watched, bound, open_look

CHECK = "rows"
# A step that runs has the tenant for longer than anybody should wait here.
_STEP_TIMEOUT_SECONDS = 0.1
# The stream stands still until the snapshot is there: less than the lag that would be told.
SLOT_TIMEOUT_SECONDS = 10.0
# Each may cost a minute, and the next run tries again.
FAILED_TRIES = 5

_RECORD_TRY = (
    "INSERT INTO tenantferry.comparison_tries (tenant, tried_at) VALUES (%s, clock_timestamp())"
    " ON CONFLICT (tenant) DO UPDATE SET tried_at = excluded.tried_at"
)
_CANDIDATES = resources.files("tenantferry.watch").joinpath("candidates.sql").read_text("utf-8")


@dataclass(frozen=True, slots=True)
class Candidate:
    """
    A tenant whose rows can be compared.

    :ivar direction: of the stream that runs.
    :ivar seconds: since the last comparison; ``None``: there was none.
    :ivar waiting_seconds: since the last comparison, or since one could have been made.
    """

    tenant: str
    direction: Direction
    seconds: float | None
    waiting_seconds: float


def validate_sample(watched: Watched, *, run_id: str | None) -> Report:
    """
    Compare every row of the tenants whose comparison is the longest ago, while they work.

    A tenant that a step has at this moment, or that cannot be compared now, gives its turn away,
    and is tried again after all others. One that was not compared for too long is a finding.

    :raises TenantferryError: if the target cannot be asked.
    """
    report = Report()
    with open_look(watched.target, what=CHECK) as target:
        found = _read_candidates(target) if read_standings(target) else []
    wanted = watched.settings.validate_tenants
    candidates = [each for each in found if each.tenant in watched.fleet.tenants] if wanted else []
    compared: set[str] = set()
    for candidate in candidates[: wanted + FAILED_TRIES]:
        _record_try(watched.target, candidate.tenant)
        tenant = watched.fleet.tenants[candidate.tenant]
        if _validate(watched, report, tenant, candidate, run_id):
            compared.add(candidate.tenant)
        if len(compared) == wanted:
            break
    if not compared and report.findings:
        # That nothing is proven any more must not look as if all were well.
        report.findings = [replace(f, verdict=Verdict.ERROR) for f in report.findings]
    report.findings += _find_uncompared(
        [each for each in candidates if each.tenant not in compared],
        limit_hours=watched.settings.uncompared_hours,
    )
    return report


def _find_uncompared(candidates: list[Candidate], *, limit_hours: float) -> Iterator[Finding]:
    for candidate in candidates:
        hours = candidate.waiting_seconds / 3600
        if hours > limit_hours:
            yield error(
                CHECK,
                f'rows of tenant "{candidate.tenant}"',
                f"They were not compared for {hours:.0f} hours (uncompared_hours is"
                f" {limit_hours:g}).",
                'See in the runs of "validate_fleet" what keeps it from being compared. If only its'
                " turn does not come, raise validate_tenants.",
            )


def _record_try(params: ConnectionParams, tenant: str) -> None:
    with open_look(params, what=CHECK) as target, target.cursor() as cursor:
        cursor.execute(_RECORD_TRY, (tenant,))


def _validate(
    watched: Watched, report: Report, tenant: Tenant, candidate: Candidate, run_id: str | None
) -> bool:
    """Return whether the rows were compared."""
    subject = f'rows of tenant "{tenant.key}"'
    asked: dict[str, Number] = {
        "direction": candidate.direction,
        "seconds_since_the_last": candidate.seconds,
    }
    try:
        result = _compare(watched, tenant, candidate.direction, run_id=run_id)
    except StepBusyError:
        report.see(subject, **asked, compared="no, a step of it runs")
        return False
    except (TenantferryError, psycopg2.Error) as failure:
        report.see(subject, **asked, compared="no")
        report.findings.append(
            warning(
                CHECK,
                subject,
                f"They could not be compared: {' '.join(str(failure).split())}",
                "Mend that; the next run tries again.",
            )
        )
        return False
    report.see(
        subject,
        **asked,
        compared="yes",
        tables=result.tables,
        rows=result.rows,
        mismatches=result.mismatches,
        seconds=round(result.seconds, 2),
    )
    if result.mismatches:
        report.findings.append(_tell_mismatch(subject, tenant, candidate.direction, result))
    return True


def _compare(
    watched: Watched, tenant: Tenant, direction: Direction, *, run_id: str | None
) -> ValidationResult:
    """
    Compare, and keep steps of the tenant away only until both sides are seen at one instant.

    :raises StepBusyError: if a step of the tenant runs.
    """
    source, target = bound(watched.source_of(tenant)), bound(watched.target)
    with ExitStack() as step:
        session = step.enter_context(
            exclusive_step(
                target,
                tenant=tenant.key,
                step="validate sample",
                timeout_seconds=_STEP_TIMEOUT_SECONDS,
            )
        )
        with session:
            standing = _require_standing(session, tenant.key, direction)
        with open_source(source, purpose=f"validate sample {tenant.key}") as asked:
            # First: what changes from here on is not validated.
            states, files = read_states_and_files(asked, tenant)
            tables = read_tables(asked, tenant)
        found = compare_tenant(
            source,
            target,
            tenant,
            tables,
            direction=direction,
            slot_timeout_seconds=SLOT_TIMEOUT_SECONDS,
            # A rollback must not wait for hours. What happens from now on is in neither snapshot.
            on_aligned=step.close,
        )
    return _record(target, tenant, standing, found, states=states, files=files, run_id=run_id)


def _require_standing(target: connection, tenant: str, direction: Direction) -> Standing:
    standing = read_standings(target).get(tenant)
    if direction is Direction.FORWARD:
        is_comparable = standing is not None and standing.phase in STREAMED
    else:
        is_comparable = standing is not None and standing.phase is Phase.LIVE and standing.in_grace
    if standing is None or not is_comparable:
        raise TransientError(f'tenant "{tenant}" has moved on just now')
    return standing


def _record(
    params: ConnectionParams,
    tenant: Tenant,
    standing: Standing,
    found: TenantComparison,
    *,
    states: Mapping[str, TableState],
    files: RowFiles,
    run_id: str | None,
) -> ValidationResult:
    """
    Write down what was found. That rows were the same of a copy that is no more is not.

    :raises TransientError: if the tenant has moved on meanwhile.
    """
    with (
        closing(open_connection(params, purpose=f"validate sample {tenant.key}")) as target,
        target,
    ):
        now = read_standings(target).get(tenant.key)
        if not found.mismatches and (now is None or now.changed_at != standing.changed_at):
            raise TransientError(
                f'tenant "{tenant.key}" has moved on while it was compared',
                detail="That its rows were the same proves nothing of what they are now.",
            )
        result = record_comparison(target, tenant, found, run_id=run_id)
        record_tables(target, result.validation_id, states)
        if found.direction is Direction.REVERSE and not found.mismatches:
            # What was rewritten before needs no comparison in a rollback, which is an emergency.
            record_source_files(target, require_way_back(target, tenant.key).id, files)
        return result


def _tell_mismatch(
    subject: str, tenant: Tenant, direction: Direction, result: ValidationResult
) -> Finding:
    listed = (
        f"The rows are listed in tenantferry.mismatches with validation_id {result.validation_id}."
    )
    if direction is Direction.FORWARD:
        hint = (
            f'{listed} Clear "validate" of Dag "migrate_{tenant.key}": it compares again and says'
            " how to go on. Until it matches, there is no cutover."
        )
    else:
        hint = (
            f"{listed} The target is right, clients work there. Do not roll the tenant back before"
            " its source was mended row by row, as its owner with default_transaction_read_only ="
            " off; then clear this task."
        )
    return error(
        CHECK,
        subject,
        f"Source and target differ in {result.mismatches} place(s):"
        f" {' '.join(str(difference) for difference in result.differences)}",
        hint,
    )


def _read_candidates(target: connection) -> list[Candidate]:
    with target.cursor() as cursor:
        cursor.execute(_CANDIDATES)
        return [
            Candidate(tenant, Direction(direction), seconds, waiting_seconds)
            for tenant, direction, seconds, waiting_seconds in cursor
        ]
