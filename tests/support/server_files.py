"""Where the servers of tests keep their files."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # comes without types

from tenantferry.local.accounts import servers_directory

_MEMORY = Path("/dev/shm")
# Of several servers in several processes, and of a test with large values.
_ROOM_BYTES = 8 * 1024**3


def make_servers_directory() -> Path:
    """
    Make a folder for server files; the caller removes it.

    In memory, where there is room: to create a database takes a tenth of the time there.
    """
    room = _MEMORY if _has_room() else None
    return servers_directory(Path(tempfile.mkdtemp(prefix="tenantferry-test-", dir=room)))


def _has_room() -> bool:
    return (
        _MEMORY.is_dir()
        and shutil.disk_usage(_MEMORY).free >= _ROOM_BYTES
        and psutil.virtual_memory().available >= _ROOM_BYTES
    )
