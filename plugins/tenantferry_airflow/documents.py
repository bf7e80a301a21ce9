"""What people read in the Airflow UI, kept as one Markdown file per Dag family."""

from __future__ import annotations

from pathlib import Path


def read_sections(path: Path) -> dict[str, str]:
    """
    Split a Markdown file at its second-level headings.

    :return: heading to text below it.
    """
    _, *parts = path.read_text(encoding="utf-8").split("\n## ")
    sections = (part.partition("\n") for part in parts)
    return {heading.strip(): text.strip() for heading, _, text in sections}
