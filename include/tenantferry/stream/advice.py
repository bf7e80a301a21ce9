"""What to do about a table of the target that lacks a change of the source's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import resources

from psycopg2.extensions import connection

from tenantferry.schema.quoting import quote_name, quote_text

# Name and type.
Shape = Sequence[tuple[str, str]]

_FACTS = resources.files("tenantferry.stream").joinpath("column_facts.sql").read_text("utf-8")


def advise(
    source: connection, table: tuple[str, str], sent: Shape, expected: Shape, *, now: Shape
) -> str:
    """
    Return the hint of a table that has another shape in the target than what is sent.

    :param source: in autocommit; only read.
    :param table: schema and name.
    :param expected: columns of the target.
    :param now: columns of the source at this moment, which may be later than what it sends.
    """
    if list(now) == list(expected):
        return (
            "These rows were written before both sides had the shape that they have now, and nobody"
            " can tell what they would be in it: the tenant must be copied again. Clear the task"
            ' "backfill" and those after it.'
        )
    label = quote_name(*table)
    facts = _read_facts(source, table)
    statements = " ".join(f"ALTER TABLE {label} {a};" for a in _plan(sent, expected, facts))
    return (
        f'In the target, as the source did: {statements} Then clear the task "stream_cdc". Other'
        " tenants share the table: if it must not change, undo the change on the source and clear"
        ' the task "backfill" and those after it.'
    )


def _plan(sent: Shape, expected: Shape, facts: dict[str, tuple[str | None, bool]]) -> Iterator[str]:
    """Plan the actions of ALTER TABLE that lead from a shape to the one that is sent."""
    renamed = _find_renames(sent, expected, facts)
    for old, new in renamed.items():
        yield f"RENAME COLUMN {quote_name(old)} TO {quote_name(new)}"
    known = {renamed.get(name, name): type_name for name, type_name in expected}
    wanted = dict(sent)
    for name in known:
        if name not in wanted:
            yield f"DROP COLUMN {quote_name(name)}"
    for name, type_name in sent:
        if name not in known:
            default, _ = facts.get(name, (None, False))
            value = "" if default is None else f" DEFAULT {quote_text(default)}"
            yield f"ADD COLUMN {quote_name(name)} {type_name}{value}"
        elif known[name] != type_name:
            yield f"ALTER COLUMN {quote_name(name)} TYPE {type_name}"


def _find_renames(
    sent: Shape, expected: Shape, facts: dict[str, tuple[str | None, bool]]
) -> dict[str, str]:
    """Find columns that have another name at the same place, and were not made anew there."""
    if len(sent) != len(expected):
        return {}
    renamed: dict[str, str] = {}
    for (new, new_type), (old, old_type) in zip(sent, expected, strict=True):
        if new == old:
            continue
        _, may_be_new = facts.get(new, (None, True))
        if new_type != old_type or may_be_new or new in dict(expected) or old in dict(sent):
            return {}
        renamed[old] = new
    return renamed


def _read_facts(source: connection, table: tuple[str, str]) -> dict[str, tuple[str | None, bool]]:
    with source.cursor() as cursor:
        cursor.execute(_FACTS, table)
        return {name: (default, may_be_new) for name, default, may_be_new in cursor.fetchall()}
