"""What to do about a table of the target that lacks a change of the source's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

from psycopg2.extensions import connection

from tenantferry.schema.quoting import quote_name, quote_text

# Name and type.
Shape = Sequence[tuple[str, str]]

_FACTS = resources.files("tenantferry.stream").joinpath("column_facts.sql").read_text("utf-8")


@dataclass(frozen=True, slots=True)
class ColumnFacts:
    """
    What the source's catalog says now of a column that it sends.

    :ivar type_name: a later one than what was sent, if it was retyped since.
    :ivar missing: the value, as text, of rows that are older than the column.
    :ivar default: expression for new rows, qualified.
    :ivar reads_sequence: new rows take a value of a sequence, which the target does not have.
    :ivar may_be_new: it stands where another column may have been before.
    """

    type_name: str
    missing: str | None
    default: str | None
    reads_sequence: bool
    may_be_new: bool


Facts = Mapping[str, ColumnFacts]


def advise(source: connection, table: tuple[str, str], sent: Shape, expected: Shape) -> str:
    """
    Return the hint of a table that has another shape in the target than what is sent.

    :param source: in autocommit, with `TEXT_SETTINGS`; only read.
    :param table: schema and name.
    :param expected: columns of the target.
    """
    label = quote_name(*table)
    facts = _read_facts(source, table)
    renamed = _find_renames(sent, expected, facts)
    statements = " ".join(
        f"ALTER TABLE {label} {action};" for action in _plan(sent, expected, facts, renamed=renamed)
    )
    kept = {renamed.get(name, name) for name, _ in expected}
    added = {name: facts[name] for name, _ in sent if name in facts and name not in kept}
    return (
        f'In the target, as the source did: {statements} Then clear the task "stream_cdc".'
        f"{_explain_defaults(added)} Other tenants share the table: if it must not change, undo the"
        ' change on the source and clear "stream_cdc": it asks for the tenant to be copied again.'
    )


def _plan(
    sent: Shape, expected: Shape, facts: Facts, *, renamed: Mapping[str, str]
) -> Iterator[str]:
    """Plan the actions of ALTER TABLE that lead from a shape to the one that is sent."""
    for old, new in renamed.items():
        yield f"RENAME COLUMN {quote_name(old)} TO {quote_name(new)}"
    known = {renamed.get(name, name): type_name for name, type_name in expected}
    wanted = dict(sent)
    for name in known:
        if name not in wanted:
            yield f"DROP COLUMN {quote_name(name)}"
    for name, type_name in sent:
        if name not in known:
            yield from _plan_addition(name, type_name, facts.get(name))
        elif known[name] != type_name:
            yield f"ALTER COLUMN {quote_name(name)} TYPE {type_name}"


def _plan_addition(name: str, type_name: str, facts: ColumnFacts | None) -> Iterator[str]:
    """
    Give older rows the value that they have on the source, and new ones its default.

    >>> facts = ColumnFacts("date", "2026-03-04", "CURRENT_DATE", False, False)
    >>> list(_plan_addition("at", "date", facts))
    ["ADD COLUMN at date DEFAULT '2026-03-04', ALTER COLUMN at SET DEFAULT CURRENT_DATE"]
    """
    column = quote_name(name)
    addition = f"ADD COLUMN {column} {type_name}"
    if facts is None:
        yield addition
        return
    if facts.missing is not None:
        addition += f" DEFAULT {quote_text(facts.missing)}"
    if facts.default is not None and facts.type_name == type_name and not facts.reads_sequence:
        # In one statement: no other tenant's INSERT comes between.
        yield f"{addition}, ALTER COLUMN {column} SET DEFAULT {facts.default}"
        return
    if facts.missing is not None:
        # Not DROP DEFAULT: Postgres drops before it adds.
        addition += f", ALTER COLUMN {column} SET DEFAULT NULL"
    yield addition


def _explain_defaults(added: Facts) -> str:
    """Tell what the statements do not do for the columns that they add."""
    text = ""
    empty = [n for n, f in added.items() if f.missing is None and (f.default or f.reads_sequence)]
    if empty:
        text += (
            f" Rows that the target has already hold no value in {', '.join(empty)}: where the"
            ' source has one, "validate" names them, and a run with "repair" copies them again.'
        )
    if fed := [name for name, facts in added.items() if facts.reads_sequence]:
        text += (
            f" In {', '.join(fed)} the source takes values of a sequence: the statements give no"
            ' default there; "preflight" names the one that the target should have.'
        )
    return text


def _find_renames(sent: Shape, expected: Shape, facts: Facts) -> dict[str, str]:
    """Find columns that have another name at the same place, and were not made anew there."""
    if len(sent) != len(expected):
        return {}
    renamed: dict[str, str] = {}
    for (new, new_type), (old, old_type) in zip(sent, expected, strict=True):
        if new == old:
            continue
        may_be_new = new not in facts or facts[new].may_be_new
        if new_type != old_type or may_be_new or new in dict(expected) or old in dict(sent):
            return {}
        renamed[old] = new
    return renamed


def _read_facts(source: connection, table: tuple[str, str]) -> Facts:
    with source.cursor() as cursor:
        cursor.execute(_FACTS, table)
        return {name: ColumnFacts(*facts) for name, *facts in cursor.fetchall()}
