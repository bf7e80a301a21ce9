"""Dump a source into the storage, under one snapshot that its rows are counted in, too."""

from __future__ import annotations

import subprocess
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass

from psycopg2 import errors
from psycopg2.extensions import connection

from tenantferry.archive.contents import Contents, read_contents
from tenantferry.archive.programs import Programs, find_programs, running
from tenantferry.archive.storage import CHUNK_BYTES, StoragePath, Written, store
from tenantferry.connections import ConnectionParams, open_connection
from tenantferry.errors import PermanentError, TransientError


@dataclass(frozen=True, slots=True)
class Dump:
    """A dump and what it holds."""

    written: Written
    contents: Contents


def dump_database(source_params: ConnectionParams, path: StoragePath, *, tenant_key: str) -> Dump:
    """
    Write a dump of the whole database, ours in it excepted, to *path*.

    It is never in memory as a whole. What is there by that name is replaced when it is complete.

    :raises TransientError: if the source or the storage failed.
    :raises PermanentError: if there is no program for it, or the source does not let us.
    """
    purpose = f"archive {tenant_key}"
    with closing(open_connection(source_params, purpose=purpose)) as source:
        source.set_session(isolation_level="REPEATABLE READ", readonly=True)
        programs = find_programs(source.server_version // 10000)
        with source.cursor() as cursor:
            cursor.execute("SELECT pg_export_snapshot()")
            (snapshot,) = cursor.fetchone() or ("",)
        contents = _count(source)
        # The snapshot can be imported for as long as this session's transaction lives.
        with closing(_dump(programs, source_params, purpose, snapshot)) as chunks:
            written = store(path, chunks)
    return Dump(written, contents)


def _count(source: connection) -> Contents:
    try:
        return read_contents(source)
    except errors.InsufficientPrivilege as error:
        raise PermanentError(
            f'cannot dump database "{source.info.dbname}"',
            detail=(error.diag.message_primary or "").strip(),
            hint="Everything in it belongs to the dump: GRANT our role what it lacks, or drop it.",
        ) from None


def _dump(
    programs: Programs, params: ConnectionParams, purpose: str, snapshot: str
) -> Generator[bytes, None, None]:
    command = [
        *programs.command("pg_dump", params, purpose),
        "--format=custom",
        f"--snapshot={snapshot}",
        # Ours: how far the reverse stream has come.
        "--exclude-schema=tenantferry",
        # Nobody else is in the database. Who is all the same must not keep us waiting.
        "--lock-wait-timeout=60000",
    ]
    with running(command, params, stdout=subprocess.PIPE) as process:
        if process.stdout is None:
            raise TransientError("pg_dump has no output")
        while chunk := process.stdout.read(CHUNK_BYTES):
            yield chunk
