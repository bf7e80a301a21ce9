"""Whatever the model is said to draw is drawn. Nothing is played here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import product

import pytest

# What is installed must do where there is no network.
pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, Phase, given, seed, settings

from model_drawing import scripts
from model_points import POINTS
from model_script import Place, Script, Step, Verb, format_script, parse_script
from model_tables import SHAPES, TYPES

# All is drawn before the first test: ten seconds of a processor that many may want.
pytestmark = pytest.mark.timeout(900)
# Cases of one seed resemble each other: twenty of each of some seeds show more than all of one.
_SEEDS = 15
_CASES_OF_A_SEED = 20
_DRAWING = settings(
    max_examples=_CASES_OF_A_SEED,
    deadline=None,
    database=None,
    phases=(Phase.generate,),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
_KEY = "|".join(sorted({name for shape in SHAPES for name in shape.key}))
_TABLE = re.compile(r"(?:INSERT INTO|UPDATE|DELETE FROM|TRUNCATE) (\w+)")
KINDS = {
    "insert": r"INSERT INTO \w+ ",
    "update": rf"UPDATE \w+ SET (?!({_KEY}) =)\w+ = .* WHERE",
    "update that changes nothing": r"UPDATE \w+ SET (\w+) = \1;",
    "changed key": rf"UPDATE \w+ SET ({_KEY}) = .* WHERE",
    "key that moves across all others": rf"UPDATE \w+ SET ({_KEY}) = .* LIMIT 1\);",
    "swapped key": r"UPDATE \w+ AS r SET \w+ = CASE",
    "swapped value": r"UPDATE \w+ AS r SET \w+ = .* FROM \w+ AS o",
    "delete": r"DELETE FROM \w+ WHERE \(",
    "delete of one of equal rows": r"DELETE FROM \w+ WHERE ctid",
    "truncate": r"TRUNCATE",
    "inserted large value": r"INSERT INTO .*repeat\(md5",
    "updated large value": r"UPDATE .*repeat\(md5",
    "savepoint kept": r"RELEASE SAVEPOINT",
    "savepoint undone": r"ROLLBACK TO SAVEPOINT",
    "transaction": r"COMMIT;",
    "transaction undone": r"ROLLBACK;",
    "prepared transaction": r"PREPARE TRANSACTION",
    "prepared transaction committed": r"COMMIT PREPARED",
    "prepared transaction undone": r"ROLLBACK PREPARED",
}


@pytest.fixture(scope="module")
def drawn() -> list[Script]:
    """The same cases each time."""
    cases: list[Script] = []
    for number in range(_SEEDS):

        @seed(number)
        @settings(_DRAWING)
        @given(scripts())
        def collect(script: Script) -> None:
            cases.append(script)

        collect()
    return cases


def steps_of(cases: list[Script]) -> list[Step]:
    return [step for script in cases for step in script.steps]


def writes_of(cases: list[Script]) -> Iterator[tuple[str, ...]]:
    """Yield what is written at one place of one step, each."""
    for step in steps_of(cases):
        yield from step.writes.values()


def transactions_of(cases: list[Script], end: str) -> Iterator[list[str]]:
    """Yield the statements of each transaction that ends so."""
    for lines in writes_of(cases):
        inside: list[str] = []
        for line in lines:
            if line == "BEGIN;":
                inside = []
            elif line.startswith(end):
                yield inside
            else:
                inside.append(line)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_statement_is_drawn(drawn: list[Script], kind: str) -> None:
    statements = [line for lines in writes_of(drawn) for line in lines]

    assert any(re.match(KINDS[kind], line) for line in statements)


@pytest.mark.parametrize("end", ["COMMIT;", "ROLLBACK;", "PREPARE TRANSACTION "])
def test_transactions_of_several_tables_are_drawn(drawn: list[Script], end: str) -> None:
    most = max(
        len({found[1] for line in lines if (found := _TABLE.match(line))})
        for lines in transactions_of(drawn, end)
    )

    assert most >= 2


def test_every_step_is_drawn(drawn: list[Script]) -> None:
    assert {step.verb for step in steps_of(drawn)} == set(Verb)


def test_every_step_dies_at_each_of_its_points(drawn: list[Script]) -> None:
    killed = {(step.verb, step.killed_at) for step in steps_of(drawn) if step.killed_at}

    assert killed == {(verb, name) for name, point in POINTS.items() for verb in point.verbs}


def test_every_step_goes_on_after_a_death(drawn: list[Script]) -> None:
    pairs = [pair for case in drawn for pair in zip(case.steps, case.steps[1:], strict=False)]

    gone_on = {after.verb for before, after in pairs if before.killed_at}

    assert gone_on == set(Verb)


def test_tables_come_and_are_away_for_a_while(drawn: list[Script]) -> None:
    of_a_case = [[s.tables for s in case.steps if s.verb is Verb.PUBLISH] for case in drawn]
    begun = [case.steps[0].verb for case in drawn]

    assert {Verb.PUBLISH, Verb.ROUND} <= set(begun)
    # One is left out, is there again, and is left out once more.
    assert any(len({*one, *three}) < len(two) for found in of_a_case
               for one, two, three in zip(found, found[1:], found[2:], strict=False))  # fmt: skip


def test_something_is_written_at_every_place(drawn: list[Script]) -> None:
    places = {(step.verb, place) for step in steps_of(drawn) for place in step.writes}

    around = set(Place) - {Place.STEP}
    assert places == {
        (Verb.WRITE, Place.STEP),
        *((verb, place) for verb in (Verb.ROUND, Verb.HOLD) for place in around),
    }


def test_every_size_is_drawn(drawn: list[Script]) -> None:
    rounds = [step for step in steps_of(drawn) if step.verb is Verb.ROUND]
    killed = [step for step in steps_of(drawn) if step.killed_at]

    assert {script.chunk_rows for script in drawn} == {1, 2, 3, 4}
    assert {script.workers for script in drawn} == {1, 2}
    assert {script.batch_bytes for script in drawn} == {2_000, 1 << 20}
    assert {step.chunks for step in rounds} >= {1, 2, 3}
    assert {step.rounds for step in rounds} >= {1, 2}
    assert {step.nth for step in killed} == {1, 2}


def test_every_table_is_drawn_and_several_at_once(drawn: list[Script]) -> None:
    tables = [{s.name for s in SHAPES if set(s.ddl) <= set(script.tables)} for script in drawn]

    assert set().union(*tables) == {shape.name for shape in SHAPES}
    assert {len(names) for names in tables} == {1, 2, 3}


def test_columns_of_every_type_are_drawn_with_and_without_null_and_default(
    drawn: list[Script],
) -> None:
    added = re.compile(r"ALTER TABLE \w+ ADD \w+ (\S+?)( NOT NULL)?( DEFAULT .+)?;")
    lines = [line for script in drawn for line in script.tables]
    found = {
        (match[1], bool(match[2]), bool(match[3])) for line in lines if (match := added.match(line))
    }

    assert found == set(product(TYPES, (False, True), (False, True)))


def test_every_case_is_the_same_from_its_script(drawn: list[Script]) -> None:
    assert [parse_script(format_script(script)) for script in drawn] == drawn
