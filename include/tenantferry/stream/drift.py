"""Errors of tables that do not look the same on both sides."""

from __future__ import annotations

from collections.abc import Sequence

from tenantferry.errors import CopyAgainError, PermanentError


class DriftError(PermanentError):
    """
    A table does not look the same on both sides. No row of its new shape was applied.

    :ivar commit_lsn: what was committed before it can be applied, where that is known.
    """

    commit_lsn: int | None = None


class OutdatedShapeError(DriftError, CopyAgainError):
    """Rows are in the log in a shape that neither side has any more: nobody can apply them."""


def check_same_columns(
    label: str,
    side: str,
    sent: Sequence[tuple[str, str]],
    expected: Sequence[tuple[str, str]],
    *,
    sender: str,
    hint: str,
    error: type[DriftError] = DriftError,
) -> None:
    """
    Check that a table looks as it is expected to.

    :param side: what *expected* was read from.
    :param sent: name and type of each column, in order.
    :raises DriftError: if it does not, as *error*.
    """
    if list(sent) == list(expected):
        return
    only_sent = [
        f"{name} {type_name}" for name, type_name in sent if (name, type_name) not in expected
    ]
    missing = [
        f"{name} {type_name}" for name, type_name in expected if (name, type_name) not in sent
    ]
    detail = (
        f"Only in what the {sender} sends: {', '.join(only_sent) or 'nothing'}."
        f" Only in the {side}: {', '.join(missing) or 'nothing'}."
        if only_sent or missing
        else f"The columns of the {side} have another order."
    )
    raise error(
        f'table "{label}" has changed: its columns differ from the {side}',
        detail=f"{detail} No row of the new shape was applied.",
        hint=hint,
    )
