"""The witness's slot on the target: there while a tenant is on its way."""

from __future__ import annotations

import logging
from contextlib import closing

from psycopg2 import errors
from psycopg2.extensions import connection

from tenantferry.backfill.snapshot import drop_slot, exported_snapshot
from tenantferry.connections import ConnectionParams, open_connection
from tenantferry.control.witnesses import (
    Witness,
    forget_witness,
    read_witness,
    start_witness,
)
from tenantferry.errors import TransientError
from tenantferry.fleet.declaration import Tenant
from tenantferry.lsn import format_lsn, parse_lsn
from tenantferry.schema.reverse_publication import (
    drop_reverse_publication,
    ensure_reverse_publication,
    has_unpublished_tables,
)

logger = logging.getLogger(__name__)

# As confirmed_flush_lsn tells where a reader ended, so it tells of a reader that is not ours.
_SLOT = """
SELECT confirmed_flush_lsn::text, coalesce(to_jsonb(s) ->> 'invalidation_reason', wal_status),
    wal_status = 'lost' OR to_jsonb(s) ->> 'invalidation_reason' IS NOT NULL
FROM pg_catalog.pg_replication_slots AS s
WHERE slot_name = %s AND database = current_database()
"""
_LOCK = "SELECT pg_advisory_lock(hashtextextended('tenantferry witness ' || %s, 0))"
# A look that goes on reads the log of about a minute; where much is loaded it takes as long.
_LOCK_TIMEOUT = "5min"


def open_witness(target: ConnectionParams, tenant: Tenant) -> connection:
    """
    Open the only session that has to do with a tenant's witness; the caller closes it.

    :return: in autocommit.
    :raises TransientError: if another one does not end in time.
    """
    opened = open_connection(
        target,
        purpose=f"witness {tenant.key}",
        autocommit=True,
        # What it commits, and all before, is then in the log, and not only on its way there.
        settings={"lock_timeout": _LOCK_TIMEOUT, "synchronous_commit": "local"},
    )
    try:
        with opened.cursor() as cursor:
            cursor.execute(_LOCK, (tenant.key,))
    except errors.LockNotAvailable:
        opened.close()
        raise TransientError(
            f'the witness of tenant "{tenant.key}" is busy',
            detail=f"Another session has read the target's log for more than {_LOCK_TIMEOUT}.",
        ) from None
    return opened


def ensure_witness(target: ConnectionParams, tenant: Tenant) -> None:
    """
    Make sure that what is written to other tenants in the target from now on is kept. Commits.

    A witness that has missed something begins anew; what earlier ones found stays on record.

    :raises TransientError: if a table or the slot could not be had in time; says what it waits for.
    :raises PermanentError: if a table cannot be published, or the target has no slot left.
    """
    with closing(open_witness(target, tenant)) as session:
        # First: the slot's reader looks for it at the positions that it reads.
        publish_others(session, tenant)
        witness = read_witness(session, tenant.key)
        if witness is not None and tell_loss(session, tenant, witness) is None:
            return
        drop_slot(session, tenant.witness_slot)
        with exported_snapshot(
            target,
            slot=tenant.witness_slot,
            temporary=False,
            timeout_seconds=tenant.slot_timeout_seconds,
        ) as snapshot:
            lsn = snapshot.consistent_point
            # Signed is only what begins after this, and that is after the slot's beginning.
            _commit_start(session, tenant, lsn)
        logger.info("witness begins tenant=%s lsn=%s", tenant.key, format_lsn(lsn))


def drop_witness(target: ConnectionParams, tenant: Tenant) -> None:
    """Drop the slot, the publication and the record of a witness, as far as they are there."""
    with closing(open_witness(target, tenant)) as session:
        # The slot first, for one without a record would keep log that nobody reads.
        drop_slot(session, tenant.witness_slot)
        drop_reverse_publication(session, tenant.witness_slot)
        forget_witness(session, tenant.key)


def publish_others(session: connection, tenant: Tenant) -> None:
    """
    Publish the rows of all other tenants to the witness, also of tables that are new.

    :param session: in autocommit. Commits.
    """
    if not has_unpublished_tables(session, tenant.witness_slot):
        return
    session.autocommit = False
    with session:
        added = ensure_reverse_publication(session, tenant.witness_slot, without=tenant.id)
    session.autocommit = True
    logger.info("witness follows tables tenant=%s added=%s", tenant.key, len(added))


def tell_loss(session: connection, tenant: Tenant, witness: Witness) -> str | None:
    """Tell, in a whole sentence, why the slot does not hold what was not read yet."""
    if witness.lost_reason is not None:
        return witness.lost_reason
    with session.cursor() as cursor:
        cursor.execute(_SLOT, (tenant.witness_slot,))
        row = cursor.fetchone()
    name = f'Replication slot "{tenant.witness_slot}" of the target'
    if row is None:
        return f"{name} does not exist."
    confirmed, reason, is_lost = row
    if is_lost or confirmed is None:
        return f'{name} was invalidated; the server says "{reason}".'
    if parse_lsn(confirmed) > witness.checked_to:
        return (
            f'Somebody else has read slot "{tenant.witness_slot}": it is confirmed up to'
            f" {confirmed}, and it was looked at up to {format_lsn(witness.checked_to)}."
        )
    return None


def _commit_start(session: connection, tenant: Tenant, lsn: int) -> None:
    session.autocommit = False
    with session:
        start_witness(session, tenant.key, lsn=lsn)
    session.autocommit = True
