"""A notifier of Airflow that tells a list, or a file where the test is another process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from airflow.sdk import BaseNotifier

if TYPE_CHECKING:
    from airflow.sdk import Context


class RecordingNotifier(BaseNotifier):
    """
    Keeps what it is told.

    :param text: a template.
    :param file: gets it, too, a line each time.
    """

    template_fields: Sequence[str] = ("text",)
    told: ClassVar[list[str]] = []

    def __init__(self, *, text: str, file: str = "") -> None:
        super().__init__()
        self.text = text
        self.file = file

    def notify(self, context: Context) -> None:
        """Keep the rendered text."""
        self.told.append(self.text)
        if self.file:
            with Path(self.file).open("a", encoding="utf-8") as file:
                file.write(f"{self.text}\n")
