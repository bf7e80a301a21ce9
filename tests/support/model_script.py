"""
A case of the model as a script: SQL of the application, and comments that say what we do.

One statement is one line. A line ``--> word option=value`` begins what its word says: a step of
ours, or the place within a step at which the statements below it run. Other comments say nothing.
``sample_case.sql`` in ``tests/model`` has one of each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

_MARK = "--> "
_HEAD = "-- A case of tests/model. Play it again: make replay SCRIPT=<this file>\n"


class Verb(StrEnum):
    """
    What a step does; ``round``, ``stream`` and ``hold`` may be killed.

    :cvar PUBLISH: publish some tables and no others, as where one comes, or is away for a while.
    """

    WRITE = "write"
    PUBLISH = "publish"
    ROUND = "round"
    STREAM = "stream"
    HOLD = "hold"


class Place(StrEnum):
    """When the application writes within a step."""

    STEP = "step"
    BEFORE_SNAPSHOT = "before_snapshot"
    # Three transactions: the slot waits for the first two, the third is open at its snapshot.
    ACROSS_FIRST = "across_first"
    ACROSS_SECOND = "across_second"
    ACROSS_THIRD = "across_third"
    # After the snapshot was taken, before a row is read.
    AFTER_SNAPSHOT = "after_snapshot"


ACROSS = (Place.ACROSS_FIRST, Place.ACROSS_SECOND, Place.ACROSS_THIRD)


@dataclass(frozen=True, slots=True)
class Step:
    """
    One step, and what is written meanwhile.

    :ivar tables: names of those that a ``publish`` step publishes.
    :ivar chunks: so many a worker of a round copies.
    :ivar rounds: so many a ``round`` step copies.
    :ivar killed_at: name of the point at which its process dies, see ``model_points``.
    :ivar nth: it dies when it comes there for the *nth* time.
    """

    verb: Verb
    writes: dict[Place, tuple[str, ...]] = field(default_factory=dict)
    tables: tuple[str, ...] = ()
    chunks: int = 1
    rounds: int = 1
    killed_at: str = ""
    nth: int = 1


@dataclass(frozen=True, slots=True)
class Script:
    """
    A case.

    :ivar tables: DDL of the source.
    :ivar rows: what it holds at the beginning.
    :ivar batch_bytes: of the stream.
    """

    tables: tuple[str, ...]
    rows: tuple[str, ...]
    steps: tuple[Step, ...]
    chunk_rows: int = 3
    workers: int = 1
    batch_bytes: int = 1 << 20


def format_script(script: Script) -> str:
    """Write a script as text that `parse_script` reads."""
    return _HEAD + "".join(f"{line}\n" for line in _lines(script))


def _lines(script: Script) -> Iterator[str]:
    yield (
        f"{_MARK}case chunk_rows={script.chunk_rows} workers={script.workers}"
        f" batch_bytes={script.batch_bytes}"
    )
    yield f"{_MARK}tables"
    yield from script.tables
    yield f"{_MARK}rows"
    yield from script.rows
    for step in script.steps:
        options = ""
        if step.verb is Verb.PUBLISH:
            options += f" tables={','.join(step.tables)}"
        if step.verb is Verb.ROUND:
            options += f" chunks={step.chunks} rounds={step.rounds}"
        if step.killed_at:
            options += f" killed_at={step.killed_at} nth={step.nth}"
        yield f"{_MARK}{step.verb}{options}"
        for place, statements in step.writes.items():
            if place is not Place.STEP:
                yield f"{_MARK}{place}"
            yield from statements


def parse_script(text: str) -> Script:
    """
    Read a script.

    :raises ValueError: if a line begins with the mark and is none of ours.
    """
    settings: dict[str, str] = {}
    sections: dict[str, list[str]] = {"tables": [], "rows": []}
    steps: list[tuple[str, dict[str, str], dict[Place, list[str]]]] = []
    statements: list[str] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        if not line.startswith(_MARK):
            if not line.startswith("--"):
                statements.append(line)
            continue
        word, *pairs = line.removeprefix(_MARK).split()
        options = dict(_split(pair) for pair in pairs)
        if word == "case":
            settings = options
        elif word in sections:
            statements = sections[word]
        elif word in list(Place):
            statements = steps[-1][2].setdefault(Place(word), [])
        else:
            steps.append((Verb(word), options, {}))
            statements = steps[-1][2].setdefault(Place.STEP, [])
    return Script(
        tables=tuple(sections["tables"]),
        rows=tuple(sections["rows"]),
        steps=tuple(_make_step(*step) for step in steps),
        **{name: int(value) for name, value in settings.items()},
    )


def _split(pair: str) -> tuple[str, str]:
    name, _, value = pair.partition("=")
    return name, value


def _make_step(verb: str, options: dict[str, str], writes: dict[Place, list[str]]) -> Step:
    killed_at = options.pop("killed_at", "")
    tables = tuple(filter(None, options.pop("tables", "").split(",")))
    return Step(
        Verb(verb),
        {place: tuple(lines) for place, lines in writes.items() if lines},
        tables=tables,
        killed_at=killed_at,
        **{name: int(value) for name, value in options.items()},
    )
