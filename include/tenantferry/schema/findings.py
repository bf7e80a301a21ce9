"""What a check found, and whether it stands in the way."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """How much a finding matters."""

    OK = "ok"
    WARNING = "warning"  # to know; does not block
    ERROR = "error"  # blocks the move


@dataclass(frozen=True, slots=True)
class Finding:
    """
    One line of a report.

    :ivar check: name of the check, e.g. ``replica identity``.
    :ivar subject: what was looked at, e.g. a table.
    :ivar detail: whole sentences with the facts.
    :ivar hint: whole sentences with what to do; empty where there is nothing to do.
    """

    check: str
    verdict: Verdict
    subject: str
    detail: str
    hint: str = ""


def warning(check: str, subject: str, detail: str, hint: str = "") -> Finding:
    """Return a finding that does not block."""
    return Finding(check, Verdict.WARNING, subject, detail, hint)


def error(check: str, subject: str, detail: str, hint: str = "") -> Finding:
    """Return a finding that blocks."""
    return Finding(check, Verdict.ERROR, subject, detail, hint)


def ok(check: str, subject: str, detail: str) -> Finding:
    """Return a finding that says a check passed."""
    return Finding(check, Verdict.OK, subject, detail)
