"""What the tasks of all our Dags have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tenantferry_airflow.notifying import failure_callbacks
from tenantferry_airflow.retries import RETRY_BY_ERROR_CLASS

if TYPE_CHECKING:
    from tenantferry.fleet import Fleet


def task_defaults(fleet: Fleet, **settings: Any) -> dict[str, Any]:
    """
    Return ``default_args`` of a Dag.

    :param settings: further ones, e.g. ``retries``.
    """
    return {
        "owner": "tenantferry",
        "retry_policy": RETRY_BY_ERROR_CLASS,
        "on_failure_callback": failure_callbacks(fleet),
        **settings,
    }
