"""Plays drawn cases within a time, and leaves a script of the one that failed."""

from __future__ import annotations

import time
from pathlib import Path

from model_script import Script, format_script
from model_stage import Stage

FAILED = Path(__file__).parents[2] / ".local" / "model" / "failed.sql"


class Budget:
    """
    The time that new cases may take.

    Once a case has failed it does not count any more: what is smaller is looked for then.

    :param least: so many cases are played however long they take.
    :ivar played: how many were, to their end.
    """

    def __init__(self, seconds: float, *, least: int = 0) -> None:
        self._ends_at = time.monotonic() + seconds
        self._least = least
        self.played = 0
        self.has_failed = False

    @property
    def is_over(self) -> bool:
        """Whether no further case is to be played."""
        if self.has_failed or self.played < self._least:
            return False
        return time.monotonic() >= self._ends_at


def play(stage: Stage, script: Script, budget: Budget, *, failed: Path = FAILED) -> None:
    """
    Play a case that hypothesis has drawn.

    :param failed: where the script of a case that fails is written to.
    :raises BaseException: what the case fails with; the script is in its notes.
    """
    if budget.is_over:
        return
    try:
        stage.play(script)
    except BaseException as failure:
        budget.has_failed = True
        text = format_script(script)
        failed.parent.mkdir(parents=True, exist_ok=True)
        failed.write_text(text, "utf-8")
        failure.add_note(f"{text}-- This is in a file: make replay SCRIPT={failed}")
        raise
    budget.played += 1
