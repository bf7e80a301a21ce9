"""Read ordinary and partitioned tables from the catalog, all at once."""

from __future__ import annotations

from collections.abc import Sequence

from psycopg2.extensions import connection

from tenantferry.schema.model import (
    Check,
    Column,
    Exclusion,
    ForeignKey,
    Index,
    Key,
    Policy,
    Protection,
    Table,
    Trigger,
)
from tenantferry.schema.reading import Row, read_groups, read_rows


def read_ordinary_tables(conn: connection, schema_oids: Sequence[int]) -> tuple[Table, ...]:
    """
    Return the ordinary and partitioned, permanent tables of some schemas, by schema and name.

    Partitions, foreign and unlogged tables are not among them.

    :param conn: open transaction or autocommit; only read.
    """
    parameters = {"schemas": list(schema_oids)}
    columns = read_groups(conn, "columns", parameters)
    indexes = read_groups(conn, "indexes", parameters)
    constraints = read_groups(conn, "constraints", parameters)
    triggers = read_groups(conn, "triggers", parameters)
    protections = read_groups(conn, "protections", parameters)
    return tuple(
        _build_table(
            tuple(rest),
            columns=tuple(map(_build_column, columns.get(oid, ()))),
            indexes=tuple(_IndexRow(row) for row in indexes.get(oid, ())),
            constraints=constraints.get(oid, []),
            triggers=triggers.get(oid, []),
            protection=_build_protection(protections[oid][0]),
        )
        for oid, *rest in read_rows(conn, "tables", parameters)
    )


class _IndexRow:
    """A row of ``indexes.sql`` with names."""

    def __init__(self, row: Row) -> None:
        (
            self.name, self.method, self.unique, self.immediate, self.identity, self.expression,
            self.nulls_not_distinct, self.predicate, self.constraint_type, self.constraint,
            self.deferrable, self.deferred, self.temporal, texts, columns, operators, included,
        ) = row  # fmt: skip
        self.texts, self.columns = tuple(texts), tuple(columns)
        self.operators, self.included = tuple(operators), tuple(included or ())


def _build_table(
    row: Row,
    *,
    columns: tuple[Column, ...],
    indexes: Sequence[_IndexRow],
    constraints: Sequence[Row],
    triggers: Sequence[Row],
    protection: Protection,
) -> Table:
    (
        schema, name, replica_identity, estimated_rows, size, comment, is_partitioned, parents,
        has_children,
    ) = row  # fmt: skip
    return Table(
        schema=schema,
        name=name,
        columns=columns,
        key=_choose_key(replica_identity, columns, indexes),
        replica_identity=replica_identity,
        keys=tuple(_build_key(i) for i in indexes if i.constraint_type in ("p", "u")),
        foreign_keys=tuple(_build_foreign_key(c) for c in constraints if c[0] == "f"),
        checks=tuple(Check(c[1], c[2]) for c in constraints if c[0] in "cn"),
        exclusions=tuple(_build_exclusion(i) for i in indexes if i.constraint_type == "x"),
        indexes=tuple(_build_index(i) for i in indexes if i.constraint_type is None),
        triggers=tuple(Trigger(t[0], t[1], t[2], (t[3], t[4])) for t in triggers),
        comment=comment,
        protection=protection,
        estimated_rows=estimated_rows,
        bytes=size,
        is_partitioned=is_partitioned,
        parents=tuple((parent_schema, parent) for parent_schema, parent in parents),
        only=has_children or bool(parents),
    )


def _choose_key(
    replica_identity: str, columns: Sequence[Column], indexes: Sequence[_IndexRow]
) -> tuple[str, ...]:
    # A generated column is not sent, so it tells no rows apart.
    usable = {column.name for column in columns if column.not_null and column.is_copied}
    identifying = [i for i in indexes if not i.expression and usable.issuperset(i.columns)]
    primary = next((i for i in identifying if i.constraint_type == "p"), None)
    if replica_identity == "d":
        # Postgres does not identify rows by a deferrable primary key.
        return primary.columns if primary is not None and primary.immediate else ()
    if replica_identity == "i":
        return next((i.columns for i in identifying if i.identity), ())
    if replica_identity != "f":
        return ()
    if primary is not None:
        return primary.columns
    candidates = (
        i.columns for i in identifying if i.unique and i.immediate and i.predicate is None
    )
    return min(candidates, key=len, default=())


def _build_column(row: Row) -> Column:
    (
        name, type_name, not_null, collation, default, generated, identity,
        sequence_schema, sequence_name, comment,
    ) = row  # fmt: skip
    return Column(
        name=name,
        type_name=type_name,
        not_null=not_null,
        collation=collation,
        default=default,
        generated=generated,
        identity=identity,
        sequence=None if sequence_name is None else (sequence_schema, sequence_name),
        comment=comment,
    )


def _build_key(index: _IndexRow) -> Key:
    return Key(
        name=index.constraint,
        columns=index.columns,
        primary=index.constraint_type == "p",
        include=index.included,
        nulls_not_distinct=index.nulls_not_distinct,
        deferrable=index.deferrable,
        initially_deferred=index.deferred,
    )


def _build_protection(row: Row) -> Protection:
    enabled, forced, policies, granted = row
    return Protection(
        enabled, forced, tuple(Policy(*policy) for policy in policies or ()), tuple(granted)
    )


def _build_foreign_key(row: Row) -> ForeignKey:
    (
        _, name, _, columns, referenced_schema, referenced_table, referenced_columns,
        on_update, on_delete, set_columns, match_full, deferrable, deferred, validated, enforced,
    ) = row  # fmt: skip
    return ForeignKey(
        name=name,
        columns=tuple(columns),
        referenced_schema=referenced_schema,
        referenced_table=referenced_table,
        referenced_columns=tuple(referenced_columns),
        on_update=on_update,
        on_delete=on_delete,
        set_columns=tuple(set_columns or ()),
        match_full=match_full,
        deferrable=deferrable,
        initially_deferred=deferred,
        validated=validated,
        enforced=enforced,
    )


def _build_exclusion(index: _IndexRow) -> Exclusion:
    return Exclusion(
        name=index.constraint,
        method=index.method,
        elements=tuple(zip(index.texts, index.operators, strict=True)),
        predicate=index.predicate,
        deferrable=index.deferrable,
        initially_deferred=index.deferred,
    )


def _build_index(index: _IndexRow) -> Index:
    return Index(
        name=index.name,
        method=index.method,
        elements=index.texts,
        unique=index.unique,
        include=index.included,
        predicate=index.predicate,
        nulls_not_distinct=index.nulls_not_distinct,
    )
