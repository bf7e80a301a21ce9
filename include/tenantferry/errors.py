"""The two families of errors: a retry may help (transient), or it cannot (permanent)."""

from __future__ import annotations


class TenantferryError(Exception):
    """
    A failure told in the form of a Postgres message.

    :param message: lower case, no full stop; names the kind of object and quotes it.
    :param detail: whole sentences with the facts.
    :param hint: whole sentences with what to do.

    Source: PostgreSQL documentation, "Error Message Style Guide".
    """

    def __init__(self, message: str, *, detail: str = "", hint: str = "") -> None:
        # All three go to super() so that the error survives pickling.
        super().__init__(message, detail, hint)
        self.message, self.detail, self.hint = message, detail, hint

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.message, self.detail, self.hint)

    def __str__(self) -> str:
        lines = [self.message]
        if self.detail:
            lines.append(f"DETAIL: {self.detail}")
        if self.hint:
            lines.append(f"HINT: {self.hint}")
        return "\n".join(lines)


def _rebuild(
    kind: type[TenantferryError], message: str, detail: str, hint: str
) -> TenantferryError:
    return kind(message, detail=detail, hint=hint)


class TransientError(TenantferryError):
    """Something could not be done now; the same call may work next time."""


class PermanentError(TenantferryError):
    """Something cannot be done until a person changes a fact; a retry only repeats it."""


class CopyAgainError(PermanentError):
    """The target lacks rows of the tenant, or can no longer get them: copy the tenant again."""
