"""Schema changes that altered rows, too: the target takes the change, and a repair the rows."""

from __future__ import annotations

import re
import time
from contextlib import closing
from dataclasses import replace
from threading import Event

import pytest

from move_stage import APP_PASSWORD, Stage, rows
from tenantferry.connections import open_client_connection
from tenantferry.errors import TransientError
from tenantferry.moves.backfill import backfill
from tenantferry.moves.move import Move
from tenantferry.moves.stream import stream
from tenantferry.moves.validate import MismatchError, validate
from tenantferry.stream.drift import DriftError

# The stream of the stage ends where it meets the change.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")

OTHER_ID = "22222222-2222-2222-2222-222222222222"
CHANGES = {
    "label renamed": (
        "ALTER TYPE public.mood RENAME VALUE 'ok' TO 'well'",
        "INSERT INTO public.moods VALUES (3, 'well')",
    ),
    "column added with a volatile default": (
        "ALTER TABLE public.moods ADD token uuid DEFAULT gen_random_uuid()",
        "INSERT INTO public.moods VALUES (3, 'ok')",
    ),
}
READ = "SELECT {} FROM public.moods WHERE {} ORDER BY id"


@pytest.fixture
def move(move: Move) -> Move:
    """A tenant with rows of an enumerated type."""
    owner = replace(move.source, user="app_owner", password=APP_PASSWORD)
    with closing(open_client_connection(owner, purpose="schema")) as session, session:
        rows(session, "CREATE TYPE public.mood AS ENUM ('low', 'ok')")
        rows(session, "CREATE TABLE public.moods (id integer PRIMARY KEY, mood public.mood)")
        rows(session, "INSERT INTO public.moods VALUES (1, 'ok'), (2, 'low')")
    return move


def meet_change(stage: Stage) -> str:
    """Stream until the change is met, as Airflow does, and return what the error says to do."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            result = stream(stage.move, stop=Event())
        except TransientError:  # the stream of the stage still has the slot
            time.sleep(0.1)
        except DriftError as drift:
            return drift.hint
        else:
            raise AssertionError(f"it ended: {result.reason}")
    raise AssertionError("the change was not met in time")


@pytest.mark.parametrize("kind", CHANGES)
def test_repair_makes_exact_what_a_mended_change_left(stage: Stage, kind: str) -> None:
    change, write = CHANGES[kind]
    rows(stage.target, "INSERT INTO public.moods VALUES (1, 'ok', %s)", OTHER_ID)

    stage.ask(f"{change}; SELECT 1")
    stage.ask(f"{write} RETURNING 1")
    hint = meet_change(stage)
    for statement in re.findall(r"ALTER [^;]*;", hint):
        rows(stage.target, statement)
    with stage.streaming_again():
        with pytest.raises(MismatchError):
            validate(stage.move)
        result = validate(stage.move, repair=True)

    assert '"repair"' in hint
    assert (result.mismatches, result.rows) == (0, 12)
    own = f"tenant_id = '{stage.move.tenant.id}'"
    columns = "id, mood::text, token" if "column" in kind else "id, mood::text"
    there = rows(stage.source, READ.format(columns, "true"))
    assert rows(stage.target, READ.format(columns, own)) == there
    assert rows(stage.target, READ.format("id, mood::text", f"NOT {own}")) == [(1, "ok")]


def test_a_change_that_was_undone_on_the_source_lets_backfill_copy_all_again(stage: Stage) -> None:
    for statement in (
        "ALTER TABLE public.moods ADD extra int",
        "INSERT INTO public.moods VALUES (3, 'ok', 1)",
        "ALTER TABLE public.moods DROP extra",
    ):
        stage.ask(statement)
    assert 'Clear the task "backfill"' in meet_change(stage)

    backfill(stage.move)
    with stage.streaming_again():
        assert validate(stage.move).mismatches == 0

    assert rows(stage.target, READ.format("id", "true")) == [(1,), (2,), (3,)]
