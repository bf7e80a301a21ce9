"""Whether a validation still holds: the source has the partitions that it saw."""

from __future__ import annotations

from collections.abc import Sequence

from psycopg2.extensions import connection

from tenantferry.control.validations import read_validated_partitions
from tenantferry.errors import TransientError
from tenantferry.fleet import Tenant
from tenantferry.schema.model import Table
from tenantferry.schema.partitions import find_changed_partitions, read_partition_state


def find_unvalidated(
    source: connection, target: connection, tenant: Tenant, tables: Sequence[Table]
) -> tuple[str, ...]:
    """
    Return the tables whose partitions are not those that the last validation saw.

    No stream carries what such a change did: a partition that came or went with its rows, or that
    was truncated. Only another validation can tell.

    :param source: open transaction or autocommit; only read.
    :param target: open transaction or autocommit; only read.
    :return: as ``schema.table``; all partitioned tables, if the last validation did not look.
    """
    state = read_partition_state(source, tables)
    if not state:
        return ()
    return find_changed_partitions(read_validated_partitions(target, tenant.key) or {}, state)


def check_partitions(
    source: connection, target: connection, tenant: Tenant, tables: Sequence[Table]
) -> None:
    """
    Check that the last validation still holds, once nobody but us can change the source.

    :raises TransientError: if not.
    """
    if changed := find_unvalidated(source, target, tenant, tables):
        raise TransientError(
            f'partitions of tenant "{tenant.key}" changed since it was validated',
            detail=f"A partition was attached, detached, dropped, truncated or rewritten:"
            f" {', '.join(changed)}.",
            hint="The retry validates again. Keep such statements away from the source until the"
            " tenant was moved.",
        )
