"""
Merge staged net changes into the side that a stream writes to, its *receiver*.

Every statement says how many rows it must touch. A difference means that the receiver does not hold
what the sender held at P; writing on would hide a loss, so it stops the stream.
"""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

from psycopg2 import errors, sql
from psycopg2.extensions import cursor as cursor_type

from tenantferry.errors import PermanentError
from tenantferry.schema.own_rows import own_rows
from tenantferry.stream.netchange import BrokenStreamError
from tenantferry.stream.relations import TENANT_COLUMN, StreamedTable
from tenantferry.stream.scope import Scope
from tenantferry.stream.staging import DELETE, INSERT, Stage, Staged, key_column

_DELETE = sql.SQL(
    "DELETE FROM {table} AS rows USING {stage} AS staged"
    " WHERE {shapes} AND {in_scope} AND {same_key}"
)
_UPDATE = sql.SQL(
    "UPDATE {table} AS rows SET {assignments} FROM {stage} AS staged"
    " WHERE staged.shape = {shape} AND {in_scope} AND {same_key}"
)
_INSERT = sql.SQL(
    "INSERT INTO {place} ({columns}) OVERRIDING SYSTEM VALUE"
    " SELECT {values} FROM {stage} AS staged WHERE {shapes}"
)
# Fills in what only the receiver knows, before the rows that know it are deleted.
_KEEP = sql.SQL(
    "UPDATE {stage} AS staged SET {assignments} FROM {table} AS rows"
    " WHERE staged.shape = {shape} AND {in_scope} AND {same_key}"
)
# Rows without a key are told apart by where they lie. *= compares the stored bytes, so that it
# also works for types without an equality operator.
_DELETE_IMAGES = sql.SQL(
    "DELETE FROM {table} AS rows USING ("
    "SELECT same.tableoid AS part, same.ctid AS place, -staged.shape AS wanted,"
    " row_number() OVER (PARTITION BY staged.ctid) AS number"
    " FROM {stage} AS staged JOIN {table} AS same ON {same_in_scope}"
    " AND ROW({same_values})::record OPERATOR(pg_catalog.*=) ROW({values})::record"
    " WHERE staged.shape < 0) AS victims"
    " WHERE rows.tableoid = victims.part AND rows.ctid = victims.place"
    " AND victims.number <= victims.wanted AND {in_scope}"
)
_DELETE_ALL = sql.SQL("DELETE FROM {table} AS rows WHERE {in_scope}")


class ConflictError(PermanentError):
    """One side refuses rows that the other one holds. Nothing was applied, nothing is lost."""


