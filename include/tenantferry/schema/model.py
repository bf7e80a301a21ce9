"""A table as both sides describe it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Column:
    """
    One column.

    :ivar type_name: as ``format_type`` spells it with ``search_path = pg_catalog``.
    :ivar collation: quoted name of a collation that is not the type's own, else ``None``.
    :ivar default: expression, or ``None``; of a generated column its expression.
    :ivar generated: ``""``, ``"s"`` (stored) or ``"v"`` (virtual), as ``attgenerated``.
    :ivar identity: ``""``, ``"a"`` (always) or ``"d"`` (by default), as ``attidentity``.
    :ivar sequence: qualified, unquoted name ``(schema, name)`` of the sequence that feeds it.
    """

    name: str
    type_name: str
    not_null: bool
    collation: str | None = None
    default: str | None = None
    generated: str = ""
    identity: str = ""
    sequence: tuple[str, str] | None = None
    comment: str | None = None

    @property
    def is_copied(self) -> bool:
        """Whether rows carry a value for it; a generated column computes its own."""
        return not self.generated


@dataclass(frozen=True, slots=True)
class Key:
    """
    A primary key or a unique constraint.

    :ivar columns: in key order.
    :ivar include: payload columns of its index.
    """

    name: str
    columns: tuple[str, ...]
    primary: bool
    include: tuple[str, ...] = ()
    nulls_not_distinct: bool = False
    deferrable: bool = False
    initially_deferred: bool = False


@dataclass(frozen=True, slots=True)
class ForeignKey:
    """
    A foreign key.

    :ivar on_update: ``"a"``, ``"r"``, ``"c"``, ``"n"`` or ``"d"``, as ``confupdtype``.
    :ivar on_delete: the same, as ``confdeltype``.
    :ivar set_columns: columns that ``SET NULL`` or ``SET DEFAULT`` touches; empty means all.
    :ivar match_full: ``MATCH FULL`` instead of ``MATCH SIMPLE``.
    """

    name: str
    columns: tuple[str, ...]
    referenced_schema: str
    referenced_table: str
    referenced_columns: tuple[str, ...]
    on_update: str = "a"
    on_delete: str = "a"
    set_columns: tuple[str, ...] = ()
    match_full: bool = False
    deferrable: bool = False
    initially_deferred: bool = False
    validated: bool = True
    enforced: bool = True


@dataclass(frozen=True, slots=True)
class Check:
    """A check constraint; *definition* as ``pg_get_constraintdef`` spells it."""

    name: str
    definition: str


@dataclass(frozen=True, slots=True)
class Exclusion:
    """
    An exclusion constraint.

    :ivar elements: each an expression with its operator, e.g. ``("during", "&&")``.
    """

    name: str
    method: str
    elements: tuple[tuple[str, str], ...]
    predicate: str | None = None
    deferrable: bool = False
    initially_deferred: bool = False


@dataclass(frozen=True, slots=True)
class Index:
    """
    An index that no constraint owns.

    :ivar elements: each a column or expression with collation, operator class and order, ready
        to stand in ``CREATE INDEX``.
    """

    name: str
    method: str
    elements: tuple[str, ...]
    unique: bool = False
    include: tuple[str, ...] = ()
    predicate: str | None = None
    nulls_not_distinct: bool = False


@dataclass(frozen=True, slots=True)
class Trigger:
    """
    A user trigger; *definition* as ``pg_get_triggerdef`` spells it.

    :ivar enabled: ``"O"``, ``"D"``, ``"R"`` or ``"A"``, as ``tgenabled``.
    :ivar function: qualified, unquoted name of what it calls.
    """

    name: str
    definition: str
    enabled: str = "O"
    function: tuple[str, str] = ("", "")


@dataclass(frozen=True, slots=True)
class Policy:
    """
    A row security policy.

    :ivar permissive: whether it opens; a restrictive one narrows.
    :ivar using: ``USING`` expression, or ``None``.
    :ivar check: ``WITH CHECK`` expression, or ``None``.
    """

    name: str
    command: str
    permissive: bool
    using: str | None
    check: str | None


@dataclass(frozen=True, slots=True)
class Protection:
    """
    Who gets at a table.

    :ivar enabled: row security is enabled.
    :ivar forced: it holds for the owner too.
    :ivar granted: privileges of the group ``tenantferry_app`` and of everyone, sorted.
    """

    enabled: bool = False
    forced: bool = False
    policies: tuple[Policy, ...] = ()
    granted: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Table:
    """
    One ordinary or partitioned table. A partition is none of its own: it is part of its root.

    :ivar key: columns that identify a row in the stream and order its chunks: those of the
        replica identity. With the identity ``FULL``: of the primary key, or else of a unique
        index that can take its place. Empty where there is none.
    :ivar replica_identity: ``"d"``, ``"n"``, ``"f"`` or ``"i"``, as ``relreplident``.
    :ivar estimated_rows: from statistics; -1 where never analyzed.
    :ivar bytes: heap and TOAST.
    :ivar is_partitioned: its rows lie in its partitions. In the target it is an ordinary table.
    :ivar parents: qualified names of the tables that it inherits from.
    :ivar only: its rows are those of ``ONLY`` it: it inherits, or is inherited from.
    """

    schema: str
    name: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    replica_identity: str
    keys: tuple[Key, ...] = ()
    foreign_keys: tuple[ForeignKey, ...] = ()
    checks: tuple[Check, ...] = ()
    exclusions: tuple[Exclusion, ...] = ()
    indexes: tuple[Index, ...] = ()
    triggers: tuple[Trigger, ...] = ()
    comment: str | None = None
    protection: Protection = Protection()
    estimated_rows: int = -1
    bytes: int = 0
    is_partitioned: bool = False
    parents: tuple[tuple[str, str], ...] = ()
    only: bool = False

    @property
    def qualified(self) -> tuple[str, str]:
        """Schema and name."""
        return self.schema, self.name

    @property
    def label(self) -> str:
        """Return ``schema.table`` as people write it; not SQL."""
        return f"{self.schema}.{self.name}"

    @property
    def copied_columns(self) -> tuple[Column, ...]:
        """Columns whose values travel: all but the generated ones."""
        return tuple(column for column in self.columns if column.is_copied)
