"""Whose rows a stream writes, and what people are told when that fails."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID


@dataclass(frozen=True, slots=True)
class Scope:
    """
    The rows that a stream keeps equal.

    :ivar tenant_id: they are those of this tenant; ``None``: of the whole database.
    :ivar sender: what people call the side that the changes come from.
    :ivar receiver: what people call the side that they are written to.
    :ivar broken_hint: what to do where the receiver does not hold what it should.
    :ivar conflict_hint: what to do where the receiver refuses a row.
    """

    tenant_id: UUID | None
    sender: str
    receiver: str
    broken_hint: str
    conflict_hint: str


def forward_scope(tenant_id: UUID) -> Scope:
    """Return the scope of a forward stream: the tenant's rows in the target."""
    return Scope(
        tenant_id=tenant_id,
        sender="source",
        receiver="target",
        broken_hint="Somebody else wrote to the tenant's rows, or the copy is not the state at the"
        ' stream\'s position: clear the task "backfill" and those after it.',
        conflict_hint="Correct the constraint or the row, then clear the task; the slot still"
        " holds the change.",
    )