class Merger:
    """
    Writes the staged changes of one table.

    :param stage: what `Stage.load` filled.
    """

    def __init__(self, stage: Stage, scope: Scope) -> None:
        self._stage = stage
        self._scope = scope
        self._table = stage.table
        self._names = {
            "table": own_rows(stage.table),
            "place": sql.Identifier(stage.table.schema, stage.table.name),
            "stage": stage.name,
            "in_scope": _in_scope(scope, "rows"),
            "same_in_scope": _in_scope(scope, "same"),
        }

    def merge(self, cursor: cursor_type, staged: Staged) -> None:
        """
        Apply what is staged, as single changes or, where these get in each other's way under a
        unique or exclusion constraint, all rows at once.

        :param cursor: in an open transaction; the caller commits.
        :raises BrokenStreamError: if the receiver does not hold what the changes are about.
        :raises ConflictError: if a constraint of the receiver refuses even the final state.
        """
        if not self._table.key:
            self._merge_images(cursor, staged)
            return
        cursor.execute("SAVEPOINT merge")
        if not (staged.updates and any(c.identity_always for c in self._table.columns)):
            try:
                self._merge_single(cursor, staged)
            except (errors.UniqueViolation, errors.ExclusionViolation):
                # Values swap, or pass from row to row. Between two commits of the sender the
                # state need not satisfy the constraint, at a commit it does.
                cursor.execute("ROLLBACK TO SAVEPOINT merge")
            else:
                cursor.execute("RELEASE SAVEPOINT merge")
                return
        try:
            self._merge_all_at_once(cursor, staged)
        except (errors.UniqueViolation, errors.ExclusionViolation) as error:
            raise conflict(error, self._table, self._scope) from None
        cursor.execute("RELEASE SAVEPOINT merge")

    def delete_all(self, cursor: cursor_type) -> None:
        """Delete every row in scope: what TRUNCATE on the other side does."""
        cursor.execute(_DELETE_ALL.format(**self._names))

    def _merge_single(self, cursor: cursor_type, staged: Staged) -> None:
        if staged.deletes:
            self._run(cursor, self._delete_query(deletes_only=True), staged.deletes, "delete")
        for kept, shape in staged.kept.items():
            query = self._update_query(kept, shape)
            self._run(cursor, query, staged.counts[shape], "update")
        if staged.inserts:
            self._run(cursor, self._insert_query(inserts_only=True), staged.inserts, "insert")

    def _merge_all_at_once(self, cursor: cursor_type, staged: Staged) -> None:
        for kept, shape in staged.kept.items():
            if kept:
                self._run(cursor, self._keep_query(kept, shape), staged.counts[shape], "keep")
        old, new = staged.deletes + staged.updates, staged.updates + staged.inserts
        self._run(cursor, self._delete_query(deletes_only=False), old, "replace")
        self._run(cursor, self._insert_query(inserts_only=False), new, "insert")

    def _merge_images(self, cursor: cursor_type, staged: Staged) -> None:
        if staged.deletes:
            query = _DELETE_IMAGES.format(
                same_values=_join(
                    self._compared(i, sql.SQL("same.{}").format(sql.Identifier(column.name)))
                    for i, column in enumerate(self._table.columns)
                ),
                values=_join(self._stage.raw_image(i) for i in range(len(self._table.columns))),
                **self._names,
            )
            # One pass over the rows in scope, sorted, instead of one for each deleted row.
            cursor.execute("SET LOCAL enable_mergejoin = on; SET LOCAL enable_seqscan = on")
            self._run(cursor, query, staged.deletes, "delete")
            cursor.execute("SET LOCAL enable_mergejoin = off; SET LOCAL enable_seqscan = off")
        if staged.inserts:
            try:
                query = self._insert_query(inserts_only=True)
                self._run(cursor, query, staged.inserts, "insert")
            except (errors.UniqueViolation, errors.ExclusionViolation) as error:
                raise conflict(error, self._table, self._scope) from None

    def _run(self, cursor: cursor_type, query: sql.Composed, expected: int, what: str) -> None:
        cursor.execute(query)
        touched = cursor.rowcount
        if touched != expected:
            raise BrokenStreamError(
                f"{self._scope.receiver} does not hold what the {self._scope.sender} changed in"
                f' table "{self._table.label}"',
                detail=f"The {what} of {expected} row(s) touched {touched}."
                + self._missing_keys(cursor),
                hint=self._scope.broken_hint,
            )

    def _missing_keys(self, cursor: cursor_type) -> str:
        """Name a few rows that the changes are about and that the receiver does not hold."""
        if not self._table.key:
            return ""
        keys = [key_column(n) for n in range(len(self._table.key))]
        cursor.execute("ROLLBACK TO SAVEPOINT merge")
        cursor.execute(
            sql.SQL(
                "SELECT ROW({keys})::text FROM {stage} AS staged WHERE shape <> {insert} AND NOT"
                " EXISTS (SELECT FROM {table} AS rows WHERE {in_scope} AND {same_key}) LIMIT 5"
            ).format(
                keys=_join(keys),
                insert=sql.Literal(INSERT),
                same_key=self._same_key(),
                **self._names,
            )
        )
        keys_text = ", ".join(row[0] for row in cursor.fetchall())
        names = ", ".join(self._table.columns[i].name for i in self._table.key)
        return f" Missing are the rows with ({names}) = {keys_text}." if keys_text else ""

    def _delete_query(self, *, deletes_only: bool) -> sql.Composed:
        comparison = sql.SQL("staged.shape = {}" if deletes_only else "staged.shape <> {}")
        return _DELETE.format(
            shapes=comparison.format(sql.Literal(DELETE if deletes_only else INSERT)),
            same_key=self._same_key(),
            **self._names,
        )

    def _insert_query(self, *, inserts_only: bool) -> sql.Composed:
        comparison = sql.SQL("staged.shape = {}" if inserts_only else "staged.shape > {}")
        columns: list[sql.Composable] = [sql.Identifier(c.name) for c in self._table.columns]
        values: list[sql.Composable] = [self._value(i) for i in range(len(self._table.columns))]
        if self._scope.tenant_id is not None:
            columns.insert(0, sql.Identifier(TENANT_COLUMN))
            values.insert(0, _tenant(self._scope.tenant_id))
        return _INSERT.format(
            shapes=comparison.format(sql.Literal(INSERT if inserts_only else DELETE)),
            columns=_join(columns),
            values=_join(values),
            **self._names,
        )

    def _update_query(self, kept: tuple[int, ...], shape: int) -> sql.Composed:
        assignments = _join(
            sql.SQL("{} = {}").format(sql.Identifier(column.name), self._value(i))
            for i, column in enumerate(self._table.columns)
            if i not in kept
        )
        return _UPDATE.format(
            assignments=assignments,
            shape=sql.Literal(shape),
            same_key=self._same_key(),
            **self._names,
        )

    def _keep_query(self, kept: tuple[int, ...], shape: int) -> sql.Composed:
        assignments = _join(
            self._stage.set_image(i, self._compared(i, sql.SQL("rows.{}").format(self._column(i))))
            for i in kept
        )
        return _KEEP.format(
            assignments=assignments,
            shape=sql.Literal(shape),
            same_key=self._same_key(),
            **self._names,
        )

    def _same_key(self) -> sql.Composed:
        comparisons = []
        for number, position in enumerate(self._table.key):
            schema, operator = self._table.columns[position].equality
            comparisons.append(
                sql.SQL("rows.{} OPERATOR({}.{}) {}").format(
                    self._column(position),
                    sql.Identifier(schema),
                    sql.SQL(operator),
                    self._stage.old_key(number),
                )
            )
        return sql.SQL(" AND ").join(comparisons)

    def _column(self, position: int) -> sql.Identifier:
        return sql.Identifier(self._table.columns[position].name)

    def _value(self, position: int) -> sql.Composed:
        return self._stage.image(position)

    def _compared(self, position: int, value: sql.Composed) -> sql.Composed:
        """Give a value of the receiver the type of its staging column."""
        is_text = position in self._stage.text_columns
        type_name = "text" if is_text else self._table.columns[position].base_type
        return sql.SQL("({}::{})").format(value, sql.SQL(type_name))


def conflict(
    error: errors.IntegrityError, table: StreamedTable | None, scope: Scope
) -> ConflictError:
    """Tell a violated constraint of the receiver as what it means for the tenant."""
    label = table.label if table else f"{error.diag.schema_name}.{error.diag.table_name}"
    return ConflictError(
        f'table "{label}" of the {scope.receiver} refuses rows of the {scope.sender}',
        detail=f'Constraint "{error.diag.constraint_name}": {error.diag.message_primary}.'
        f" {error.diag.message_detail or ''}".rstrip(),
        hint=scope.conflict_hint,
    )


def _in_scope(scope: Scope, alias: str) -> sql.Composable:
    if scope.tenant_id is None:
        return sql.SQL("true")
    column = sql.Identifier(alias, TENANT_COLUMN)
    return sql.SQL("{} = {}").format(column, _tenant(scope.tenant_id))


def _tenant(tenant_id: UUID) -> sql.Composed:
    return sql.SQL("{}::uuid").format(sql.Literal(str(tenant_id)))


def _join(parts: Iterable[sql.Composable]) -> sql.Composed:
    return sql.SQL(", ").join(parts)
