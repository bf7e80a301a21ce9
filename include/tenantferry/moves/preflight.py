"""Step one: report every problem at once, change nothing."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

from psycopg2.extensions import connection

from tenantferry.connections import open_connection
from tenantferry.control.phases import AT_TARGET
from tenantferry.control.registry import read_registration
from tenantferry.errors import PermanentError, TransientError
from tenantferry.moves.move import Move
from tenantferry.schema.catalog import read_catalog
from tenantferry.schema.findings import Finding, Verdict
from tenantferry.schema.preflight import run_preflight
from tenantferry.schema.retrofit import plan_retrofit
from tenantferry.traffic.capacity import check_capacity, read_pools
from tenantferry.validation.shared import compare_shared_tables

logger = logging.getLogger(__name__)


class PreflightError(PermanentError):
    """The source cannot be moved as it is. It was left untouched."""


class AlreadyLiveError(PermanentError):
    """The tenant was moved by an earlier run."""


@dataclass(frozen=True, slots=True)
class PreflightSummary:
    """What preflight saw; *planned_statements* will run in the target."""

    checks: int
    warnings: int
    planned_statements: int
    already_live: bool = False


def preflight(move: Move) -> PreflightSummary:
    """
    Check that the tenant can be moved, and log the plan as SQL before anything runs.

    :raises PreflightError: if anything stands against it; the message lists all of it.
    :raises TransientError: if only a router instance that does not answer now does.
    :raises AlreadyLiveError: if the tenant went live in another run.
    """
    purpose = f"preflight {move.tenant.key}"
    with (
        closing(open_connection(move.source, purpose=purpose)) as source,
        closing(open_connection(move.target, purpose=purpose)) as target,
    ):
        # Many statements read a catalog, and another tenant may be prepared meanwhile.
        target.set_session(isolation_level="REPEATABLE READ")
        if _went_live(target, move):
            return PreflightSummary(0, 0, 0, already_live=True)
        routed, unreachable = _check_router(move)
        schemas = read_catalog(source), read_catalog(target)
        findings = [
            *run_preflight(source, target, move.tenant, target_regions=move.target_regions),
            *compare_shared_tables(move.source, move.target, move.tenant, schemas=schemas),
            routed,
        ]
        if routed.verdict is Verdict.OK:
            findings.append(_check_pools(move, target))
        _log_findings(findings)
        problems = [finding for finding in findings if finding.verdict is Verdict.ERROR]
        if unreachable is not None and problems == [routed]:
            raise unreachable
        if problems:
            raise PreflightError(
                f'tenant "{move.tenant.key}" cannot be moved: {len(problems)} problem(s)',
                detail=" ".join(f"({n}) {_tell(p)}" for n, p in enumerate(problems, start=1)),
                hint="Nothing was changed. Mend these, then clear this task.",
            )
        statements = plan_retrofit(*schemas, move.tenant).statements
    for statement in statements:
        logger.info("planned for the target: %s", statement)
    warnings = sum(finding.verdict is Verdict.WARNING for finding in findings)
    return PreflightSummary(len(findings), warnings, len(statements))


def _went_live(target: connection, move: Move) -> bool:
    registration = read_registration(target, move.tenant.key)
    if registration is None or registration.phase not in AT_TARGET:
        return False
    if registration.run_id == move.run_id:
        return True  # a task of the run that moved it was cleared
    raise AlreadyLiveError(
        f'tenant "{move.tenant.key}" is already live',
        detail=f'Run "{registration.run_id}" moved it to the target.',
        hint="Its clients write to the target; moving it again would overwrite them.",
    )


def _check_router(move: Move) -> tuple[Finding, TransientError | None]:
    """Return the finding, and the error itself where trying again may help."""
    try:
        move.router.check(
            move.tenant.alias, max_write_pause_seconds=move.tenant.max_write_pause_seconds
        )
    except (PermanentError, TransientError) as error:
        finding = Finding("router", Verdict.ERROR, error.message, error.detail, error.hint)
        return finding, error if isinstance(error, TransientError) else None
    return Finding("router", Verdict.OK, move.tenant.alias, "", ""), None


def _check_pools(move: Move, target: connection) -> Finding:
    alias = move.tenant.alias
    host, port, _ = move.target_address
    pools = list(read_pools(move.router.instances, alias=alias, host=host, port=port))
    return check_capacity(target, pools, alias=alias)


def _log_findings(findings: Sequence[Finding]) -> None:
    levels = {Verdict.OK: logging.INFO, Verdict.WARNING: logging.WARNING}
    for finding in findings:
        logger.log(
            levels.get(finding.verdict, logging.ERROR),
            "%-7s %s",
            finding.verdict,
            _tell(finding),
        )


def _tell(finding: Finding) -> str:
    parts = (f"{finding.check}: {finding.subject}".rstrip(": "), finding.detail, finding.hint)
    return " ".join(part for part in parts if part)
