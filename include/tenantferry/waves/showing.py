"""A plan as people read it: a table for a log, Markdown for a page."""

from __future__ import annotations

import io
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from tenantferry.waves.planning import PlannedTenant, WavePlan

_WIDTH = 140
_UNITS = ("B", "kB", "MB", "GB", "TB")
_HEADINGS = ("", "tenant", "criticality", "size", "why")


def render_plan(plan: WavePlan) -> str:
    """Return a plan as a table; tenants that are finished are only counted."""
    table = Table(*_HEADINGS, title=_title(plan), title_justify="left")
    for cells in _rows(plan):
        table.add_row(*cells)
    buffer = io.StringIO()
    Console(file=buffer, width=_WIDTH).print(table)
    return buffer.getvalue().rstrip()


def write_markdown(plan: WavePlan) -> str:
    """Return a plan as a Markdown table."""
    lines = [f"**{_title(plan)}**", "", _join(_HEADINGS), _join(["---"] * len(_HEADINGS))]
    return "\n".join([*lines, *(_join(cells) for cells in _rows(plan))])


def show_size(size_bytes: int | None) -> str:
    """
    Return a size with three digits at most.

    >>> show_size(1_500_000_000)
    '1.4 GB'
    """
    if size_bytes is None:
        return "unknown"
    size, unit = float(size_bytes), 0
    while size >= 1000 and unit < len(_UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{size:.1f} {_UNITS[unit]}" if size < 10 and unit else f"{size:.0f} {_UNITS[unit]}"


def _title(plan: WavePlan) -> str:
    sentence = f"{plan.sentence[:1].upper()}{plan.sentence[1:]}."
    return f"{sentence} Finished: {len(plan.finished)}." if plan.finished else sentence


def _rows(plan: WavePlan) -> Iterator[tuple[str, str, str, str, str]]:
    groups = (plan.picked, plan.under_way, plan.waiting, plan.held_back, plan.refused)
    for number, line in enumerate((line for group in groups for line in group), start=1):
        place = f"{number}. {line.place}" if line in plan.picked else str(line.place)
        yield place, line.tenant, str(line.criticality or ""), _size(line), line.reason


def _size(line: PlannedTenant) -> str:
    size = show_size(line.size_bytes)
    return f"{size}, alone" if line.is_alone else size


def _join(cells: tuple[str, ...] | list[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
