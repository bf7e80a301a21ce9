"""How a tenant's run stands, told from what Airflow says of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tenantferry.control.waves import Standing

APPROVE, CUTOVER = "approve", "cutover"

# Airflow parks a task that asks a person, or hands it to the triggerer.
_ASKING_STATES = frozenset({"awaiting_input", "deferred"})
_ACTIVE_STATES = frozenset({"queued", "running", "restarting", "up_for_retry"})


@dataclass(frozen=True, slots=True)
class RunLook:
    """
    One look at a run of ``migrate_<tenant>``.

    :ivar is_open: Airflow does not call it ended. A stream keeps the run of a failed move open.
    :ivar is_cutting_over: whatever else failed, a cutover is not done, or not undone, yet.
    :ivar detail: what is to be said of the standing, or empty.
    """

    standing: Standing
    is_open: bool = True
    is_cutting_over: bool = False
    detail: str = ""


def judge_run(state: str, tasks: Mapping[str, str | None]) -> RunLook:
    """
    Tell how a run stands.

    :param state: of the run: ``queued``, ``running``, ``success`` or ``failed``.
    :param tasks: task id to state; ``None`` for a task that waits for others.
    """
    if state == "success":
        return RunLook(Standing.LIVE, is_open=False)
    is_open = state != "failed"
    is_cutting_over = is_open and tasks.get(CUTOVER) in _ACTIVE_STATES
    failed = sorted(task for task, found in tasks.items() if found == "failed")
    if failed == [APPROVE]:
        return RunLook(Standing.DECLINED, is_open, detail="its cutover was not approved")
    if failed or not is_open:
        names = ", ".join(f'"{task}"' for task in failed)
        detail = f"task {names} failed" if failed else "its run failed"
        return RunLook(Standing.FAILED, is_open, is_cutting_over, detail)
    if tasks.get(APPROVE) in _ASKING_STATES:
        return RunLook(Standing.ASKING, detail="it waits for an approval")
    return RunLook(Standing.RUNNING, is_cutting_over=is_cutting_over)
