"""A table that becomes the parent of another one while a stream carries both."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import pytest

from move_stage import APP_PASSWORD, Stage, rows
from tenantferry.connections import open_client_connection
from tenantferry.control.phases import Phase
from tenantferry.moves.cutover import cutover
from tenantferry.moves.lag import measure_lag
from tenantferry.moves.move import Move
from tenantferry.moves.validate import validate

INHERIT = "ALTER TABLE public.child INHERIT public.parent"
READ_CHILD = "SELECT id, note FROM ONLY public.child ORDER BY id"
CHILDREN = [(1, "child"), (2, "child")]


@pytest.fixture
def move(move: Move) -> Move:
    """Two tables of rows with the same keys, before the copy."""
    owner = replace(move.source, user="app_owner", password=APP_PASSWORD)
    with closing(open_client_connection(owner, purpose="schema")) as session, session:
        for name in ("parent", "child"):
            rows(session, f"CREATE TABLE public.{name} (id bigint PRIMARY KEY, note text)")
            rows(session, f"INSERT INTO public.{name} VALUES (1, '{name}'), (2, '{name}')")
    return move


def test_a_truncate_of_the_parent_spares_the_child(stage: Stage) -> None:
    stage.ask("UPDATE public.parent SET note = 'known to the stream' WHERE id = 1")
    measure_lag(stage.move)
    stage.ask(INHERIT)
    rows(stage.target, INHERIT)
    assert validate(stage.move).mismatches == 0

    stage.ask("TRUNCATE ONLY public.parent")
    cutover(stage.move)

    assert stage.phase() == Phase.LIVE
    assert rows(stage.source, READ_CHILD) == CHILDREN
    assert rows(stage.target, READ_CHILD) == CHILDREN
    assert rows(stage.target, "SELECT id FROM ONLY public.parent") == []
