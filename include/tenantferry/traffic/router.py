"""
One or many PgBouncer instances that carry the clients of a tenant.

All instances pause before any flips, and all flip before any resumes: while one client could still
reach the one side, no client reaches the other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from tenantferry.errors import PermanentError, TenantferryError, TransientError
from tenantferry.traffic import aliases
from tenantferry.traffic.instances import Instance, check_instance, is_at
from tenantferry.traffic.pgbouncer import AliasState, Console, Row, open_console, quote_alias

__all__ = ["Instance", "OpenRouter", "PauseTimeoutError", "Router"]

_T = TypeVar("_T")

# PAUSE answers at once where no transaction runs; only after this it is worth a look why not.
_PAUSE_RECHECK_SECONDS = 0.02
# The alias file may travel, e.g. over a network file system, before the instance sees the new one.
_FLIP_TIMEOUT_SECONDS = 2.0
_FLIP_RECHECK_SECONDS = 0.05


class PauseTimeoutError(TransientError):
    """Clients did not finish their transactions in time."""


@dataclass(frozen=True, slots=True)
class Router:
    """All instances that any client of the tenant may use."""

    instances: Sequence[Instance]

    def check(self, alias: str, *, max_write_pause_seconds: float) -> None:
        """
        Check that every instance can take part in a cutover. Changes nothing.

        :raises PermanentError: if one cannot.
        :raises TransientError: if one does not answer.
        """
        for instance in self.instances:
            with open_console(instance.name, instance.admin, purpose=f"check {alias}") as console:
                check_instance(console, instance, alias, max_write_pause_seconds)

    @contextmanager
    def open(self, alias: str) -> Iterator[OpenRouter]:
        """
        Open sessions with all instances, so that a pause does not wait for logins.

        :raises TransientError: if one does not answer.
        """
        with ExitStack() as stack:

            def console(instance: Instance, purpose: str) -> Console:
                purpose = f"{purpose} {alias}"
                return stack.enter_context(
                    open_console(instance.name, instance.admin, purpose=purpose)
                )

            yield OpenRouter(
                alias,
                self.instances,
                [console(instance, "pause") for instance in self.instances],
                [console(instance, "control") for instance in self.instances],
            )

    def restore(self, alias: str, *, attempt: int) -> None:
        """
        Undo what *attempt* did, as far as it got: put the former lines back, then resume.

        Tries all instances, whatever happens at one. An instance that is not running is not
        paused either, and reads its file when it starts.

        :raises TransientError: if one could not be restored.
        """
        failures = _attempt_all(
            self._files(),
            lambda path: aliases.restore_entry(path, alias, attempt=attempt),
        )
        self._on_each(alias, _reload_and_resume, failures)

    def finish(self, alias: str) -> None:
        """
        Make every instance read its file again, and resume.

        Tries all instances, whatever happens at one.

        :raises TransientError: if one could not be resumed.
        """
        self._on_each(alias, _reload_and_resume, [])

    def read_former(self, alias: str, *, attempt: int) -> list[dict[str, str]]:
        """
        Return the parameters that the alias had before *attempt*, of each instance.

        :raises PermanentError: if an alias file does not tell.
        """
        return [
            aliases.read_former_entry(instance.aliases_file, alias, attempt=attempt)
            for instance in self.instances
        ]

    def forget_former(self, alias: str) -> None:
        """
        Forget what the alias was before; for a tenant that is where it came from.

        :raises PermanentError: if an alias file cannot be replaced.
        """
        for path in self._files():
            aliases.forget_former(path, alias)

    def set_extra_alias(self, alias: str, entries: Sequence[Mapping[str, str]]) -> None:
        """
        Add an alias of our own to every instance.

        :param entries: the parameters of each instance; those that share a file have the same.
        :raises TransientError: if an instance does not know it after that.
        """
        pairs = list(zip(self.instances, entries, strict=True))
        for instance, entry in pairs:
            aliases.put_entry(instance.aliases_file, alias, entry)
        for instance, entry in pairs:
            with open_console(instance.name, instance.admin, purpose=f"add {alias}") as console:
                _reload_until(console, alias, partial(_is_known, entry))

    def remove_extra_alias(self, alias: str) -> None:
        """
        Remove an alias of our own; one that is not there stays so.

        :raises TransientError: if an instance does not answer.
        """
        for path in self._files():
            aliases.remove_entry(path, alias)
        self._on_each(alias, lambda console, _: console.run("RELOAD"), [])

    def _files(self) -> list[Path]:
        """Return the alias files; several instances may share one."""
        return list(dict.fromkeys(instance.aliases_file.resolve() for instance in self.instances))

    def _on_each(
        self,
        alias: str,
        act: Callable[[Console, str], object],
        failures: list[TenantferryError],
    ) -> None:
        def on(instance: Instance) -> None:
            with open_console(instance.name, instance.admin, purpose=f"undo {alias}") as console:
                act(console, alias)

        failures += _attempt_all(self.instances, on)
        if failures:
            raise TransientError(
                f'router could not be restored for alias "{alias}"',
                detail=" ".join(f"{failure.message}: {failure.detail}" for failure in failures),
                hint="The clients of an instance that could not be reached may still wait."
                f" RESUME {quote_alias(alias)} in its admin console lets them go on.",
            )


class OpenRouter:
    """
    The sessions of one cutover with all instances.

    A console that waits for PAUSE can run nothing else, so each instance has two.
    """

    def __init__(
        self,
        alias: str,
        instances: Sequence[Instance],
        pausing: Sequence[Console],
        controls: Sequence[Console],
    ) -> None:
        self._alias, self._instances = alias, instances
        self._pausing, self._controls = pausing, controls

    def pause(self, *, timeout_seconds: float) -> None:
        """
        Hold new transactions on all instances and wait for the running ones.

        :raises PauseTimeoutError: if clients do not finish in time.
        :raises TransientError: if an instance fails. In both cases some instances are paused:
            the caller resumes.
        """
        deadline = time.monotonic() + timeout_seconds
        command = f"PAUSE {quote_alias(self._alias)}"
        waiting = {console.start(command): n for n, console in enumerate(self._pausing)}
        while waiting:
            done, _ = wait(waiting, timeout=_PAUSE_RECHECK_SECONDS, return_when=FIRST_COMPLETED)
            for started in done:
                started.result()
                del waiting[started]
            if not done:
                self._drop_quiet(waiting)
            if waiting and time.monotonic() > deadline:
                raise self._timeout(waiting, timeout_seconds)

    def read_entry(self) -> dict[str, str]:
        """
        Return the parameters of the alias.

        :raises PermanentError: if the instances do not agree on its server.
        """
        entries = [
            aliases.read_entry(instance.aliases_file, self._alias) for instance in self._instances
        ]
        if any(_address(entry) != _address(entries[0]) for entry in entries):
            raise PermanentError(
                f'alias "{self._alias}" points at different databases on different instances',
                hint="Give it the same line in every alias file.",
            )
        return entries[0]

    def flip(self, changes: Mapping[str, str], *, attempt: int) -> None:
        """
        Point the alias at the target on all instances. None of them resumes.

        :param changes: host, port, dbname, user, password; an alias keeps what else it has.
        :raises TransientError: if an instance does not take it; the caller restores.
        """
        for path in self._paths():
            entry = {**aliases.read_entry(path, self._alias), **changes}
            aliases.replace_entry(path, self._alias, entry, attempt=attempt)
        self._load([changes for _ in self._instances])

    def flip_back(self, *, former: int, attempt: int) -> None:
        """
        Point the alias where it pointed before attempt *former* on all instances. None resumes.

        :raises PermanentError: if an alias file does not tell where that was.
        :raises TransientError: if an instance does not take it. In both cases the caller restores.
        """
        entries = {
            path: aliases.return_entry(path, self._alias, former=former, attempt=attempt)
            for path in self._paths()
        }
        self._load([entries[i.aliases_file.resolve()] for i in self._instances])

    def resume(self) -> None:
        """
        Let the clients go on, on all instances.

        :raises TransientError: if one could not be resumed; the others are.
        """
        failures = _attempt_all(self._controls, lambda console: console.resume(self._alias))
        if failures:
            raise failures[0]

    def _paths(self) -> list[Path]:
        return list(dict.fromkeys(i.aliases_file.resolve() for i in self._instances))

    def _load(self, entries: Sequence[Mapping[str, str]]) -> None:
        """Make each instance take over its entry while it is paused."""
        started = [(console, console.start("RELOAD")) for console in self._controls]
        for console, answer in started:
            console.finish(answer)
        for console, entry in zip(self._controls, entries, strict=True):
            _reload_until(console, self._alias, partial(_took_over, entry), reloaded=True)

    def _drop_quiet(self, waiting: dict[Future[list[Row]], int]) -> None:
        for started, number in list(waiting.items()):
            if self._controls[number].is_quiet(self._alias):
                self._pausing[number].abandon()
                del waiting[started]

    def _timeout(
        self, waiting: Mapping[Future[list[Row]], int], timeout_seconds: float
    ) -> PauseTimeoutError:
        clients: list[str] = []
        for number in waiting.values():
            console = self._controls[number]
            clients.extend(
                f'On instance "{console.name}": {client}.'
                for client in console.describe_clients(self._alias)
            )
            self._pausing[number].abandon()
        return PauseTimeoutError(
            f'clients of alias "{self._alias}" did not finish within {timeout_seconds:g} s',
            detail=" ".join(clients),
            hint="End these transactions, or retry when they are over.",
        )


def _address(entry: Mapping[str, str]) -> tuple[str | None, ...]:
    return tuple(entry.get(name) for name in ("host", "port", "dbname"))


def _is_known(entry: Mapping[str, str], state: AliasState) -> bool:
    return is_at(state, entry)


def _took_over(entry: Mapping[str, str], state: AliasState) -> bool:
    return state.paused and is_at(state, entry)


def _reload_until(
    console: Console, alias: str, condition: Callable[[AliasState], bool], *, reloaded: bool = False
) -> None:
    """RELOAD reports no error of a file, so look whether it had the wanted effect."""
    deadline = time.monotonic() + _FLIP_TIMEOUT_SECONDS
    while True:
        if not reloaded:
            console.run("RELOAD")
        reloaded = False
        state = console.read_alias(alias)
        if state is not None and condition(state):
            return
        if time.monotonic() > deadline:
            raise TransientError(
                f'PgBouncer instance "{console.name}" did not take over the new line of alias'
                f' "{alias}"',
                detail="It knows it as "
                + ("nothing" if state is None else f"{state.host}:{state.port}/{state.database}")
                + f" after {_FLIP_TIMEOUT_SECONDS:g} s.",
                hint="See its log for what it says about the alias file at RELOAD.",
            )
        time.sleep(_FLIP_RECHECK_SECONDS)  # a console can only be asked


def _reload_and_resume(console: Console, alias: str) -> None:
    console.run("RELOAD")
    console.resume(alias)


def _attempt_all(items: Iterable[_T], act: Callable[[_T], object]) -> list[TenantferryError]:
    """Act on every item, whatever happens at one."""
    failures: list[TenantferryError] = []
    for item in items:
        try:
            act(item)
        except TenantferryError as failure:
            failures.append(failure)
    return failures
