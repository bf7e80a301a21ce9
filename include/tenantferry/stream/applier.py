"""The transaction of the receiver: rows and position, committed together."""

from __future__ import annotations

import psycopg2
from psycopg2 import errors
from psycopg2.extensions import connection
from psycopg2.extensions import cursor as cursor_type

from tenantferry.errors import TenantferryError
from tenantferry.failpoints import Point, reach
from tenantferry.lsn import format_lsn
from tenantferry.stream.batch import Batch
from tenantferry.stream.failures import explain
from tenantferry.stream.merging import Merger, conflict
from tenantferry.stream.netchange import Changes
from tenantferry.stream.partial import CopiedPart
from tenantferry.stream.progress import Progress, Step
from tenantferry.stream.relations import StreamedTable
from tenantferry.stream.remembering import Memory
from tenantferry.stream.scope import Scope
from tenantferry.stream.staging import Stage, find_text_columns, stage_changes

# Settings of the session that applies. Foreign keys and user triggers do not fire. The staging
# tables have no statistics: a plan that reads the shared table from end to end for a few rows is
# never right, so rows are always found by the index of their key, which in the target begins with
# tenant_id.
APPLY_SETTINGS = {
    "session_replication_role": "replica",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "enable_seqscan": "off",
    "jit": "off",
    # As the sender writes the values that it sends as text.
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "lc_monetary": "C",
}


class Applier:
    """
    Applies batches of one tenant, each in one transaction.

    :param receiver: session with `APPLY_SETTINGS`, of a forward stream under the tenant's
        replication origin, outside a transaction. Every call commits or leaves a transaction open
        that closing undoes.
    :param copied: the part of the scope that is written to; ``None``: all of it.
    :param memory: remembers what is written.
    :ivar position: P, durable.
    """

    def __init__(
        self,
        receiver: connection,
        scope: Scope,
        progress: Progress,
        *,
        position: int,
        copied: CopiedPart | None = None,
        memory: Memory | None = None,
    ) -> None:
        self._receiver = receiver
        self._scope = scope
        self._progress = progress
        self._copied = copied
        self._memory = memory
        self._stages: dict[str, Stage] = {}
        self._in_transaction = False
        self._changes = 0
        self._transactions = 0
        self.position = position

    def apply(self, batch: Batch) -> None:
        """
        Apply a batch; commit it if it is complete, else go on in the same transaction next time.

        :raises TransientError: if the receiver failed; also if it is unknown whether it committed,
            which is harmless, for the next start reads the position.
        :raises PermanentError: if it refuses the changes or does not hold their rows.
        """
        try:
            with self._receiver.cursor() as cursor:
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
            raise conflict(error, None, self._scope) from None
        except psycopg2.Error as error:
            doing = f"apply changes after {format_lsn(self.position)}"
            raise explain(error, doing) from None

    def move(self, position: int) -> None:
        """
        Move P to a position before which nothing is left to apply.

        :raises TransientError: if the receiver failed.
        """
        try:
            with self._receiver.cursor() as cursor:
                self._begin(cursor)
                self._commit(cursor, position, 0)
        except psycopg2.Error as error:
            raise explain(error, "move the position of the stream") from None
        if self._memory is not None:
            # Sides are compared at such a position, whoever it is that says so.
            self._memory.restart()

    def remember(self) -> None:
        """Remember from here on which rows are written."""
        if self._memory is not None:
            self._memory.begin()

    def _begin(self, cursor: cursor_type) -> None:
        if not self._in_transaction:
            cursor.execute("SET CONSTRAINTS ALL DEFERRED")
            if self._memory is not None:
                self._memory.forget_uncommitted()
            self._in_transaction = True

    def _apply_table(
        self, cursor: cursor_type, table: StreamedTable, changes: Changes | None
    ) -> None:
        if self._copied is not None and not self._copied.has_some_of(table):
            return
        text_columns = set() if changes is None else find_text_columns(table, changes)
        stage = self._stage(cursor, table, text_columns)
        merger = Merger(stage, self._scope)
        if changes is None:
            if self._memory is not None:
                self._memory.note_all(cursor, stage, position=self.position)
            merger.delete_all(cursor)
            return
        staged = stage_changes(stage, changes)
        if staged.is_empty:
            return
        if stage.is_filled:
            stage.clear(cursor)
        stage.load(cursor, staged)
        stage.is_filled = True
        reach(Point.STAGED)
        if self._copied is not None:
            staged = self._copied.thin_out(cursor, stage, staged)
        if self._memory is not None:
            self._memory.note(cursor, stage, changes, position=self.position)
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
        step = Step(self.position, position, commit_time, self._changes, self._transactions)
        reach(Point.WRITTEN)
        self._progress.record(cursor, step)
        reach(Point.POSITION_WRITTEN)
        self._receiver.commit()
        if self._memory is not None:
            self._memory.mark_committed()
        reach(Point.COMMITTED)
        self.position = position
        self._in_transaction = False
        self._changes = self._transactions = 0
        for stage in self._stages.values():
            stage.is_filled = False
