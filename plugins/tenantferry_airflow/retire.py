"""The operators of ``retire_tenants``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.providers.standard.operators.hitl import ApprovalOperator, HITLOperator
from airflow.sdk import BaseHook, BaseOperator, ObjectStoragePath
from airflow.sdk.exceptions import AirflowSkipException

from tenantferry.errors import PermanentError
from tenantferry.moves.archiving import archive_source, verify_archive
from tenantferry.moves.retire import (
    Approval,
    Retirable,
    begin_retire,
    find_retirable,
    lock_source,
)
from tenantferry_airflow.connections import to_params
from tenantferry_airflow.fleet import load_declared_fleet
from tenantferry_airflow.operators import MoveOperator

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from airflow.sdk import Context

    from tenantferry.connections import ConnectionParams
    from tenantferry.fleet.operation import Archive
    from tenantferry.moves.move import Move

FACTS = "facts"
ASKED = "asked"


class FindRetirableOperator(BaseOperator):
    """
    Find the tenants whose grace is over.

    Skipped where the fleet file names no archive. Changes nothing.

    :return: their keys, pushed to XCom; beside them as ``facts`` what people are told of each.
    """

    def execute(self, context: Context) -> list[str]:
        """Ask the target."""
        fleet = load_declared_fleet()
        if fleet.archive is None:
            raise AirflowSkipException('the fleet file has no "archive": no tenant can be retired')
        target = to_params(BaseHook.get_connection(fleet.target.conn_id))
        found = find_retirable(target, fleet.tenants.keys())
        for one in found:
            self.log.info("can be retired: %s", one)
        if not found:
            self.log.info("no tenant's grace is over")
        context["ti"].xcom_push(key=FACTS, value=[_tell(one) for one in found])
        return [one.tenant for one in found]


class ApproveRetireOperator(ApprovalOperator):
    """
    Ask a person whether a tenant may be retired; without an answer in time nobody may.

    Skipped unless the answer is *Approve*, and so are the tasks after it.

    :return: the answer, and with it tenant and cutover that the question was about.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(defaults=self.REJECT, **kwargs)

    def execute(self, context: Context) -> Any:
        """Ask, and keep what the question was about: the list may be made anew meanwhile."""
        instance = context["ti"]
        facts = instance.xcom_pull(task_ids="find_tenants", key=FACTS)[instance.map_index]
        asked = {"tenant": facts["tenant"], "attempt": facts["attempt"]}
        instance.xcom_push(key=ASKED, value=asked)
        return super().execute(context)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Look at the answer."""
        # Not as ApprovalOperator skips: what it says of tasks in a mapped task group, Airflow 3.3.2
        # looks for at another map index, and runs them although they were rejected.
        answer = HITLOperator.execute_complete(self, context, event)
        if answer["chosen_options"] != [self.APPROVE]:
            raise AirflowSkipException("not approved: nothing changes, the next run asks again")
        instance = context["ti"]
        asked = instance.xcom_pull(task_ids=self.task_id, key=ASKED, map_indexes=instance.map_index)
        return {**answer, **asked}


class BeginRetireOperator(MoveOperator):
    """
    End the tenant's way back for good, if it is this tenant that a person has approved.

    Changes nothing of its source.
    """

    ui_color = "#fca5a5"
    _approval: Approval | None = None

    def execute(self, context: Context) -> dict[str, Any]:
        """Fetch the answer that was given at the same place, and take the step."""
        instance = context["ti"]
        given = instance.xcom_pull(task_ids="approve", map_indexes=instance.map_index)
        if given is not None:
            self._approval = Approval(given["tenant"], given["attempt"])
        return super().execute(context)

    def take_step(self, move: Move) -> DataclassInstance:
        """Call the verb."""
        if self._approval is None:
            raise PermanentError(
                f'nobody has approved that tenant "{self.tenant}" is retired',
                hint='Clear the task "approve" and those after it.',
            )
        archive = _require_archive()
        return begin_retire(move, self._approval, _folder(archive), _restore_server(archive))


class ArchiveOperator(MoveOperator):
    """
    Dump the tenant's source into the archive, unless that is done and verified.

    The dump passes through this worker in pieces; it needs neither disk nor memory for it.
    """

    ui_color = "#bfdbfe"

    def take_step(self, move: Move) -> DataclassInstance:
        """Call the verb."""
        return archive_source(move, _folder(_require_archive()))


class VerifyArchiveOperator(MoveOperator):
    """
    Read the dump back, restore it into a database made for that, and compare every table.

    The database is dropped again.
    """

    ui_color = "#fde68a"

    def take_step(self, move: Move) -> DataclassInstance:
        """Call the verb."""
        archive = _require_archive()
        return verify_archive(move, _folder(archive), _restore_server(archive))


class LockSourceOperator(MoveOperator):
    """
    Take what is ours off the source, and let nobody in there any more.

    Drops neither the database nor a row of it.
    """

    ui_color = "#fca5a5"

    def take_step(self, move: Move) -> DataclassInstance:
        """Call the verb."""
        return lock_source(move, _folder(_require_archive()))


def _require_archive() -> Archive:
    archive = load_declared_fleet().archive
    if archive is None:
        raise PermanentError(
            'the fleet file has no "archive"',
            hint="Say where dumps go, and where they are restored for a test.",
        )
    return archive


def _folder(archive: Archive) -> ObjectStoragePath:
    try:
        return ObjectStoragePath(archive.url)
    except ValueError as error:
        raise PermanentError(
            f'no storage is known for "archive.url": "{archive.url}"',
            detail=f"{error}.",
            hint="Mend it in the fleet file, or install the Airflow provider of that storage.",
        ) from None


def _restore_server(archive: Archive) -> ConnectionParams:
    return to_params(BaseHook.get_connection(archive.restore_conn_id))


def _tell(one: Retirable) -> dict[str, str | int]:
    """Return what the approval request says, and what the approval is bound to."""
    times = {"live_since": one.live_since, "grace_ended": one.grace_ended}
    told = {
        name: "unknown" if at is None else f"{at:%Y-%m-%d %H:%M %Z}" for name, at in times.items()
    }
    return {
        "tenant": one.tenant,
        "attempt": one.attempt,
        "phase": str(one.phase),
        "lost": one.lost_reason or "no",
        **told,
    }
