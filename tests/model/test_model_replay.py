"""A case that failed can be played again from its script, without hypothesis."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from model_script import format_script, parse_script
from model_stage import Stage

SAMPLE = Path(__file__).with_name("sample_case.sql")


def test_the_script_of_a_case(stage: Stage) -> None:
    """`make replay SCRIPT=failed.sql` names another one."""
    script = parse_script(Path(os.environ.get("MODEL_SCRIPT") or SAMPLE).read_text("utf-8"))

    stage.play(script)

    assert stage.compared > 0


def test_a_script_says_everything() -> None:
    script = parse_script(SAMPLE.read_text("utf-8"))

    assert parse_script(format_script(script)) == script


def test_a_mistake_in_a_script_is_not_overlooked() -> None:
    with pytest.raises(ValueError, match="rnd"):
        parse_script("--> case chunk_rows=3\n--> rnd chunks=1")
