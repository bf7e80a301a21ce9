"""
Restore a dump once, to know that it can be: into a database made for it, which is dropped again.
"""

from __future__ import annotations

import hashlib
import logging
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager

import psycopg2
from psycopg2 import errors, sql
from psycopg2.extensions import connection

from tenantferry.archive.contents import Contents, count_database, describe_differences
from tenantferry.archive.programs import Programs, find_programs, running
from tenantferry.archive.storage import (
    Digest,
    StorageLostError,
    StoragePath,
    StorageRefusedError,
    Written,
    read_chunks,
)
from tenantferry.connections import ConnectionParams, open_connection
from tenantferry.errors import PermanentError, TransientError

logger = logging.getLogger(__name__)

_MAX_NAME_BYTES = 63
_PREFIX = "tenantferry_verify_"
_CREATE = sql.SQL(
    "CREATE DATABASE {name} TEMPLATE template0 ENCODING {encoding}"
    " LC_COLLATE {collate} LC_CTYPE {ctype}"
)
_MAY_CREATE = (
    "SELECT rolname::text, rolcreatedb OR rolsuper FROM pg_catalog.pg_roles"
    " WHERE rolname = current_user"
)
_DROP = sql.SQL("DROP DATABASE IF EXISTS {name} WITH (FORCE)")
# What belongs to the source's server, or would begin to work here.
_LEFT_OUT = (
    "--no-owner",
    "--no-acl",
    "--no-comments",
    "--no-publications",
    "--no-subscriptions",
    "--no-security-labels",
    "--no-tablespaces",
)


def check_restore(
    server: ConnectionParams,
    path: StoragePath,
    *,
    tenant_key: str,
    written: Written,
    dumped: Contents,
    source_major: int,
) -> Contents:
    """
    Read a dump back, restore it, and compare it with what was dumped. Leaves nothing behind.

    :param server: where our role may create a database.
    :param written: what was written to *path*.
    :param source_major: version of the server that was dumped.
    :return: what was restored.
    :raises PermanentError: if the dump is not what was written, cannot be restored, or differs.
    :raises TransientError: if the server or the storage failed.
    """
    purpose = f"verify {tenant_key}"
    programs = find_programs(source_major)
    name = scratch_name(tenant_key)
    with closing(open_connection(server, purpose=purpose, autocommit=True)) as session:
        _check_server(session, programs)
        with _scratch(session, name, dumped):
            scratch = server.with_database(name)
            _restore(programs, scratch, purpose, path, written)
            found = count_database(scratch, purpose=purpose)
            if differences := describe_differences(found, dumped):
                raise PermanentError(
                    "the restored dump differs from what was dumped",
                    detail=differences,
                    hint='Clear the task "archive" and those after it: it dumps again.',
                )
    return found


def check_restore_server(server: ConnectionParams, programs: Programs, *, purpose: str) -> None:
    """
    Check that dumps of these programs can be restored by a server. Changes nothing.

    :raises PermanentError: if not.
    """
    with closing(open_connection(server, purpose=purpose, autocommit=True)) as session:
        _check_server(session, programs)


def scratch_name(tenant_key: str) -> str:
    """
    Return the name of the database that a tenant's dump is restored into.

    >>> scratch_name("acme")
    'tenantferry_verify_acme'
    """
    name = _PREFIX + tenant_key
    if len(name) <= _MAX_NAME_BYTES:
        return name
    # Postgres cuts a longer name, and two tenants might then share one.
    digest = hashlib.sha256(tenant_key.encode()).hexdigest()[:8]
    return f"{name[: _MAX_NAME_BYTES - 9]}_{digest}"


def _check_server(session: connection, programs: Programs) -> None:
    major = session.server_version // 10000
    if major < programs.major:
        raise PermanentError(
            f"a dump made by pg_dump {programs.major} cannot be restored by PostgreSQL {major}",
            hint='Let "archive.restore_conn_id" of the fleet file lead to a server of at least that'
            " version, or install the source's own pg_dump where these tasks run.",
        )
    with session.cursor() as cursor:
        cursor.execute(_MAY_CREATE)
        role, is_allowed = cursor.fetchone() or ("", False)
    if not is_allowed:
        raise _cannot_create(f'Role "{role}" may not create databases there.')


@contextmanager
def _scratch(session: connection, name: str, dumped: Contents) -> Iterator[None]:
    """Make the database for the length of the block; one that a killed process left goes first."""
    identifier = sql.Identifier(name)
    try:
        _drop(session, identifier)
        _create(session, identifier, dumped)
    except errors.InsufficientPrivilege as error:
        raise _cannot_create(f'Of "{name}": {(error.diag.message_primary or "").strip()}') from None
    try:
        yield
    finally:
        try:
            _drop(session, identifier)
        except psycopg2.Error as error:
            logger.warning('database "%s" is left until the next try: %s', name, error)


def _cannot_create(detail: str) -> PermanentError:
    return PermanentError(
        "cannot create a database to restore the dump into",
        detail=detail,
        hint='ALTER ROLE ... CREATEDB on the server of "archive.restore_conn_id".',
    )


def _create(session: connection, name: sql.Identifier, dumped: Contents) -> None:
    def build(collate: str, ctype: str) -> sql.Composed:
        return _CREATE.format(
            name=name,
            encoding=sql.Literal(dumped.encoding),
            collate=sql.Literal(collate),
            ctype=sql.Literal(ctype),
        )

    with session.cursor() as cursor:
        try:
            cursor.execute(build(dumped.collate, dumped.ctype))
        except (errors.WrongObjectType, errors.InvalidParameterValue) as error:
            # The restore shows whether rows come back, for which any order will do.
            logger.info("restoring in the locale C: %s", error.diag.message_primary)
            cursor.execute(build("C", "C"))


def _drop(session: connection, name: sql.Identifier) -> None:
    with session.cursor() as cursor:
        cursor.execute(_DROP.format(name=name))


def _restore(
    programs: Programs, scratch: ConnectionParams, purpose: str, path: StoragePath, written: Written
) -> None:
    command = [
        *programs.command("pg_restore", scratch, purpose),
        "--format=custom",
        "--exit-on-error",
        *_LEFT_OUT,
    ]
    digest = Digest()
    failure: PermanentError | TransientError | None = None
    with closing(read_chunks(path)) as chunks:
        try:
            with running(command, scratch, stdin=subprocess.PIPE) as process:
                _feed(process, chunks, digest)
        except (StorageLostError, StorageRefusedError):
            raise
        except (PermanentError, TransientError) as error:
            failure = error
        # To the end, also when it cannot be restored: a damaged file is the better explanation.
        for chunk in chunks:
            digest.add(chunk)
    if digest.written != written:
        raise PermanentError(
            f'"{path}" is not the dump that was written there',
            detail=f"It has {digest.written.bytes} bytes with sha256 {digest.written.sha256};"
            f" {written.bytes} bytes with sha256 {written.sha256} were written.",
            hint='Find out what changes files there, then clear the task "archive" and those after'
            " it: it dumps again.",
        )
    if failure is not None:
        raise failure


def _feed(process: subprocess.Popen[bytes], chunks: Iterator[bytes], digest: Digest) -> None:
    if process.stdin is None:
        raise TransientError("pg_restore has no input")
    for chunk in chunks:
        digest.add(chunk)
        process.stdin.write(chunk)
