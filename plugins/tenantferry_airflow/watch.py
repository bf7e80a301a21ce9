"""The tasks of ``watch_fleet`` and ``validate_fleet``: ask the engine, show the numbers, fail."""

from __future__ import annotations

import io
import json
from contextlib import closing
from dataclasses import asdict
from functools import cache
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseHook, BaseOperator
from airflow.sdk.exceptions import AirflowNotFoundException
from rich.console import Console
from rich.table import Table

from tenantferry.connections import ConnectionParams, open_connection
from tenantferry.errors import PermanentError
from tenantferry.fleet import Fleet, Tenant
from tenantferry.moves.move import Move
from tenantferry.watch.checks import CHECKS
from tenantferry.watch.graces import acknowledge_losses
from tenantferry.watch.report import Report
from tenantferry.watch.sample import validate_sample
from tenantferry.watch.watched import Watched
from tenantferry_airflow.assembly import assemble_move, connection_ids
from tenantferry_airflow.connections import to_params
from tenantferry_airflow.fleet import load_declared_fleet
from tenantferry_airflow.notifying import find_bad_notifiers

if TYPE_CHECKING:
    from airflow.sdk import Connection, Context

REPORT = "report"
ACKNOWLEDGE = "acknowledge"
_WIDTH = 180


class WatchOperator(BaseOperator):
    """
    Look at one side of the fleet, and fail if on-call has to act.

    :param check: name of one of the engine's checks.
    :return: what was looked at and found, pushed to XCom as ``report`` also by a task that fails.
    """

    ui_color = "#fde68a"

    def __init__(self, *, check: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.check = check

    def execute(self, context: Context) -> None:
        """Look, show, fail."""
        watched = read_watched(load_declared_fleet(), run_id=context["run_id"])
        show_report(self, context, self.check, self.look(context, watched))

    def look(self, context: Context, watched: Watched) -> Report:  # noqa: ARG002 - for subclasses
        """Call the check."""
        return CHECKS[self.check](watched)


class WatchGracesOperator(WatchOperator):
    """
    Look at the ways back; first take note of the losses that a person has acknowledged.

    The parameter ``acknowledge`` of the run holds the tenants.
    """

    def look(self, context: Context, watched: Watched) -> Report:
        """Call the check."""
        if tenants := context["params"][ACKNOWLEDGE]:
            with closing(open_connection(watched.target, purpose="watch")) as target, target:
                acknowledge_losses(target, tenants)
            self.log.info("taken note of the lost way back of %s", ", ".join(tenants))
        return super().look(context, watched)


class ValidateSampleOperator(BaseOperator):
    """
    Compare every row of the tenants whose comparison is the longest ago.

    Repairs nothing.

    :return: what was compared, pushed to XCom as ``report`` also by a task that fails.
    """

    ui_color = "#fde68a"

    def execute(self, context: Context) -> None:
        """Compare, show, fail."""
        watched = read_watched(load_declared_fleet(), run_id=context["run_id"])
        report = validate_sample(watched, run_id=context["run_id"])
        show_report(self, context, "rows", report)


def show_report(operator: BaseOperator, context: Context, name: str, report: Report) -> None:
    """
    Log every number, push all of it to XCom, and fail if on-call has to act.

    :raises FindingsError: that lists the findings.
    """
    if report.looks:
        operator.log.info("looked at %s thing(s):\n%s", len(report.looks), render_looks(report))
    else:
        operator.log.info("there is nothing to look at: no tenant is prepared, or none concerned")
    for finding in report.findings:
        operator.log.warning("%s: %s: %s", finding.verdict, finding.subject, finding.detail)
    # Through JSON: XCom would otherwise wrap a tuple and show it as text.
    context["ti"].xcom_push(key=REPORT, value=json.loads(json.dumps(asdict(report))))
    report.check(name)


def render_looks(report: Report) -> str:
    """Draw all numbers as a table for a log."""
    columns = list(dict.fromkeys(name for look in report.looks for name in look.numbers))
    table = Table("subject", *(column.replace("_", " ") for column in columns))
    for look in report.looks:
        cells = (_show(look.numbers[name]) if name in look.numbers else "" for name in columns)
        table.add_row(look.subject, *cells)
    text = io.StringIO()
    Console(file=text, width=_WIDTH).print(table)
    return text.getvalue()


def _show(number: object) -> str:
    if number is None:
        return "unknown"
    return f"{number:.2f}" if isinstance(number, float) else str(number)


def read_watched(fleet: Fleet, *, run_id: str | None) -> Watched:
    """
    Resolve the connections of a fleet, in a task, as far as they are asked for.

    :raises PermanentError: if that of the target is not usable.
    """
    get_connection = cache(_get_connection)

    def source_of(tenant: Tenant) -> ConnectionParams:
        return to_params(get_connection(tenant.source.conn_id), database=tenant.source.database)

    def move_of(tenant: Tenant) -> Move:
        found = {conn_id: get_connection(conn_id) for conn_id in connection_ids(fleet, tenant)}
        return assemble_move(fleet, tenant, found, run_id=run_id)

    broken = {f'tenant "{key}"': why for key, why in fleet.broken.items()}
    return Watched(
        fleet=fleet,
        target=to_params(get_connection(fleet.target.conn_id)),
        source_of=source_of,
        move_of=move_of,
        unusable={**broken, **find_bad_notifiers(fleet)},
    )


def _get_connection(conn_id: str) -> Connection:
    try:
        return BaseHook.get_connection(conn_id)
    except AirflowNotFoundException:
        raise PermanentError(
            f'Airflow connection "{conn_id}" does not exist', hint="Create it."
        ) from None
