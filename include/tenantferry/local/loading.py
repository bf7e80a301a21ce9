"""Fill a tenant's own database: with the sample application, or with a dump somebody brought."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from tenantferry.errors import PermanentError
from tenantferry.local.postgres import PostgresServer

# What pg_dump 17 and later write at the top, and servers before 17 do not know.
_UNKNOWN_BEFORE_17 = b"SET transaction_timeout = 0;"
_HEADER_LINES = 100
_CUSTOM_FORMAT = b"PGDMP"
# Statements of pg_dump that name roles. The server says of any other role that it is not there.
_ROLE_NAME = rb'("(?:[^"]|"")+"|[a-z_][a-z0-9_$]*)'
_ROLE_STATEMENTS = re.compile(
    rb"^(?:ALTER .* OWNER TO |GRANT .* TO |REVOKE .* FROM |ALTER DEFAULT PRIVILEGES FOR ROLE )"
    + _ROLE_NAME
)
_DEFAULT_GRANTEE = re.compile(
    rb"^ALTER DEFAULT PRIVILEGES .* (?:TO|FROM) " + _ROLE_NAME + rb"(?: WITH GRANT OPTION)?;$"
)
_NOT_A_ROLE = {"public", "current_user", "session_user", "current_role"}

_COUNT_TABLES = """
SELECT count(*) FROM pg_catalog.pg_class
WHERE relkind IN ('r', 'p') AND relnamespace::regnamespace::text !~ '^(pg_|information_schema$)'
"""


def load_sample(server: PostgresServer, database: str, *, owner: str, rows: int) -> None:
    """
    Fill an empty database with the sample application.

    :param rows: about how many, over all tables.
    """
    _run_script(server, "sample.sql", database, f"--set=owner={owner}", f"--set=rows={rows}")


def load_dump(server: PostgresServer, database: str, dump: Path) -> None:
    """
    Fill an empty database with a plain SQL dump; roles that it names are made, without login.

    :raises PermanentError: if it is no plain dump, or a statement of it fails, or it makes no
        table.
    """
    with dump.open("rb") as file:
        if file.read(len(_CUSTOM_FORMAT)) == _CUSTOM_FORMAT:
            raise PermanentError(
                f'dump "{dump}" is not plain SQL',
                hint=f"Convert it: pg_restore --file={dump}.sql {dump}",
            )
    existing = set(server.psql("-c", "SELECT rolname FROM pg_roles").splitlines())
    for role in sorted(find_roles(dump) - existing):
        server.psql("-c", f'CREATE ROLE "{role.replace(chr(34), chr(34) * 2)}" NOLOGIN')
    _pipe_into_psql(server, database, dump)
    if server.psql("-c", _COUNT_TABLES, database=database) == "0":
        raise PermanentError(
            f'dump "{dump}" made no table',
            hint="Dump one database with pg_dump, without --create.",
        )


def adopt_objects(server: PostgresServer, database: str, *, owner: str, app: str) -> None:
    """Make *owner* the owner of everything in a database, and let *app* read and write it."""
    _run_script(server, "adopt.sql", database, f"--set=owner={owner}", f"--set=app={app}")


def find_roles(dump: Path) -> set[str]:
    """Return the roles that the statements of a plain dump name."""
    roles: set[str] = set()
    for line in _read_statements(dump):
        for pattern in (_ROLE_STATEMENTS, _DEFAULT_GRANTEE):
            match = pattern.match(line)
            if match is not None:
                name = match[1].decode()
                roles.add(name[1:-1].replace('""', '"') if name.startswith('"') else name)
    return roles - _NOT_A_ROLE


def _read_statements(dump: Path) -> Iterator[bytes]:
    """Yield the lines outside of COPY data."""
    with dump.open("rb") as file:
        in_data = False
        for line in file:
            if in_data:
                in_data = line.rstrip(b"\r\n") != rb"\."
                continue
            in_data = line.startswith(b"COPY ") and line.rstrip().endswith(b"FROM stdin;")
            yield line.rstrip()


def _pipe_into_psql(server: PostgresServer, database: str, dump: Path) -> None:
    params = server.superuser
    # Messages go to a file: psql would wait for a reader of its pipe, while we write to it.
    with tempfile.TemporaryFile() as messages:
        process = subprocess.Popen(
            [server.installation.program("psql"), "--no-psqlrc", "--quiet", "--output=/dev/null",
             "--set=ON_ERROR_STOP=1", "--file=-", database],
            env={**os.environ, "PGHOST": params.host, "PGPORT": str(params.port),
                 "PGUSER": params.user, "PGPASSWORD": params.password,
                 "PGOPTIONS": "-c client_min_messages=warning"},
            stdin=subprocess.PIPE,
            stderr=messages,
        )  # fmt: skip
        if process.stdin is not None:  # it is a pipe
            # psql stops reading at the first error, and tells it.
            with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
                for line in _without_unknown_settings(dump, server.installation.major):
                    pipe.write(line)
        if process.wait() == 0:
            return
        messages.seek(0)
        told = messages.read().decode(errors="replace").strip()
    raise PermanentError(
        f'dump "{dump}" does not load into PostgreSQL {server.installation.major}',
        detail=told[-2000:],
        hint="Correct the dump, or choose another server version with SOURCE_PG=.",
    )


def _without_unknown_settings(dump: Path, major: int) -> Iterator[bytes]:
    with dump.open("rb") as file:
        for number, line in enumerate(file):
            in_header = number < _HEADER_LINES
            unknown = major < 17 and in_header and line.rstrip() == _UNKNOWN_BEFORE_17
            # An empty line instead: the numbers in psql's messages stay those of the dump.
            yield b"\n" if unknown else line


def _run_script(server: PostgresServer, name: str, database: str, *arguments: str) -> None:
    script = resources.files("tenantferry.local").joinpath(name)
    with resources.as_file(script) as path:
        server.psql(*arguments, f"--file={path}", database=database)
