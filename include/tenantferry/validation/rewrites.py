"""Tell a source that was truncated under a comparison from one that differs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

from tenantferry.backfill.copying import HeapFiles, read_heap_files
from tenantferry.connections import ConnectionParams, open_connection
from tenantferry.errors import TransientError
from tenantferry.fleet import Tenant
from tenantferry.schema.model import Table


class Rewrites:
    """
    Watches which files hold the tables of a source.

    A snapshot that is older than a ``TRUNCATE``, or than an ``ALTER TABLE`` that rewrites, sees an
    empty table. What is not there then was there at the position that is compared.

    :param tables: of the source, whose files are read now: before the snapshot is taken.
    """

    def __init__(self, source: ConnectionParams, tenant: Tenant, tables: Sequence[Table]) -> None:
        self._source, self._tenant, self._tables = source, tenant, tables
        self._files = self._read()

    def check(self) -> None:
        """
        Check that the source's tables are still in their files, before a mismatch is believed.

        :raises TransientError: if not.
        """
        files = self._read()
        changed = [t.label for t in self._tables if files[t.qualified] != self._files[t.qualified]]
        if changed:
            names = ", ".join(f'"{label}"' for label in changed)
            raise TransientError(
                f'could not tell whether source and target of tenant "{self._tenant.key}" match',
                detail=f"Truncated or rewritten while rows were compared: {names}. The rows as of"
                " the snapshot are not there any more.",
                hint="The retry compares with a new snapshot. Keep TRUNCATE and ALTER TABLE away"
                " from the source meanwhile.",
            )

    def _read(self) -> HeapFiles:
        purpose = f"validation of {self._tenant.key}"
        with closing(open_connection(self._source, purpose=purpose, autocommit=True)) as source:
            return read_heap_files(source, self._tables)
