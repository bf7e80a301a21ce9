"""Draws cases: a schema, its rows, what the application commits, and what we do meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

from hypothesis import strategies as st

from model_points import POINTS
from model_script import ACROSS, Place, Script, Step, Verb
from model_tables import FREE, SHAPES, TYPES, Extra, Shape, widen

Statements = tuple[str, ...]
_MOST_STEPS_WHILE_COPYING = 6
_MOST_STEPS_BEHIND_IT = 4
_COPY_THE_REST = Step(Verb.ROUND, chunks=100, rounds=100)
_WHILE_COPYING = (
    *2 * (Verb.WRITE,), *2 * (Verb.ROUND,), Verb.STREAM, Verb.PUBLISH, "prepare",
)  # fmt: skip
_BEHIND_IT = (
    *2 * (Verb.WRITE,), *2 * (Verb.STREAM,), *5 * (Verb.HOLD,), Verb.ROUND, Verb.PUBLISH, "prepare",
)  # fmt: skip


def _pick(draw: st.DrawFn, values: Sequence[str]) -> str:
    return draw(st.sampled_from(values))


def _insert(draw: st.DrawFn, shape: Shape) -> Statements:
    keys = draw(st.lists(st.sampled_from(shape.keys), min_size=1, max_size=3))
    rows = [(*key, *(_pick(draw, values) for values in shape.values.values())) for key in keys]
    return tuple(_insert_statement(shape, row) for row in rows)


def _insert_statement(shape: Shape, row: Sequence[str]) -> str:
    names = ", ".join((*shape.key, *shape.values))
    return f"INSERT INTO {shape.name} ({names}) OVERRIDING SYSTEM VALUE VALUES ({', '.join(row)});"


def _update(draw: st.DrawFn, shape: Shape) -> Statements:
    column = _pick(draw, tuple(shape.values))
    value = _pick(draw, shape.values[column])
    keys = draw(st.lists(st.sampled_from(shape.keys), min_size=1, max_size=3, unique=True))
    where = " OR ".join(map(shape.where, keys))
    return (f"UPDATE {shape.name} SET {column} = {value} WHERE {where};",)


def _touch(draw: st.DrawFn, shape: Shape) -> Statements:
    """Write every row anew without a change: no value that lies out of line is sent."""
    column = _pick(draw, tuple(shape.values))
    return (f"UPDATE {shape.name} SET {column} = {column};",)


def _set_key(shape: Shape, key: tuple[str, ...]) -> str:
    changes = ", ".join(f"{name} = {value}" for name, value in zip(shape.key, key, strict=True))
    return f"UPDATE {shape.name} SET {changes}"


def _move(draw: st.DrawFn, shape: Shape) -> Statements:
    old, new = (draw(st.sampled_from(shape.keys)) for _ in range(2))
    return (f"{_set_key(shape, new)} WHERE {shape.where(old)};",)


def _move_across(draw: st.DrawFn, shape: Shape) -> Statements:
    """Move the last row before all others, where chunks are copied early, or the first behind."""
    order, keys = draw(st.sampled_from([("DESC", shape.keys[:FREE]), ("ASC", shape.keys[-FREE:])]))
    names = ", ".join(shape.key)
    by = ", ".join(f"{name} {order}" for name in shape.key)
    row = f"(SELECT {names} FROM {shape.name} ORDER BY {by} LIMIT 1)"
    return (f"{_set_key(shape, draw(st.sampled_from(keys)))} WHERE ({names}) = {row};",)


def _move_and_back(draw: st.DrawFn, shape: Shape) -> Statements:
    """Two rows pass a key on, or swap theirs by way of a third."""
    first, second, third = (draw(st.sampled_from(shape.keys)) for _ in range(3))
    steps = [(first, third), (second, first), (third, second)]
    return tuple(f"{_set_key(shape, new)} WHERE {shape.where(old)};" for old, new in steps)


def _swap(draw: st.DrawFn, shape: Shape) -> Statements:
    if not shape.freed:
        return _update(draw, shape)
    column = _pick(draw, tuple(shape.freed))
    first, second = draw(st.lists(st.sampled_from(shape.keys), min_size=2, max_size=2, unique=True))
    both = f"{shape.where(first, 'r')} OR {shape.where(second, 'r')}"
    free = f"UPDATE {shape.name} AS r SET {column} = {shape.freed[column]} WHERE {both};"
    if column in shape.key:  # a deferrable key needs no way round
        other = f"CASE r.{column} WHEN {first[0]} THEN {second[0]} ELSE {first[0]} END"
        return (f"UPDATE {shape.name} AS r SET {column} = {other} WHERE {both};",)
    pairs = (
        f"{shape.where(first, 'r')} AND {shape.where(second, 'o')}"
        f" OR {shape.where(second, 'r')} AND {shape.where(first, 'o')}"
    )
    take = (
        f"UPDATE {shape.name} AS r SET {column} = {shape.taken[column]}"
        f" FROM {shape.name} AS o WHERE {pairs};"
    )
    return free, take


def _delete(draw: st.DrawFn, shape: Shape) -> Statements:
    keys = draw(st.lists(st.sampled_from(shape.keys), min_size=1, max_size=3, unique=True))
    return (f"DELETE FROM {shape.name} WHERE {' OR '.join(map(shape.where, keys))};",)


def _delete_one(draw: st.DrawFn, shape: Shape) -> Statements:
    """Delete one of rows that may all be the same."""
    where = shape.where(draw(st.sampled_from(shape.keys)))
    row = f"(SELECT min(ctid) FROM {shape.name} WHERE {where})"
    return (f"DELETE FROM {shape.name} WHERE ctid = {row};",)


def _truncate(_: st.DrawFn, shape: Shape) -> Statements:
    return (f"TRUNCATE {shape.name};",)


# What is named more often is drawn more often.
_CHANGES = (
    *3 * (_insert,), *3 * (_update,), _touch, _move, *5 * (_move_across,), _move_and_back,
    *2 * (_swap,), _delete, _delete_one, _truncate,
)  # fmt: skip


@st.composite
def _change(draw: st.DrawFn, shapes: tuple[Shape, ...], *, may_truncate: bool) -> Statements:
    changes = [c for c in _CHANGES if may_truncate or c is not _truncate]
    return draw(st.sampled_from(changes))(draw, draw(st.sampled_from(shapes)))


@st.composite
def _inside(draw: st.DrawFn, shapes: tuple[Shape, ...], *, may_truncate: bool) -> Statements:
    """Draw the statements of one transaction, some of them undone within it."""
    lines: list[str] = []
    for _ in range(draw(st.integers(1, 4))):
        change = draw(_change(shapes, may_truncate=may_truncate))
        end = draw(st.sampled_from(["", "", "RELEASE SAVEPOINT s;", "ROLLBACK TO SAVEPOINT s;"]))
        lines += ("SAVEPOINT s;", *change, end) if end else change
    return tuple(lines)


@st.composite
def _writes(draw: st.DrawFn, shapes: tuple[Shape, ...], *, may_truncate: bool = True) -> Statements:
    lines: list[str] = []
    for _ in range(draw(st.integers(1, 3))):
        end = draw(st.sampled_from(["", "COMMIT;", "COMMIT;", "ROLLBACK;"]))
        if end:
            lines += ("BEGIN;", *draw(_inside(shapes, may_truncate=may_truncate)), end)
        else:
            lines += draw(_change(shapes, may_truncate=may_truncate))
    return tuple(lines)


class _Steps:
    """
    Draws steps one after the other.

    A prepared transaction is ended before a step that creates a slot: that would wait for it.
    """

    def __init__(self, draw: st.DrawFn, shapes: tuple[Shape, ...]) -> None:
        self._draw, self._shapes = draw, shapes
        self._numbers = count(1)
        self._prepared: list[str] = []
        self._published = tuple(shape.name for shape in shapes)
        self.drawn: list[Step] = []

    def draw(self, kinds: Sequence[str], *, most: int) -> None:
        """Draw some steps of certain kinds."""
        for _ in range(self._draw(st.integers(2, most))):
            self._draw_one(self._draw(st.sampled_from(kinds)))

    def copy_the_rest(self) -> None:
        """Copy what is left, so that the stream can begin."""
        self.end_prepared()
        self._publish(self._shapes)
        self.drawn.append(_COPY_THE_REST)

    def _draw_one(self, kind: str) -> None:
        if kind == "prepare":
            self._prepare()
        elif kind == Verb.PUBLISH:
            self.publish()
        elif kind == Verb.WRITE:
            self._write(*self._draw(_writes(self._shapes)))
        else:
            if kind != Verb.STREAM:
                self.end_prepared()
            self.act(Verb(kind))

    def end_prepared(self) -> None:
        """End what is prepared, in any order."""
        for name in self._draw(st.permutations(self._prepared)):
            self._write(f"{_pick(self._draw, ['COMMIT', 'ROLLBACK'])} PREPARED '{name}';")
        self._prepared.clear()

    def publish(self) -> None:
        """Draw tables to publish: all of them, or all but one."""
        shapes = self._shapes
        if len(shapes) > 1 and self._draw(st.booleans()):
            left_out = self._draw(st.sampled_from(shapes))
            shapes = tuple(shape for shape in shapes if shape is not left_out)
        self._publish(shapes)

    def _publish(self, shapes: Sequence[Shape]) -> None:
        names = tuple(shape.name for shape in shapes)
        if names != self._published:
            self.drawn.append(Step(Verb.PUBLISH, tables=names))
        self._published = names

    def _write(self, *lines: str) -> None:
        self.drawn.append(Step(Verb.WRITE, {Place.STEP: lines}))

    def _prepare(self) -> None:
        name = f"p{next(self._numbers)}"
        # Its lock on a table would keep us from looking at the source.
        inside = self._draw(_inside(self._shapes, may_truncate=False))
        self._write("BEGIN;", *inside, f"PREPARE TRANSACTION '{name}';")
        self._prepared.append(name)

    def act(self, verb: Verb) -> None:
        """Draw a step of ours, what is written meanwhile, and where it dies."""
        draw, writes = self._draw, dict[Place, Statements]()
        if verb is not Verb.STREAM:
            if draw(st.booleans()):
                writes[Place.BEFORE_SNAPSHOT] = draw(_writes(self._shapes))
            if draw(st.booleans()):
                for place in ACROSS:
                    writes[place] = draw(_inside(self._shapes, may_truncate=False))
            if draw(st.booleans()):
                # A snapshot shows an empty table after TRUNCATE; only a round looks out for it.
                may_truncate = verb is Verb.ROUND
                writes[Place.AFTER_SNAPSHOT] = draw(
                    _writes(self._shapes, may_truncate=may_truncate)
                )
        points = sorted(name for name, point in POINTS.items() if verb in point.verbs)
        killed_at = draw(st.sampled_from(points)) if draw(st.booleans()) else ""
        rounds = verb is Verb.ROUND
        self.drawn.append(
            Step(
                verb,
                writes,
                chunks=draw(st.sampled_from([1, 1, 1, 2, 3])) if rounds else 1,
                rounds=draw(st.sampled_from([1, 1, 1, 2])) if rounds else 1,
                killed_at=killed_at,
                nth=draw(st.sampled_from([1, 1, 2])) if killed_at else 1,
            )
        )


@st.composite
def _shapes(draw: st.DrawFn) -> tuple[Shape, ...]:
    shapes = st.lists(st.sampled_from(SHAPES), min_size=1, max_size=3, unique_by=lambda s: s.name)
    extras = st.builds(Extra, st.sampled_from(tuple(TYPES)), st.booleans(), st.booleans())
    return tuple(widen(shape, draw(st.lists(extras, max_size=3))) for shape in draw(shapes))


@st.composite
def scripts(draw: st.DrawFn) -> Script:
    """Draw a case."""
    shapes = draw(_shapes())
    rows = [
        _insert_statement(shape, (*key, *(_pick(draw, v) for v in shape.values.values())))
        for shape in shapes
        for key in draw(st.lists(st.sampled_from(shape.keys[FREE:-FREE]), min_size=4, max_size=12))
    ]
    steps = _Steps(draw, shapes)
    # One that is not published yet comes while others are copied.
    steps.publish()
    # What is written before it is copied whatever happens.
    steps.act(Verb.ROUND)
    steps.draw(_WHILE_COPYING, most=_MOST_STEPS_WHILE_COPYING)
    if draw(st.sampled_from([True, True, False])):
        steps.copy_the_rest()
        steps.draw(_BEHIND_IT, most=_MOST_STEPS_BEHIND_IT)
    steps.end_prepared()
    return Script(
        tables=tuple(line for shape in shapes for line in shape.ddl),
        rows=tuple(rows),
        steps=tuple(steps.drawn),
        chunk_rows=draw(st.integers(1, 4)),
        workers=draw(st.sampled_from([1, 1, 2])),
        # So small that most transactions are applied in many steps.
        batch_bytes=draw(st.sampled_from([1 << 20, 2_000])),
    )
