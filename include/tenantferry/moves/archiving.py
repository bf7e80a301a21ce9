"""
The dump of a source whose tenant is being retired: write it, and prove that it can be restored.

Until it is verified, each call of the first verb dumps again; what was verified stays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from psycopg2.extensions import connection

from tenantferry.archive.contents import Contents
from tenantferry.archive.dumping import dump_database
from tenantferry.archive.restoring import check_restore
from tenantferry.archive.storage import StoragePath, Written, read_size
from tenantferry.connections import ConnectionParams
from tenantferry.control.archives import Archive, record_dump, record_verified, require_archive
from tenantferry.control.phases import IllegalPhaseError, Phase
from tenantferry.control.registry import require_registration
from tenantferry.errors import PermanentError
from tenantferry.moves.left_source import check_left_source
from tenantferry.moves.move import Move
from tenantferry.moves.sessions import exclusive_step, open_source
from tenantferry.reverse.removal import close_positions

OnStep = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ArchiveSummary:
    """
    The dump of a source.

    :ivar sha256: hexadecimal digits.
    :ivar is_verified: it was restored once already, and not made anew by this call.
    """

    url: str
    bytes: int
    sha256: str
    tables: int
    rows: int
    is_verified: bool


def archive_source(
    move: Move, folder: StoragePath, *, on_step: OnStep | None = None
) -> ArchiveSummary:
    """
    Write a dump of the source below *folder*, unless there is one that was verified.

    :param on_step: called with the name of each step when it is done.
    :raises PermanentError: if the source is not the tenant's, not fenced any more, or cannot be
        dumped.
    :raises TransientError: if somebody is in the source, or it or the storage failed; the next call
        dumps again.
    """
    tenant, tell = move.tenant, on_step or _ignore
    with exclusive_step(move.target, tenant=tenant.key, step="retire") as target:
        recorded = require_retiring(target, tenant.key)
        path = _path_of(folder, recorded)
        # Once it is being locked, the source cannot be dumped any more.
        if recorded.verified_at is not None and (
            recorded.locking_at is not None or is_kept(recorded, path)
        ):
            return _summarize(recorded, is_verified=True)
        with open_source(move.source, purpose=f"archive {tenant.key}") as source:
            check_left_source(move, source, target)
            close_positions(source)
            major = source.server_version // 10000
        tell("closed")
        dump = dump_database(move.source, path, tenant_key=tenant.key)
        tell("dumped")
        with target:
            record_dump(
                target,
                tenant.key,
                url=str(path),
                size=dump.written.bytes,
                sha256=dump.written.sha256,
                rows=dump.contents.rows,
                contents=dump.contents.to_json(),
                server_major=major,
            )
            recorded = require_archive(target, tenant.key)
        tell("recorded")
    return _summarize(recorded, is_verified=False)


def verify_archive(
    move: Move, folder: StoragePath, server: ConnectionParams, *, on_step: OnStep | None = None
) -> ArchiveSummary:
    """
    Read the dump back, restore it into a database made for that, and compare every table's rows.

    :param server: where our role may create a database; it is dropped again.
    :raises PermanentError: if the dump is not what was written, cannot be restored, or differs.
    :raises TransientError: if the server or the storage failed.
    """
    tenant, tell = move.tenant, on_step or _ignore
    with exclusive_step(move.target, tenant=tenant.key, step="retire") as target:
        recorded = require_retiring(target, tenant.key)
        if recorded.verified_at is None:
            path = _path_of(folder, recorded)
            written, contents, major = _require_dump(recorded, path)
            check_restore(
                server,
                path,
                tenant_key=tenant.key,
                written=written,
                dumped=contents,
                source_major=major,
            )
            tell("restored")
            with target:
                record_verified(target, tenant.key)
            tell("recorded")
    return _summarize(recorded, is_verified=True)


def require_retiring(target: connection, tenant: str) -> Archive:
    """
    Return the record of a tenant that is being retired, or is.

    :param target: the step's session, outside a transaction.
    :raises IllegalPhaseError: if it is not.
    """
    with target:
        phase = require_registration(target, tenant).phase
        if phase not in (Phase.RETIRING, Phase.RETIRED):
            raise IllegalPhaseError(
                f'tenant "{tenant}" is not being retired: its phase is "{phase}"',
                hint='Clear the task "begin" and those after it.',
            )
        return require_archive(target, tenant)


def require_kept(recorded: Archive, folder: StoragePath) -> None:
    """
    Check that the dump that was verified is where it was written.

    :raises PermanentError: if it is not.
    :raises TransientError: if the storage failed.
    """
    if not is_kept(recorded, _path_of(folder, recorded)):
        raise PermanentError(
            f'the dump of tenant "{recorded.tenant}" is not kept any more',
            detail=f'It was verified, but "{recorded.url}" is gone, of another size, or not below'
            ' "archive.url".',
            hint='Clear the task "archive" and those after it: it dumps again.',
        )


def is_kept(recorded: Archive, path: StoragePath) -> bool:
    """Tell whether a dump is where it was written, as large as it was."""
    return recorded.url == str(path) and read_size(path) == recorded.bytes


def _path_of(folder: StoragePath, recorded: Archive) -> StoragePath:
    # The same for every try of one retirement, another one for another.
    name = f"retire_{recorded.attempt}_{recorded.token}.dump"
    path: StoragePath = folder / recorded.tenant / name
    return path


def _require_dump(recorded: Archive, path: StoragePath) -> tuple[Written, Contents, int]:
    if (
        recorded.bytes is None
        or recorded.sha256 is None
        or recorded.contents is None
        or recorded.server_major is None
    ):
        raise PermanentError(
            f'the source of tenant "{recorded.tenant}" was not dumped',
            hint='Clear the task "archive" and those after it.',
        )
    if recorded.url != str(path):
        raise PermanentError(
            f'the dump of tenant "{recorded.tenant}" is not where the fleet file says',
            detail=f'It was written to "{recorded.url}", and would be looked for at "{path}".',
            hint='Put "archive.url" back, or clear the task "archive" and those after it.',
        )
    written = Written(recorded.bytes, recorded.sha256)
    return written, Contents.from_json(recorded.contents), recorded.server_major


def _summarize(recorded: Archive, *, is_verified: bool) -> ArchiveSummary:
    return ArchiveSummary(
        url=recorded.url or "",
        bytes=recorded.bytes or 0,
        sha256=recorded.sha256 or "",
        tables=recorded.tables or 0,
        rows=recorded.rows or 0,
        is_verified=is_verified,
    )


def _ignore(_: str) -> None:
    """Nobody listens."""
