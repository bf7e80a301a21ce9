"""Whether a validation still holds for the rows that no stream has told of since."""

from __future__ import annotations

from collections.abc import Mapping

from psycopg2.extensions import connection

from tenantferry.control.validations import read_latest_validation
from tenantferry.errors import TransientError
from tenantferry.fleet import Tenant
from tenantferry.schema.table_states import (
    Changes,
    RowFiles,
    TableState,
    find_changes,
    read_states_and_files,
)


def require_same_shape(changes: Changes, tenant: Tenant) -> None:
    """
    Check that nothing came, went or was altered.

    :raises TransientError: if so.
    """
    if changes.reshaped:
        raise TransientError(
            f'tables of tenant "{tenant.key}" changed since it was validated',
            detail="Created, dropped or altered, or a partition attached or detached:"
            f" {', '.join(changes.reshaped)}.",
            hint="The retry checks and validates again. Keep such statements away from the source"
            " until the tenant was moved.",
        )


def check_unchanged(source: connection, tenant: Tenant, seen: Mapping[str, TableState]) -> RowFiles:
    """
    Check that the tables are as they were seen within the same write pause.

    :return: which files hold their rows.
    :raises TransientError: if they are not.
    """
    states, files = read_states_and_files(source, tenant)
    now = find_changes(seen, states)
    require_same_shape(Changes(now.reshaped + now.rewritten, ()), tenant)
    return files


def check_not_contradicted(target: connection, tenant: Tenant) -> None:
    """
    Check that no comparison that ended meanwhile has found the sides to differ.

    That of a sample begins while no step runs, and may end hours later.

    :param target: open transaction or autocommit; only read.
    :raises TransientError: if one has.
    """
    latest = read_latest_validation(target, tenant.key)
    if latest is not None and latest.mismatches:
        raise TransientError(
            f'a comparison of tenant "{tenant.key}" that began earlier has found differences',
            detail=" ".join(map(str, latest.differences)),
            hint="The retry validates again, and says how to go on if it finds them, too.",
        )
