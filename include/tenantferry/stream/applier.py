"""The target transaction: rows and position, committed together."""

from __future__ import annotations

from collections.abc import Sequence

import psycopg2
from psycopg2 import errors
from psycopg2.extensions import connection
from psycopg2.extensions import cursor as cursor_type

from tenantferry.errors import TenantferryError
from tenantferry.fleet.declaration import Tenant
from tenantferry.lsn import format_lsn
from tenantferry.stream.batch import Batch
from tenantferry.stream.failures import explain
from tenantferry.stream.merging import Merger, conflict
from tenantferry.stream.netchange import BrokenStreamError, Changes
from tenantferry.stream.relations import StreamedTable
from tenantferry.stream.staging import Stage, stage_changes

# Settings of the session that applies. Foreign keys and user triggers do not fire. The staging
# tables have no statistics: a plan that reads the shared table from end to end for a few rows is
# never right, so rows are always found by the index that begins with tenant_id.
APPLY_SETTINGS = {
    "session_replication_role": "replica",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "enable_seqscan": "off",
    "jit": "off",
    # As the source writes the values that it sends as text.
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
}
_ORIGIN = (
    "SELECT pg_replication_origin_xact_setup(%s,"
    " timestamptz '2000-01-01 00:00:00+00' + %s * interval '1 microsecond')"
)
# The old position guards against a second writer of the same row.
_POSITION = (
    "UPDATE tenantferry.streams SET position = %s, confirmed = greatest(confirmed, %s),"
    " changes = changes + %s, transactions = transactions + %s, reported_at = clock_timestamp()"
    " WHERE tenant = %s AND direction = 'forward' AND position = %s"
)


class Applier:
    """
    Applies batches of one tenant, each in one transaction.

    :param target: session with `APPLY_SETTINGS` under the tenant's replication origin, outside a
        transaction. Every call commits or leaves a transaction open that closing undoes.
    :ivar position: P, durable.
    """

    def __init__(self, target: connection, tenant: Tenant, *, position: int) -> None:
        self._target = target
        self._tenant = tenant
        self._stages: dict[str, Stage] = {}
        self._in_transaction = False
        self._changes = 0
        self._transactions = 0
        self.position = position

    def apply(self, batch: Batch) -> None:
        """
        Apply a batch; commit it if it is complete, else go on in the same transaction next time.

        :raises TransientError: if the target failed; also if it is unknown whether it committed,
            which is harmless, for the next start reads the position.
        :raises PermanentError: if the target refuses the changes or does not hold their rows.
        """
        try:
            with self._target.cursor() as cursor:
                self._begin(cursor)
                for table, changes in batch.steps():
                    self._apply_table(cursor, table, changes)
                self._changes += batch.changes
                self._transactions += batch.transactions
                if batch.is_complete:
                    self._commit(cursor, batch.position, batch.commit_time)
        except TenantferryError as error:
            place = f"The stream stands at {format_lsn(self.position)}."
            detail = f"{error.detail} {place}".lstrip()
            raise type(error)(error.message, detail=detail, hint=error.hint) from None
        except errors.IntegrityError as error:
            raise conflict(error, None) from None
        except psycopg2.Error as error:
            doing = f"apply changes after {format_lsn(self.position)}"
            raise explain(error, doing) from None

    def move(self, position: int) -> None:
        """
        Move P to a position before which nothing is left to apply.

        :raises TransientError: if the target failed.
        """
        try:
            with self._target.cursor() as cursor:
                self._begin(cursor)
                self._commit(cursor, position, 0)
        except psycopg2.Error as error:
            raise explain(error, "move the position of the stream") from None

    def _begin(self, cursor: cursor_type) -> None:
        if not self._in_transaction:
            cursor.execute("SET CONSTRAINTS ALL DEFERRED")
            self._in_transaction = True

    def _apply_table(
        self, cursor: cursor_type, table: StreamedTable, changes: Changes | None
    ) -> None:
        stage = self._stage(cursor, table, set() if changes is None else changes.text_columns)
        merger = Merger(stage, tenant_id=self._tenant.id)
        if changes is None:
            merger.delete_tenant(cursor)
            return
        staged = stage_changes(table, changes)
        if staged.is_empty:
            return
        if stage.is_filled:
            stage.clear(cursor)
        stage.load(cursor, staged)
        stage.is_filled = True
        merger.merge(cursor, staged)

    def _stage(self, cursor: cursor_type, table: StreamedTable, text_columns: set[int]) -> Stage:
        stage = self._stages.get(table.label)
        if stage is None or stage.table != table or not text_columns <= stage.text_columns:
            number = len(self._stages) + 1 if stage is None else stage.number
            known = stage.text_columns if stage is not None and stage.table == table else set()
            stage = Stage(table, number=number, text_columns={*known, *text_columns})
            stage.create(cursor)
            self._stages[table.label] = stage
        return stage

    def _commit(self, cursor: cursor_type, position: int, commit_time: int) -> None:
        new, old = format_lsn(position), format_lsn(self.position)
        counts: Sequence[int] = (self._changes, self._transactions)
        cursor.execute(_POSITION, (new, new, *counts, self._tenant.key, old))
        if cursor.rowcount != 1:
            raise BrokenStreamError(
                f'stream of tenant "{self._tenant.key}" is not at the position it was left at',
                hint="Another stream of this tenant, or a new backfill, has moved it.",
            )
        # Last, for a rollback after it would move the origin too.
        cursor.execute(_ORIGIN, (format_lsn(position), commit_time))
        self._target.commit()
        self.position = position
        self._in_transaction = False
        self._changes = self._transactions = 0
        for stage in self._stages.values():
            stage.is_filled = False
