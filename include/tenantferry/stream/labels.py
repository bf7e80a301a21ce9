"""Labels of enumerated types that the source has and the target lacks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from psycopg2.extensions import connection

from tenantferry.schema.quoting import quote_name, quote_text
from tenantferry.schema.reading import read_rows, read_schemas
from tenantferry.stream.relations import DriftError


def check_labels(source: connection, target: connection) -> None:
    """
    Check that the target has every label that a row of the source may hold.

    :param source: in autocommit; only read.
    :param target: in autocommit; only read.
    :raises DriftError: if it lacks some; the hint has the statements that it needs.
    """
    there = _read_labels(target)
    missing: list[str] = []
    statements: list[str] = []
    for (schema, name), labels in _read_labels(source).items():
        known = there.get((schema, name))
        if known is None:
            continue
        missing += [
            f'"{label}" of type "{schema}.{name}"' for label in labels if label not in known
        ]
        statements += plan_labels(schema, name, labels, known)
    if missing:
        raise DriftError(
            f"an enumerated type has changed: the target lacks label {', '.join(missing)}",
            detail="No row of the transaction that holds it was applied.",
            hint=f'In the target: {" ".join(statements)} Then clear the task "stream_cdc".',
        )


def plan_labels(
    schema: str, name: str, labels: Sequence[str], known: Sequence[str]
) -> Iterator[str]:
    """
    Yield the statements that give a type the labels of another, in their order.

    >>> list(plan_labels("public", "mood", ["low", "ok", "fine"], ["ok"]))
    ["ALTER TYPE public.mood ADD VALUE 'low' BEFORE 'ok';", \
"ALTER TYPE public.mood ADD VALUE 'fine' AFTER 'ok';"]
    >>> list(plan_labels("public", "mood", ["bad", "ok"], ["sad", "ok"]))
    ["ALTER TYPE public.mood RENAME VALUE 'sad' TO 'bad';"]
    """
    type_name = quote_name(schema, name)
    changed = [(old, new) for old, new in zip(known, labels, strict=False) if old != new]
    if len(known) == len(labels) and not {o for o, _ in changed} & {n for _, n in changed}:
        for old, new in changed:
            yield f"ALTER TYPE {type_name} RENAME VALUE {quote_text(old)} TO {quote_text(new)};"
        return
    first = next((label for label in labels if label in known), None)
    before = labels.index(first) if first is not None else 0
    for label in labels[:before]:
        place = f"BEFORE {quote_text(first or '')}"
        yield f"ALTER TYPE {type_name} ADD VALUE {quote_text(label)} {place};"
    for previous, label in pairwise(labels[before:]):
        if label not in known:
            place = f"AFTER {quote_text(previous)}"
            yield f"ALTER TYPE {type_name} ADD VALUE {quote_text(label)} {place};"


def _read_labels(session: connection) -> dict[tuple[str, str], list[str]]:
    rows = read_rows(session, "enums", {"schemas": list(read_schemas(session, None))})
    return {(schema, name): labels for schema, name, labels, _ in rows}
