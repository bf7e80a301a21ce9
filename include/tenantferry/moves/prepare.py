"""Step two: make the target ready for the tenant and the source ready to be read."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from psycopg2.extensions import connection

from tenantferry.control.phases import AT_TARGET, Phase, check_not_aborting
from tenantferry.control.registry import (
    change_phase,
    ensure_control_schema,
    ensure_registered,
    read_registration,
)
from tenantferry.errors import PermanentError
from tenantferry.moves.former import settle_former
from tenantferry.moves.identity import read_source_identity
from tenantferry.moves.move import Move
from tenantferry.moves.sessions import exclusive_step, open_source
from tenantferry.moves.witnessing import begin_witness
from tenantferry.schema.catalog import read_catalog, read_tables
from tenantferry.schema.findings import Verdict
from tenantferry.schema.isolation import lock_target_schema
from tenantferry.schema.publication import ensure_publication
from tenantferry.schema.retrofit import RetrofitPlan, apply_retrofit, plan_retrofit
from tenantferry.schema.roles import ensure_tenant_role, read_role_settings
from tenantferry.schema.sequences import ensure_tenant_sequences

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PrepareSummary:
    """What was made: *statements* ran in the target, *tables* are published on the source."""

    statements: int
    tables: int


def prepare(move: Move) -> PrepareSummary:
    """
    Register the tenant, retrofit the target for it, and publish its tables on the source.

    From here on this run has the tenant: the steps of an earlier one do nothing any more.

    :raises PermanentError: if the source's schema does not fit the target's.
    """
    tenant = move.tenant
    with (
        open_source(move.source, purpose=f"prepare {tenant.key}") as source,
        exclusive_step(move.target, tenant=tenant.key, step="prepare") as target,
    ):
        settle_former(move, target)
        registration = read_registration(target, tenant.key)
        if registration is not None and registration.phase in AT_TARGET:
            return PrepareSummary(0, 0)
        if registration is not None:
            check_not_aborting(tenant.key, registration.phase)
        with target:
            ensure_control_schema(target)
        with target:
            ensure_registered(
                target,
                tenant=tenant.key,
                tenant_id=tenant.id,
                source_identity=read_source_identity(source),
                run_id=move.run_id,
            )
            # Many statements read a catalog: nobody else may change it between two of them.
            lock_target_schema(target)
            plan = _plan(source, target, move)
            apply_retrofit(target, plan)
        # Apart: the retrofit may hold locks that live tenants wait for, the source may be slow.
        with target:
            ensure_tenant_role(target, tenant, settings=read_role_settings(source, tenant))
            ensure_tenant_sequences(source, target, tenant)
            registered = read_registration(target, tenant.key)
            if registered is not None and registered.phase is Phase.REGISTERED:
                change_phase(
                    target,
                    tenant.key,
                    Phase.PREPARED,
                    run_id=move.run_id,
                    reason=f"{len(plan.statements)} statements ran in the target",
                )
        begin_witness(move)
        tables = read_tables(source, tenant)
        ensure_publication(source, tenant, tables)
    return PrepareSummary(len(plan.statements), len(tables))


def _plan(source: connection, target: connection, move: Move) -> RetrofitPlan:
    plan = plan_retrofit(read_catalog(source), read_catalog(target), move.tenant)
    blocking = [drift for drift in plan.drift if drift.verdict is Verdict.ERROR]
    if blocking:
        raise PermanentError(
            f'the schema of tenant "{move.tenant.key}" does not fit the target',
            detail=" ".join(f"{drift.subject}: {drift.detail}" for drift in blocking),
            hint="Bring the source's schema to the target's, then clear this task.",
        )
    for statement in plan.statements:
        logger.info("running in the target: %s", statement)
    return plan
