"""A notifier of Airflow that tells a list."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from airflow.sdk import BaseNotifier

if TYPE_CHECKING:
    from airflow.sdk import Context


class RecordingNotifier(BaseNotifier):
    """
    Keeps what it is told.

    :param text: a template.
    """

    template_fields: Sequence[str] = ("text",)
    told: ClassVar[list[str]] = []

    def __init__(self, *, text: str) -> None:
        super().__init__()
        self.text = text

    def notify(self, context: Context) -> None:
        """Keep the rendered text."""
        self.told.append(self.text)
