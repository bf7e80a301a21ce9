"""Read what came since the last look, and put it on record."""

from __future__ import annotations

import logging
from contextlib import closing
from dataclasses import dataclass

import psycopg2
from psycopg2.extensions import connection

from tenantferry.backfill.failures import describe_failure
from tenantferry.connections import ConnectionParams
from tenantferry.control.witnesses import (
    Violation,
    Witness,
    lose_witness,
    read_signatures,
    read_violations,
    read_witness,
    record_seen,
)
from tenantferry.errors import PermanentError
from tenantferry.fleet.declaration import Tenant
from tenantferry.lsn import format_lsn, parse_lsn
from tenantferry.witness.log import WitnessedLog
from tenantferry.witness.slot import open_witness, publish_others, tell_loss

logger = logging.getLogger(__name__)

# Peeked at, so that what is read comes again until it is on record. The server ends at the first
# commit beyond either bound.
_PEEK = """
SELECT data FROM pg_catalog.pg_logical_slot_peek_binary_changes(
    %s, %s, %s, 'proto_version', '1', 'publication_names', %s, 'messages', 'true')
"""
_PEEK_CHANGES = 50_000
_FETCH_ROWS = 2_000
_NOW = "SELECT pg_current_wal_flush_lsn()::text"


class WitnessLostError(PermanentError):
    """It cannot be told from the log what a move did to other tenants."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """
    What the target's log says about a move.

    :ivar violations: what it did to rows of other tenants; empty is as it should be.
    """

    witness: Witness
    violations: tuple[Violation, ...]

    def __str__(self) -> str:
        rows = sum(violation.rows for violation in self.violations)
        return (
            f"{self.witness.transactions} transactions of this move in the target's log from"
            f" {format_lsn(self.witness.from_lsn)} to {format_lsn(self.witness.checked_to)}:"
            f" {rows} rows of others"
        )


def look(target: ConnectionParams, tenant: Tenant) -> Evidence | None:
    """
    Look at everything that is committed by now, and let the target forget its log. Commits.

    A look that is killed is repeated by the next one: nothing is forgotten that is not on record.

    :return: what was seen from the beginning on; ``None``: the move has no witness.
    :raises WitnessLostError: if log is gone that was not read, or does not show what was committed.
    :raises TransientError: if the target could not be read.
    """
    try:
        with closing(open_witness(target, tenant)) as session:
            witness = read_witness(session, tenant.key)
            if witness is None:
                return None
            if (loss := tell_loss(session, tenant, witness)) is not None:
                raise _lost(tenant, loss)
            publish_others(session, tenant)
            _read_to_now(session, tenant, witness)
            return _tell_evidence(session, tenant)
    except psycopg2.Error as error:
        raise describe_failure(error, doing=f'read the witness of "{tenant.key}"') from None


def _read_to_now(session: connection, tenant: Tenant, witness: Witness) -> None:
    # In this order: what is committed now lies before the end of the log that is read then.
    signed = read_signatures(session, tenant.key)
    end = _flush(session)
    seen: set[int] = set()
    checked_to = witness.checked_to
    while checked_to < end:
        log, checked_to = _read_part(session, tenant, checked_to, end)
        seen |= log.xids
    missing = set(signed) - seen
    if missing:
        reason = (
            f"{len(missing)} transaction(s) of the move are committed, and the log up to"
            f" {format_lsn(end)} does not show them: {sorted(missing)[:5]}."
        )
        lose_witness(session, tenant.key, reason=reason)
        raise _lost(tenant, reason)


def _read_part(
    session: connection, tenant: Tenant, checked_to: int, end: int
) -> tuple[WitnessedLog, int]:
    """Read a part of the log, record it, and only then give it up."""
    log = WitnessedLog(tenant.key, checked_to=checked_to)
    session.autocommit = False
    with session:
        messages = _peek(session, tenant, log, end)
        # Fewer than were asked for: it was the end that stopped the server.
        reached = log.ended_at if messages >= _PEEK_CHANGES else max(end, log.ended_at)
        record_seen(
            session, tenant.key, checked_to=reached, xids=log.xids, violations=log.violations
        )
    session.autocommit = True
    _give_up(session, tenant, reached)
    for violation in log.violations:
        logger.error("tenant=%s: the move has changed rows of others: %s", tenant.key, violation)
    return log, reached


def _peek(session: connection, tenant: Tenant, log: WitnessedLog, end: int) -> int:
    messages = 0
    # Held by the server, which spills it to disk: another tenant's transaction may be large.
    with session.cursor("tenantferry_witness") as cursor:
        cursor.itersize = _FETCH_ROWS
        cursor.execute(
            _PEEK,
            (tenant.witness_slot, format_lsn(end), _PEEK_CHANGES, f'"{tenant.witness_slot}"'),
        )
        for (data,) in cursor:
            log.take(bytes(data))
            messages += 1
    return messages


def _flush(session: connection) -> int:
    """Return the end of the log, with everything in it that was committed before."""
    with session.cursor() as cursor:
        cursor.execute("SELECT pg_logical_emit_message(true, 'tenantferry', 'witness')")
        cursor.execute(_NOW)
        row = cursor.fetchone()
    return parse_lsn(row[0]) if row else 0


def _give_up(session: connection, tenant: Tenant, lsn: int) -> None:
    with session.cursor() as cursor:
        cursor.execute(
            "SELECT pg_replication_slot_advance(%s, %s)", (tenant.witness_slot, format_lsn(lsn))
        )


def _tell_evidence(session: connection, tenant: Tenant) -> Evidence | None:
    witness = read_witness(session, tenant.key)
    if witness is None:
        return None
    return Evidence(witness, tuple(read_violations(session, tenant.key)))


def _lost(tenant: Tenant, detail: str) -> WitnessLostError:
    return WitnessLostError(
        f'the witness of tenant "{tenant.key}" has missed a part of the target\'s log',
        detail=f"{detail} Whether the move has changed rows of others cannot be told any more.",
        hint='Clear the task "prepare" and those after it: a new witness begins there. It vouches'
        " for what is written from then on; to have all of it seen, abort the move and begin anew.",
    )
