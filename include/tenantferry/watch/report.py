"""What a check has looked at, and what it found."""

from __future__ import annotations

from dataclasses import dataclass, field

from tenantferry.errors import PermanentError
from tenantferry.schema.findings import Finding, Verdict

Number = float | str | None


class FindingsError(PermanentError):
    """Something of the fleet is wrong, or about to be."""


@dataclass(frozen=True, slots=True)
class Look:
    """
    One thing that was looked at.

    :ivar subject: e.g. a slot.
    :ivar numbers: what was seen of it, by name with its unit; ``None`` is unknown, never zero.
    """

    subject: str
    numbers: dict[str, Number]


@dataclass(slots=True)
class Report:
    """
    One check.

    :ivar findings: an error is what on-call acts on; a warning is to know.
    """

    looks: list[Look] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def see(self, subject: str, **numbers: Number) -> None:
        """Add a look."""
        self.looks.append(Look(subject, numbers))

    @property
    def problems(self) -> list[Finding]:
        """The findings that on-call acts on."""
        return [found for found in self.findings if found.verdict is Verdict.ERROR]

    def check(self, name: str) -> None:
        """
        Fail if on-call has to act.

        :param name: of the check.
        :raises FindingsError: that lists every finding and what to do about it.
        """
        if not self.problems:
            return
        lines = [
            f"({number}) {_capitalize(found.subject)}: {found.detail}\n    To do: {found.hint}"
            for number, found in enumerate(self.problems, start=1)
        ]
        raise FindingsError(
            f'check "{name}" of the fleet found {len(lines)} thing(s) to act on',
            detail="\n" + "\n".join(lines),
            hint="Each is told again at every look until it is gone. Clear the task to look now.",
        )


def _capitalize(text: str) -> str:
    return text[:1].upper() + text[1:]
