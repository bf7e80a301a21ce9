"""One operator per verb of the engine: fetch the connections, call the verb, report."""

from __future__ import annotations

import json
import threading
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

from tenantferry.errors import TransientError
from tenantferry.moves.backfill import backfill
from tenantferry.moves.cutover import cutover
from tenantferry.moves.preflight import preflight
from tenantferry.moves.prepare import prepare
from tenantferry.moves.probe import probe
from tenantferry.moves.stream import stream
from tenantferry.moves.validate import validate
from tenantferry_airflow.assembly import read_move

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from airflow.sdk import Context

    from tenantferry.moves.move import Move


class MoveOperator(BaseOperator):
    """
    One step of the move of one tenant.

    It may be cleared at any moment: the engine's verbs find out what is left to do.

    :param tenant: key of a tenant of the fleet file. (templated)
    :return: the numbers of the step, pushed to XCom; never a secret.
    """

    template_fields: Sequence[str] = ("tenant",)
    ui_color = "#dbeafe"

    def __init__(self, *, tenant: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.tenant = tenant

    @abstractmethod
    def take_step(self, move: Move) -> DataclassInstance:
        """Call the verb."""

    def execute(self, context: Context) -> dict[str, Any]:
        """Take the step and report its numbers."""
        move = read_move(self.tenant, run_id=context["run_id"])
        # Through JSON: XCom would otherwise wrap a tuple and show it as text.
        summary: dict[str, Any] = json.loads(json.dumps(asdict(self.take_step(move))))
        numbers = " ".join(f"{name}={value}" for name, value in summary.items())
        self.log.info("%s of tenant %s: %s", self.task_id, self.tenant, numbers)
        return summary

    def on_kill(self) -> None:
        """
        Unwind the step: called in a signal handler when the task is cleared, marked or shut down.

        Airflow kills the process five seconds later; an exception lets the engine close its
        sessions and undo what it must before that. The task may be run again at any time.
        """
        # Not an Exception: nothing that handles failures on its way mistakes it for one.
        raise SystemExit(f'task "{self.task_id}" of tenant "{self.tenant}" was told to end')


class PreflightOperator(MoveOperator):
    """
    Check that the tenant can be moved, and log the plan.

    Changes nothing, in no database.
    """

    def take_step(self, move: Move) -> DataclassInstance:
        """Call the verb."""
        return preflight(move)


class PrepareOperator(MoveOperator):
    """
    Register the tenant, retrofit the target, publish the tables on the source.

    Copies no row.
    """

    ui_color = "#bfdbfe"

    def take_step(self, move: Move) -> DataclassInstance:
        """Call the verb."""
        return prepare(move)


class RepairingOperator(MoveOperator):
    """
    A step that may be told to copy again what differs.

    :param repair: "True" or "False". (templated)
    """

    template_fields: Sequence[str] = (*MoveOperator.template_fields, "repair")

    def __init__(self, *, repair: str = "False", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.repair = repair


class BackfillOperator(RepairingOperator):
    """
    Copy the tenant's rows, round by round, each under a snapshot of its own.

    Does not apply what is written after the last round: that is the stream's. In a run that repairs
    it leaves rows that differ to the validation.
    """

    ui_color = "#bfdbfe"

    def take_step(self, move: Move) -> DataclassInstance:
        """Call the verb."""
        return backfill(move, repair=self.repair == "True")


class StreamOperator(MoveOperator):
    """
    Apply the source's changes to the target until the tenant is live.

    Occupies a worker slot for the whole move. Cannot defer: it moves the rows itself.
    """

    ui_color = "#a7f3d0"
    # Made in execute(): a lock cannot be copied, and Airflow copies operators.
    _stop: threading.Event | None = None

    def take_step(self, move: Move) -> DataclassInstance:
        """Call the verb."""
        self._stop = threading.Event()
        result = stream(move, stop=self._stop)
        if self._stop.is_set():
            # A success here would leave a tenant that is not live yet without a stream.
            raise TransientError(
                f'stream of tenant "{self.tenant}" was told to end',
                hint="It goes on from where it is when it is run again.",
            )
        return result

    def on_kill(self) -> None:
        """Let the stream end at the next transaction boundary."""
        if self._stop is None:
            super().on_kill()
        else:
            self._stop.set()


class ValidateOperator(RepairingOperator):
    """
    Compare every row of the tenant at one position.

    Fails on any mismatch and names the rows. Repairs nothing, unless it is told to.
    """

    ui_color = "#fde68a"

    def take_step(self, move: Move) -> DataclassInstance:
        """Call the verb."""
        return validate(move, repair=self.repair == "True")


class CutoverOperator(MoveOperator):
    """
    Hand the tenant over to the target, or undo the attempt as a whole.

    Does not drop anything of the source.
    """

    ui_color = "#fca5a5"

    def take_step(self, move: Move) -> DataclassInstance:
        """Call the verb."""
        return cutover(move)


class ProbeOperator(MoveOperator):
    """
    Look at the tenant as its application does, through the router.

    Writes nothing that stays.
    """

    ui_color = "#fde68a"

    def take_step(self, move: Move) -> DataclassInstance:
        """Call the verb."""
        return probe(move)
