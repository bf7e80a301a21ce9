"""All that a database holds besides the rows of its tables, as both sides describe it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from tenantferry.schema.model import Check, Table


@dataclass(frozen=True, slots=True)
class Enum:
    """An enumerated type; *labels* in their sort order."""

    schema: str
    name: str
    labels: tuple[str, ...]
    comment: str | None = None


@dataclass(frozen=True, slots=True)
class Domain:
    """
    A domain.

    :ivar type_name: of what it is based on, as ``format_type`` spells it.
    :ivar collation: quoted name of a collation that is not the base type's own, else ``None``.
    """

    schema: str
    name: str
    type_name: str
    not_null: bool = False
    default: str | None = None
    collation: str | None = None
    checks: tuple[Check, ...] = ()
    comment: str | None = None


@dataclass(frozen=True, slots=True)
class Composite:
    """A composite type; *attributes* are pairs of a name and a type with its collation."""

    schema: str
    name: str
    attributes: tuple[tuple[str, str], ...]
    comment: str | None = None


@dataclass(frozen=True, slots=True)
class Range:
    """
    A range type.

    :ivar subtype: as ``format_type`` spells it.
    :ivar operator_class: quoted, qualified name.
    :ivar collation: quoted name of one that is not the subtype's own, else ``None``.
    :ivar difference: quoted, qualified name of its function, or ``None``.
    :ivar multirange: qualified name of the type that comes with it.
    """

    schema: str
    name: str
    subtype: str
    operator_class: str
    collation: str | None
    difference: str | None
    multirange: tuple[str, str]
    comment: str | None = None


@dataclass(frozen=True, slots=True)
class Sequence:
    """
    A sequence.

    :ivar feeds: ``(schema, table, column)`` of the column that owns it, else ``None``.
    """

    schema: str
    name: str
    type_name: str
    start: int
    increment: int
    minimum: int
    maximum: int
    cache: int
    cycle: bool
    feeds: tuple[str, str, str] | None = None


def build_sequence(row: tuple[Any, ...]) -> Sequence:
    """Make a sequence of a row of ``sequences.sql``."""
    (
        schema, name, type_name, start, increment, minimum, maximum, cache, cycle,
        *column,
    ) = row  # fmt: skip
    return Sequence(
        schema=schema,
        name=name,
        type_name=type_name,
        start=start,
        increment=increment,
        minimum=minimum,
        maximum=maximum,
        cache=cache,
        cycle=cycle,
        feeds=None if None in column else (column[0], column[1], column[2]),
    )


@dataclass(frozen=True, slots=True)
class View:
    """
    A view; *definition* as ``pg_get_viewdef`` spells it.

    :ivar options: ``name=value``, as ``reloptions``.
    :ivar views: qualified names of the views that it reads.
    :ivar tables: qualified names of the tables that it reads.
    :ivar needs_key: whether a ``GROUP BY`` of it relies on a primary key.
    :ivar granted: privileges of the group ``tenantferry_app`` and of everyone, sorted.
    """

    schema: str
    name: str
    definition: str
    options: tuple[str, ...] = ()
    views: tuple[tuple[str, str], ...] = ()
    tables: tuple[tuple[str, str], ...] = ()
    needs_key: bool = False
    comment: str | None = None
    granted: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Function:
    """
    A function or procedure; *definition* as ``pg_get_functiondef`` spells it.

    :ivar arguments: as ``pg_get_function_identity_arguments`` spells them.
    :ivar needs_tables: whether it names the row type of a table, or has a body that Postgres
        parses when it is made.
    """

    schema: str
    name: str
    arguments: str
    language: str
    definition: str
    security_definer: bool = False
    needs_tables: bool = False

    @property
    def is_carried(self) -> bool:
        """
        Whether it can be made in the target.

        ``SECURITY DEFINER`` would run as the owner, past row security; a function in C needs a
        superuser.
        """
        return not self.security_definer and self.language not in ("c", "internal")

    @property
    def signature(self) -> str:
        """Name and arguments as people write them; not SQL."""
        return f"{self.schema}.{self.name}({self.arguments})"


@dataclass(frozen=True, slots=True)
class Extension:
    """An installed extension."""

    name: str
    schema: str
    version: str


class UncarriedKind(StrEnum):
    """What kind of object the retrofit leaves behind."""

    UNLOGGED_TABLE = "unlogged table"
    FOREIGN_TABLE = "foreign table"
    MATERIALIZED_VIEW = "materialized view"
    RULE = "rule"
    RANGE_TYPE = "range type"
    COLLATION = "collation"
    AGGREGATE = "aggregate"
    OPERATOR = "operator"
    STATISTICS = "extended statistics"
    TEMPORAL_KEY = "temporal constraint"
    POLICY = "row security policy"


@dataclass(frozen=True, slots=True)
class Uncarried:
    """
    An object that the retrofit leaves behind.

    :ivar table: of a rule, policy or constraint: the table it belongs to.
    """

    kind: UncarriedKind
    schema: str
    name: str
    table: str | None = None


@dataclass(frozen=True, slots=True)
class Partition:
    """
    One partition, at any depth.

    :ivar root: qualified name of the partitioned table.
    :ivar kind: ``"r"``, ``"p"`` or ``"f"``, as ``relkind``.
    :ivar persistence: ``"p"`` or ``"u"``, as ``relpersistence``.
    :ivar replica_identity: ``"d"``, ``"n"``, ``"f"`` or ``"i"``, as ``relreplident``.
    :ivar key: columns of the index of its replica identity.
    :ivar own: what its root does not have, e.g. ``check "small"``.
    :ivar generated_otherwise: generated columns with another expression than the root's.
    """

    root: tuple[str, str]
    schema: str
    name: str
    kind: str
    persistence: str
    replica_identity: str
    key: tuple[str, ...] = ()
    own: tuple[str, ...] = ()
    generated_otherwise: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Return ``schema.table`` as people write it; not SQL."""
        return f"{self.schema}.{self.name}"


@dataclass(frozen=True, slots=True)
class Catalog:
    """
    The schema of one database, without what is Postgres', an extension's or ours.

    :ivar version: as ``server_version_num``, e.g. ``150004``.
    :ivar usable_schemas: those that the group ``tenantferry_app``, or everyone, may use.
    :ivar partitions: of the partitioned tables, at every depth.
    :ivar collations: quoted, qualified names of those that its encoding has.
    :ivar type_order: qualified names of all types; what one is made of comes before it.
    """

    version: int
    schemas: tuple[str, ...] = ()
    usable_schemas: frozenset[str] = frozenset()
    extensions: tuple[Extension, ...] = ()
    enums: tuple[Enum, ...] = ()
    domains: tuple[Domain, ...] = ()
    composites: tuple[Composite, ...] = ()
    ranges: tuple[Range, ...] = ()
    sequences: tuple[Sequence, ...] = ()
    functions: tuple[Function, ...] = ()
    tables: tuple[Table, ...] = ()
    views: tuple[View, ...] = ()
    uncarried: tuple[Uncarried, ...] = ()
    partitions: tuple[Partition, ...] = ()
    collations: frozenset[str] = frozenset()
    type_order: tuple[tuple[str, str], ...] = ()

    def find_table(self, schema: str, name: str) -> Table | None:
        """Return one table, or ``None``."""
        return next((table for table in self.tables if table.qualified == (schema, name)), None)
