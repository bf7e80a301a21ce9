"""Whether a validation still holds for the rows that no stream has told of since."""

from __future__ import annotations

from collections.abc import Mapping

from psycopg2.extensions import connection

from tenantferry.control.validations import read_validated_tables
from tenantferry.errors import TransientError
from tenantferry.fleet import Tenant
from tenantferry.schema.table_states import (
    Changes,
    TableState,
    find_changes,
    read_table_states,
)


def find_unvalidated(source: connection, target: connection, tenant: Tenant) -> Changes:
    """
    Tell which tables of the source are not as the last validation saw them.

    :param source: open transaction or autocommit; only read.
    :param target: open transaction or autocommit; only read.
    """
    return find_changes(
        read_validated_tables(target, tenant.key), read_table_states(source, tenant)
    )


def require_same_shape(changes: Changes, tenant: Tenant) -> None:
    """
    Check that nothing came, went or was altered.

    :raises TransientError: if so.
    """
    if changes.reshaped:
        raise TransientError(
            f'tables of tenant "{tenant.key}" changed since it was validated',
            detail="Created, dropped or altered, or a partition attached, detached, truncated or"
            f" rewritten: {', '.join(changes.reshaped)}.",
            hint="The retry checks and validates again. Keep such statements away from the source"
            " until the tenant was moved.",
        )


def check_unchanged(source: connection, tenant: Tenant, seen: Mapping[str, TableState]) -> None:
    """
    Check that the tables are as they were seen within the same write pause.

    :raises TransientError: if not.
    """
    now = find_changes(seen, read_table_states(source, tenant))
    require_same_shape(Changes(now.reshaped + now.rewritten, ()), tenant)
