"""The witness of a move, as the control schema keeps it: what it has seen in the target's log."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from psycopg2.extensions import connection
from psycopg2.extensions import cursor as cursor_type
from psycopg2.extras import execute_values

from tenantferry.lsn import format_lsn, parse_lsn

WRITER_PREFIX = "tenantferry writer"

# The message goes with the first signature of a transaction, so there is one for each.
_SIGN = """
WITH signed AS (
    INSERT INTO tenantferry.signatures (tenant, xid)
    SELECT tenant, pg_current_xact_id()::text::bigint & 4294967295
    FROM tenantferry.witnesses WHERE tenant = %s
    ON CONFLICT DO NOTHING
    RETURNING tenant)
SELECT pg_logical_emit_message(true, %s, tenant) FROM signed
"""


@dataclass(frozen=True, slots=True)
class Witness:
    """
    How far a witness has read the target's log.

    :ivar from_lsn: of what was committed before it knows nothing.
    :ivar checked_to: every transaction that ended at it or before was looked at.
    :ivar transactions: of the move, that it has seen between the two.
    :ivar lost_reason: why it cannot vouch for anything; ``None``: it can.
    """

    from_lsn: int
    checked_to: int
    transactions: int
    lost_reason: str | None


@dataclass(frozen=True, slots=True)
class Violation:
    """
    What one transaction of a move did to rows of other tenants in one table.

    :ivar change: the SQL command.
    :ivar rows: how many; of ``TRUNCATE`` nobody knows, and it counts as one.
    :ivar keys: of the first of them.
    :ivar xid: as a 32-bit number.
    """

    schema: str
    table: str
    change: str
    rows: int
    keys: tuple[str, ...]
    xid: int
    commit_lsn: int

    def __str__(self) -> str:
        return (
            f'{self.change} of {self.rows} row(s) of table "{self.schema}.{self.table}" in'
            f" transaction {self.xid} that ended at {format_lsn(self.commit_lsn)}"
        )


def sign_writer(cursor: cursor_type, tenant: str) -> None:
    """
    Say in the log, and in the control schema, that this transaction is one of a tenant's move.

    Does nothing where the move has no witness. May be called again in the same transaction.

    :param cursor: in the open transaction that writes; the caller commits.
    """
    cursor.execute(_SIGN, (tenant, WRITER_PREFIX))


def start_witness(target: connection, tenant: str, *, lsn: int) -> None:
    """
    Record that the log from an LSN on is kept for a witness. What an earlier one saw is forgotten,
    but for what it found.

    :param target: session in autocommit, or open transaction that the caller commits.
    """
    forget_witness(target, tenant)
    with target.cursor() as cursor:
        cursor.execute(
            "INSERT INTO tenantferry.witnesses (tenant, from_lsn, checked_to) VALUES (%s, %s, %s)",
            (tenant, format_lsn(lsn), format_lsn(lsn)),
        )


def read_witness(target: connection, tenant: str) -> Witness | None:
    """Return what a tenant's witness has seen so far; ``None``: it has none."""
    with target.cursor() as cursor:
        cursor.execute(
            "SELECT from_lsn::text, checked_to::text, transactions, lost_reason"
            " FROM tenantferry.witnesses WHERE tenant = %s",
            (tenant,),
        )
        row = cursor.fetchone()
    return None if row is None else Witness(parse_lsn(row[0]), parse_lsn(row[1]), *row[2:])


def lose_witness(target: connection, tenant: str, *, reason: str) -> None:
    """
    Record that a witness cannot vouch for the move any more.

    :param target: session in autocommit, or open transaction that the caller commits.
    :param reason: a whole sentence.
    """
    with target.cursor() as cursor:
        cursor.execute(
            "UPDATE tenantferry.witnesses SET lost_reason = %s WHERE tenant = %s", (reason, tenant)
        )


def read_signatures(target: connection, tenant: str) -> list[int]:
    """
    Return the transactions of a move that are committed, and that the witness has not seen yet.

    :return: 32-bit numbers, which is how the log spells them.
    """
    with target.cursor() as cursor:
        cursor.execute("SELECT xid FROM tenantferry.signatures WHERE tenant = %s", (tenant,))
        return [xid for (xid,) in cursor]


def record_seen(
    target: connection,
    tenant: str,
    *,
    checked_to: int,
    xids: Collection[int],
    violations: Iterable[Violation],
) -> None:
    """
    Record what a witness has seen beyond what it had before.

    :param target: open transaction, of isolation level READ COMMITTED; the caller commits.
    :param xids: of the move's transactions, as 32-bit numbers.
    """
    with target.cursor() as cursor:
        _forget_signatures(cursor, tenant, xids)
        cursor.execute(
            "UPDATE tenantferry.witnesses SET checked_to = %s, transactions = transactions + %s,"
            " looked_at = clock_timestamp() WHERE tenant = %s",
            (format_lsn(checked_to), len(xids), tenant),
        )
        execute_values(
            cursor,
            "INSERT INTO tenantferry.violations (tenant, table_schema, table_name, change, rows,"
            " keys, xid, commit_lsn) VALUES %s",
            [
                (tenant, v.schema, v.table, v.change, v.rows, list(v.keys), v.xid,
                 format_lsn(v.commit_lsn))
                for v in violations
            ],
            template="(%s, %s, %s, %s, %s, %s::text[], %s, %s)",
        )  # fmt: skip


def read_violations(target: connection, tenant: str) -> list[Violation]:
    """Return what the move did to rows of other tenants, in the order of the log."""
    with target.cursor() as cursor:
        cursor.execute(
            "SELECT table_schema, table_name, change, rows, keys, xid, commit_lsn::text"
            " FROM tenantferry.violations WHERE tenant = %s ORDER BY id",
            (tenant,),
        )
        return [
            Violation(schema, table, change, rows, tuple(keys), xid, parse_lsn(lsn))
            for schema, table, change, rows, keys, xid, lsn in cursor
        ]


def forget_witness(target: connection, tenant: str) -> None:
    """
    Forget how far a witness had come; transactions of the move are not signed any more.

    :param target: session in autocommit, or open transaction that the caller commits.
    """
    with target.cursor() as cursor:
        cursor.execute("DELETE FROM tenantferry.witnesses WHERE tenant = %s", (tenant,))
        cursor.execute("DELETE FROM tenantferry.signatures WHERE tenant = %s", (tenant,))


def _forget_signatures(cursor: cursor_type, tenant: str, xids: Collection[int]) -> None:
    # A commit is in the log, and decoded, a moment before others see it. A signature that cannot be
    # seen yet can be waited for: an insert of the same key waits for its transaction.
    cursor.execute(
        "INSERT INTO tenantferry.signatures (tenant, xid) SELECT %s, unnest(%s::bigint[])"
        " ON CONFLICT DO NOTHING",
        (tenant, list(xids)),
    )
    cursor.execute(
        "DELETE FROM tenantferry.signatures WHERE tenant = %s AND xid = ANY (%s::bigint[])",
        (tenant, list(xids)),
    )
