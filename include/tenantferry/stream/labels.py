"""Labels of enumerated types that the source has and the target lacks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from psycopg2.extensions import connection

from tenantferry.schema.quoting import quote_name, quote_text
from tenantferry.schema.reading import read_rows, read_schemas
from tenantferry.stream.drift import DriftError


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
    surplus: list[str] = []
    for (schema, name), labels in _read_labels(source).items():
        known = there.get((schema, name), labels)
        if set(labels) <= set(known):
            continue
        missing += _spell_labels(schema, name, (label for label in labels if label not in known))
        surplus += _spell_labels(schema, name, (label for label in known if label not in labels))
        statements += plan_labels(schema, name, labels, known)
    if missing:
        raise DriftError(
            f"an enumerated type has changed: the target lacks label {', '.join(missing)}",
            detail="No row of the transaction that holds it was applied.",
            hint=f'In the target: {" ".join(statements)} Then clear the task "stream_cdc".'
            + (_explain_surplus(surplus) if surplus else ""),
        )


def plan_labels(
    schema: str, name: str, labels: Sequence[str], known: Sequence[str]
) -> Iterator[str]:
    """
    Yield the statements that add the labels which a type lacks, each beside one that is there.

    No label is renamed: rows of other tenants may hold it, and would change.

    >>> list(plan_labels("public", "mood", ["low", "ok", "fine"], ["ok"]))
    ["ALTER TYPE public.mood ADD VALUE 'low' BEFORE 'ok';", \
"ALTER TYPE public.mood ADD VALUE 'fine' AFTER 'ok';"]
    >>> list(plan_labels("public", "mood", ["well", "fine"], ["ok", "bad"]))
    ["ALTER TYPE public.mood ADD VALUE 'well';", \
"ALTER TYPE public.mood ADD VALUE 'fine' AFTER 'well';"]
    """
    first = next((label for label in labels if label in known), None)
    place = "" if first is None else f" BEFORE {quote_text(first)}"
    for label in labels:
        if label not in known:
            yield f"ALTER TYPE {quote_name(schema, name)} ADD VALUE {quote_text(label)}{place};"
        place = f" AFTER {quote_text(label)}"


def _explain_surplus(surplus: Sequence[str]) -> str:
    """Tell what to do if a label was renamed, which cannot be told from one that was added."""
    return (
        f" Only the target has label {', '.join(surplus)}. If the source renamed one of these, rows"
        ' that the target has already keep it: "validate" names them, and a run with "repair"'
        " copies them again. A label may be renamed in the target instead only if neither a row of"
        " another tenant nor an older change that is still to be applied holds it."
    )


def _spell_labels(schema: str, name: str, labels: Iterable[str]) -> list[str]:
    return [f'"{label}" of type "{schema}.{name}"' for label in labels]


def _read_labels(session: connection) -> dict[tuple[str, str], list[str]]:
    rows = read_rows(session, "enums", {"schemas": list(read_schemas(session, None))})
    return {(schema, name): labels for schema, name, labels, _ in rows}
