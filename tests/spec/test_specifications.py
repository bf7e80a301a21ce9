"""The models in docs/spec hold in every order of events, and each mistake in them is found."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

MODELS = Path(__file__).parents[2] / "docs" / "spec"
_MUTATION = re.compile(r"^ \*   ([A-Z_]+)  ", re.MULTILINE)
_VERDICT = re.compile(r"errors: (\d+)")


def mutations(model: str) -> list[str]:
    """Return what the model's own comment announces."""
    return _MUTATION.findall((MODELS / model).read_text("utf-8"))


def count_errors(folder: Path, model: str, *definitions: str) -> int:
    """Search all states of a model; the first error ends the search."""

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout

    run("spin", *(f"-D{name}" for name in definitions), "-a", str(MODELS / model))
    run("gcc", "-w", "-O2", "-DSAFETY", "-DCOLLAPSE", "-o", "pan", "pan.c")
    told = run("./pan", "-m1000000")
    assert "search depth too small" not in told
    found = _VERDICT.search(told)
    assert found is not None, told
    return int(found[1])


@pytest.mark.parametrize("model", ["rounds.pml", "cutover.pml"])
def test_the_model_holds_in_every_order_of_events(model: str, tmp_path: Path) -> None:
    assert count_errors(tmp_path, model) == 0


@pytest.mark.parametrize(
    ("model", "mutation"),
    [(model, name) for model in ("rounds.pml", "cutover.pml") for name in mutations(model)],
    ids=lambda value: str(value).lower(),
)
def test_a_mistake_in_the_model_is_refused(model: str, mutation: str, tmp_path: Path) -> None:
    assert count_errors(tmp_path, model, mutation) > 0


def test_the_mutations_that_the_models_announce_are_all_there() -> None:
    for model in ("rounds.pml", "cutover.pml"):
        used = set(re.findall(r"#ifn?def ([A-Z_]+)", (MODELS / model).read_text("utf-8")))
        sizes = set(re.findall(r"#define ([A-Z_]+) ", (MODELS / model).read_text("utf-8")))

        assert set(mutations(model)) == used - sizes
