"""Servers refuse to run as root: who runs them instead, and where their files may lie."""

from __future__ import annotations

import hashlib
import os
import pwd
import socket
import stat
from pathlib import Path

from tenantferry.errors import PermanentError

_SERVICE_USERS = ("postgres", "nobody")
_SHARED_ROOT = Path("/var/tmp")  # noqa: S108 - see ensure_own_directory()


def service_user() -> str | None:
    """Return the account that servers run as, or ``None`` where we are not root."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in _SERVICE_USERS if name in names)


def servers_directory(wanted: Path) -> Path:
    """
    Return a folder for server files that the service account can reach.

    That is *wanted*, but where a folder above it is closed to others (a checkout below root's
    home), one below ``/var/tmp`` of a name that depends on *wanted*.

    :raises PermanentError: if somebody else has made that one.
    """
    wanted = wanted.resolve()
    if service_user() is None or _is_open(wanted):
        wanted.mkdir(parents=True, exist_ok=True)
        wanted.chmod(0o755)
        return wanted
    digest = hashlib.sha256(str(wanted).encode()).hexdigest()[:12]
    # Open to every account, and kept when the machine starts again.
    return ensure_own_directory(_SHARED_ROOT / f"tenantferry-{digest}")


def ensure_own_directory(path: Path) -> Path:
    """
    Make a folder, where everybody may make one, that everybody may enter and only we may change.

    Its name can be guessed: who made it before us would own what servers run on.

    :raises PermanentError: if it is there and not ours.
    """
    try:
        path.mkdir(mode=0o755)
    except FileExistsError:
        # Not followed: a symbolic link may lead to a folder that is ours. What is ours stays so,
        # because in a sticky folder nobody else can replace it.
        status = path.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            raise PermanentError(
                f'cannot use the folder "{path}" for servers',
                detail="It is a symbolic link or belongs to another account.",
                hint="Find out who made it and remove it, or work in a folder that every account"
                " may enter.",
            ) from None
    path.chmod(0o755)  # mkdir() heeds the umask
    return path


def give_to_service_user(path: Path) -> None:
    """Make the service account the owner of one file or folder."""
    name = service_user()
    if name is not None:
        entry = pwd.getpwnam(name)
        os.chown(path, entry.pw_uid, entry.pw_gid)


def is_reachable(path: Path) -> bool:
    """Tell whether the service account can reach *path*."""
    return service_user() is None or _is_open(path.resolve())


def free_port() -> int:
    """Return a TCP port that was free on loopback a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _is_open(path: Path) -> bool:
    existing = [parent for parent in path.parents if parent.exists()]
    return all(parent.stat().st_mode & 0o001 for parent in existing)
