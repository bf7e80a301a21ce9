"""The operator of ``abort_tenant``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tenantferry.moves.abort import abort
from tenantferry_airflow.operators import MoveOperator

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from tenantferry.moves.move import Move


class AbortOperator(MoveOperator):
    """
    Take a tenant out of the move: its rows out of the target, the move out of its source.

    Does not end the run of its move, whose tasks then say that this run has the tenant.
    """

    ui_color = "#fca5a5"

    def take_step(self, move: Move) -> DataclassInstance:
        """Call the verb."""
        return abort(move)
