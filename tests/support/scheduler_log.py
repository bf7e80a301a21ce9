"""What only the scheduler's log tells."""

from __future__ import annotations

import re

from tenantferry.local.airflow import LocalAirflow


def may_be_answered(
    airflow: LocalAirflow,
    dag_id: str,
    run_id: str,
    task_id: str,
    *,
    try_number: int,
    map_index: int = -1,
) -> bool:
    """
    Tell whether the scheduler has heard that the process which asked a person has ended.

    Airflow 3.3.2 takes a task whose answer comes before that for one that was killed.
    """
    heard = re.compile(
        rf"TaskInstance Finished: dag_id={dag_id}, task_id={task_id},"
        rf" run_id={re.escape(run_id)}, map_index={map_index},"
        rf" .* state=awaiting_input,.* try_number={try_number},"
    )
    log = airflow.directory / "scheduler.log"
    return heard.search(log.read_text("utf-8", "replace")) is not None
