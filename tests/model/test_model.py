"""
Any case that can be drawn: the target holds the source's rows as of P, and nobody else's change.

``make soak MINUTES=60`` draws new cases for so long; ``make test`` draws the same few every time.
"""

from __future__ import annotations

import math
import os
import secrets

import pytest

# What is installed must do where there is no network.
pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, Phase, given, seed, settings

from model_drawing import scripts
from model_playing import Budget, play
from model_script import Script
from model_stage import Stage

_SHORT_SECONDS = 15.0
# The first one is always the smallest one that can be drawn; on a busy machine few others follow.
_LEAST_CASES = 4
_ORDINARY = settings(
    deadline=None,
    database=None,
    print_blob=False,
    phases=(Phase.generate, Phase.shrink),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


# A case that fails is made smaller for some minutes.
@pytest.mark.timeout(900)
def test_every_case_is_exact(stage: Stage) -> None:
    budget = Budget(_SHORT_SECONDS, least=_LEAST_CASES)

    @settings(_ORDINARY, max_examples=12, derandomize=True)
    @given(scripts())
    def check(script: Script) -> None:
        play(stage, script, budget)

    check()

    assert budget.played >= _LEAST_CASES
    # Each at its end, at least.
    assert stage.compared >= budget.played


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_every_case_is_exact_for_as_long_as_wanted(stage: Stage, soak_seconds: float) -> None:
    wanted = os.environ.get("SOAK_SEED")
    budget = Budget(math.inf if wanted else soak_seconds)
    while not budget.is_over:
        number = int(wanted) if wanted else secrets.randbits(32)
        print(f"SOAK_SEED={number}", flush=True)

        @seed(number)
        @settings(_ORDINARY, max_examples=10)
        @given(scripts())
        def check(script: Script) -> None:
            play(stage, script, budget)

        check()
        print(f"compared={stage.compared} deaths={stage.deaths}", flush=True)
        if wanted:
            return


def test_a_budget_of_no_time_is_over_when_the_least_number_of_cases_was_played() -> None:
    budget = Budget(0.0, least=1)
    assert not budget.is_over

    budget.played = 1

    assert budget.is_over
