"""The operator of ``rollback_tenant``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tenantferry.moves.rollback import rollback
from tenantferry_airflow.operators import MoveOperator

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from tenantferry.moves.move import Move


class RollbackOperator(MoveOperator):
    """
    Hand a live tenant back to its source, or undo the attempt as a whole.

    Does not stream afterwards: that is a task of its own.
    """

    ui_color = "#fca5a5"

    def take_step(self, move: Move) -> DataclassInstance:
        """Call the verb."""
        return rollback(move)
