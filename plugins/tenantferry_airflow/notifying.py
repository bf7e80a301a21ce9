"""Who is told when a task fails: Airflow's own notifiers, as the fleet file declares them."""

from __future__ import annotations

import logging
from importlib import import_module

from airflow.sdk import BaseNotifier

from tenantferry.errors import PermanentError
from tenantferry.fleet import Fleet
from tenantferry.fleet.operation import Notifier

logger = logging.getLogger(__name__)


class NotifierError(PermanentError):
    """A declared notifier cannot be made."""


def failure_callbacks(fleet: Fleet) -> list[BaseNotifier]:
    """
    Make the declared notifiers, for ``on_failure_callback`` of a Dag's ``default_args``.

    One that cannot be made costs no Dag its import: it is logged, and told by `find_bad_notifiers`.
    """
    made: list[BaseNotifier] = []
    for declared in fleet.watch.notifiers:
        try:
            made.append(make_notifier(declared))
        except NotifierError as error:
            logger.error("nobody is told by a notifier that cannot be made: %s", error)  # noqa: TRY400 - the error says all
    return made


def find_bad_notifiers(fleet: Fleet) -> dict[str, str]:
    """Return the declared notifiers that cannot be made, by name, and why."""
    bad: dict[str, str] = {}
    for number, declared in enumerate(fleet.watch.notifiers, start=1):
        try:
            make_notifier(declared)
        except NotifierError as error:
            bad[f"notifier {number}"] = str(error)
    return bad


def make_notifier(declared: Notifier) -> BaseNotifier:
    """
    Make one notifier.

    :raises NotifierError: if its class is not a notifier, or does not take the arguments.
    """
    found = _import(declared.class_)
    if not (isinstance(found, type) and issubclass(found, BaseNotifier)):
        raise NotifierError(
            f'"{declared.class_}" is not a notifier of Airflow',
            hint="Name a class that inherits airflow.sdk.BaseNotifier.",
        )
    try:
        return found(**declared.arguments)
    except Exception as error:  # noqa: BLE001 - a constructor of somebody else's may raise anything
        raise NotifierError(
            f'notifier "{declared.class_}" cannot be made with its arguments',
            detail=f"{type(error).__name__}: {error}",
            hint="Compare them with the constructor of that class.",
        ) from None


def _import(path: str) -> object:
    module, _, name = path.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except Exception as error:  # noqa: BLE001 - a module of somebody else's may raise anything
        raise NotifierError(
            f'notifier "{path}" cannot be imported',
            detail=f"{type(error).__name__}: {error}",
            hint="Install the provider that has it, and mend its name in the fleet file.",
        ) from None
