"""Forget what the control schema knows of a move that was aborted."""

from __future__ import annotations

from psycopg2.extensions import connection

# In the order in which one refers to the other. What stays: the registry row, its audit trail and
# the waves that the tenant was a member of.
_DELETES = (
    "DELETE FROM tenantferry.mismatches WHERE validation_id IN"
    " (SELECT id FROM tenantferry.validations WHERE tenant = %s)",
    "DELETE FROM tenantferry.validations WHERE tenant = %s",
    "DELETE FROM tenantferry.comparison_tries WHERE tenant = %s",
    "DELETE FROM tenantferry.graces WHERE tenant = %s",
    "DELETE FROM tenantferry.write_pauses WHERE tenant = %s",
    "DELETE FROM tenantferry.touched WHERE tenant = %s",
    "DELETE FROM tenantferry.streams WHERE tenant = %s",
    "DELETE FROM tenantferry.chunks WHERE tenant = %s",
    "DELETE FROM tenantferry.rounds WHERE tenant = %s",
    "DELETE FROM tenantferry.signatures WHERE tenant = %s",
    "DELETE FROM tenantferry.witnesses WHERE tenant = %s",
)


def forget_move(target: connection, tenant: str) -> None:
    """
    Delete all records of a tenant but its registration and the audit trail of its phases.

    :param target: open transaction; the caller commits.
    """
    with target.cursor() as cursor:
        for statement in _DELETES:
            cursor.execute(statement, (tenant,))
