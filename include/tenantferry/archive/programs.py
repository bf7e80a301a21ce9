"""Find and run ``pg_dump`` and ``pg_restore``."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from psycopg2.extensions import make_dsn

from tenantferry.connections import KEEPALIVES, ConnectionParams
from tenantferry.errors import PermanentError, TransientError

logger = logging.getLogger(__name__)

_NAMES = ("pg_dump", "pg_restore")
# Where packages put the programs of each major version.
_PACKAGES = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin")
# Secrets go by the environment, which only our own account can read. The one for the key of a
# client certificate has no variable there.
_SECRETS = frozenset({"password", "sslpassword"})
# Parts of their messages, which are not translated: see LC_ALL below. A dump that fails for another
# reason is worth another try; a restore that does would only repeat it.
_DUMP_REFUSED = (
    "permission denied",
    "server version mismatch",
    "must be owner",
    "must be superuser",
    "row-level security",
)
_SERVER_LOST = (
    "connection to server",
    "server closed the connection",
    "terminating connection",
    "too many",
    "No space left",
    "out of memory",
    "the database system is",
)


@dataclass(frozen=True, slots=True)
class Programs:
    """The programs of one major version, of one folder."""

    major: int
    folder: Path

    def command(self, name: str, params: ConnectionParams, purpose: str) -> list[str]:
        """
        Return how to run one against a database; the password is not in it.

        :raises PermanentError: if the connection has a secret that cannot be handed over.
        """
        if refused := sorted(_SECRETS & params.options.keys()):
            raise PermanentError(
                f"{name} cannot be given {', '.join(refused)}",
                hint="Use a key without a passphrase in that Airflow connection.",
            )
        dsn = make_dsn(
            host=params.host,
            port=params.port,
            user=params.user,
            dbname=params.database,
            application_name=f"tenantferry {purpose}"[:63],
            **{"connect_timeout": "10", **KEEPALIVES, **params.options},
        )
        return [str(self.folder / name), "--no-password", f"--dbname={dsn}"]


def find_programs(server_major: int, *, search_path: str | None = None) -> Programs:
    """
    Return the oldest programs that can dump a server of that version.

    The oldest, so that the dump can be restored by as many servers as possible.

    :param search_path: folders to look in besides those of packages; by default ``PATH``.
    :raises PermanentError: if there are none.
    """
    folders = [Path(part) for part in (search_path or os.environ.get("PATH", "")).split(os.pathsep)]
    for pattern in _PACKAGES:
        folders += sorted(Path("/").glob(pattern.removeprefix("/")))
    found = [
        Programs(major, folder)
        for folder in dict.fromkeys(folders)
        if all((folder / name).is_file() for name in _NAMES)
        if (major := _read_major(folder)) is not None
    ]
    fitting = [programs for programs in found if programs.major >= server_major]
    if not fitting:
        seen = ", ".join(f"{p.major} in {p.folder}" for p in found) or "none"
        raise PermanentError(
            f"no pg_dump here can dump a server of PostgreSQL {server_major}",
            detail=f"It must not be older than the server. Found: {seen}.",
            hint=f"Install postgresql-client-{server_major} or newer where this task runs.",
        )
    return min(fitting, key=lambda programs: programs.major)


@contextmanager
def running(
    command: Sequence[str],
    params: ConnectionParams,
    *,
    stdin: int = subprocess.DEVNULL,
    stdout: int = subprocess.DEVNULL,
) -> Iterator[subprocess.Popen[bytes]]:
    """
    Run a program for the length of the block; at its end wait for it, after an exception kill it.

    :raises PermanentError: if it fails for a reason that stays.
    :raises TransientError: if it fails otherwise.
    """
    # A file, for a pipe that nobody reads would stop a program that says a lot.
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command, stdin=stdin, stdout=stdout, stderr=said, env=_environment(params)
        )
        try:
            yield process
            if process.stdin is not None:
                process.stdin.close()
            process.wait()
        except BrokenPipeError:  # it has ended before it read everything, and says why
            process.wait()
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    _close(pipe)
        _check(Path(command[0]).name, process.returncode, _tail(said))


def _environment(params: ConnectionParams) -> Mapping[str, str]:
    # Nothing of libpq's that somebody set for other programs.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return {**kept, "LC_ALL": "C", "PGPASSWORD": params.password}


def _check(name: str, status: int, said: str) -> None:
    if status == 0 and "error:" not in said:
        if said:
            logger.warning("%s: %s", name, said)
        return
    if name == "pg_dump":
        is_final = any(part in said for part in _DUMP_REFUSED)
        hint = "Nothing was changed on the source."
    else:
        is_final = not any(part in said for part in _SERVER_LOST)
        hint = (
            "What the dump needs besides itself must be on the server that it is restored on:"
            " roles that policies name, extensions, and a superuser for event triggers."
        )
    raise (PermanentError if is_final else TransientError)(
        f"{name} failed with status {status}", detail=said or "It said nothing.", hint=hint
    )


def _tail(said: IO[bytes]) -> str:
    size = said.seek(0, os.SEEK_END)
    said.seek(max(size - 4000, 0))
    return " ".join(said.read().decode("utf-8", "replace").split())


def _close(pipe: IO[bytes]) -> None:
    try:
        pipe.close()
    except BrokenPipeError:  # what was still in our buffer is for nobody
        logger.debug("a program ended before it read everything")


def _read_major(folder: Path) -> int | None:
    try:
        said = subprocess.run(
            [folder / "pg_dump", "--version"],
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"(\d+)[.\d]*(?:devel|beta|rc)?", said)
    return int(match[1]) if match else None
