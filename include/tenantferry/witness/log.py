"""Tell what a move did to rows of other tenants: pgoutput in, violations out, no connection."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from tenantferry.control.witnesses import WRITER_PREFIX, Violation
from tenantferry.stream.pgoutput import (
    NULL,
    Begin,
    Commit,
    Delete,
    Field,
    Insert,
    LogicalMessage,
    Relation,
    Truncate,
    Update,
    decode,
)

# Of one table and command in one transaction; the rest is counted.
MAX_KEYS = 5


@dataclass(slots=True)
class _Changes:
    rows: int = 0
    keys: list[str] = field(default_factory=list)


class WitnessedLog:
    """
    Takes the messages of a slot that is sent the rows of all tenants but one.

    Memory does not grow with a transaction: what it does is counted, and the first keys are kept.

    :param tenant: key of the one whose move it is.
    :param checked_to: transactions that ended at it or before were looked at already.
    :ivar ended_at: LSN of the end of the last transaction, 0 before the first.
    :ivar xids: of the move's transactions.
    """

    def __init__(self, tenant: str, *, checked_to: int) -> None:
        self._content = tenant.encode()
        self._checked_to = checked_to
        self._relations: dict[int, Relation] = {}
        self._xid = 0
        self._is_ours = False
        self._changes: dict[tuple[int, str], _Changes] = {}
        self.ended_at = 0
        self.xids: set[int] = set()
        self.violations: list[Violation] = []

    def take(self, data: bytes) -> None:
        """
        Take one message.

        :raises ProtocolError: if it is none.
        """
        match decode(data):
            case Begin(xid=xid):
                self._xid, self._is_ours, self._changes = xid, False, {}
            case LogicalMessage(prefix=prefix, content=content):
                self._is_ours |= prefix == WRITER_PREFIX and content == self._content
            case Relation() as relation:
                self._relations[relation.oid] = relation
            case Insert(relation=oid, new=row):
                self._note(oid, "INSERT", row)
            case Update(relation=oid, old=old, new=new):
                self._note(oid, "UPDATE", new if old is None else old)
            case Delete(relation=oid, old=row):
                self._note(oid, "DELETE", row)
            case Truncate(relations=oids):
                # No filter applies to it: it empties the table of every tenant.
                for oid in oids:
                    self._note(oid, "TRUNCATE", None)
            case Commit(end_lsn=end_lsn):
                self._commit(end_lsn)

    def _note(self, oid: int, change: str, row: list[Field] | None) -> None:
        changes = self._changes.setdefault((oid, change), _Changes())
        changes.rows += 1
        if row is not None and len(changes.keys) < MAX_KEYS:
            changes.keys.append(", ".join(_spell_key(self._relations[oid], row)))

    def _commit(self, end_lsn: int) -> None:
        self.ended_at = end_lsn
        if not self._is_ours or end_lsn <= self._checked_to:
            return
        self.xids.add(self._xid)
        for (oid, change), changes in self._changes.items():
            relation = self._relations[oid]
            self.violations.append(
                Violation(
                    schema=relation.schema,
                    table=relation.name,
                    change=change,
                    rows=changes.rows,
                    keys=tuple(changes.keys),
                    xid=self._xid,
                    commit_lsn=end_lsn,
                )
            )


def _spell_key(relation: Relation, row: list[Field]) -> Iterator[str]:
    for column, value in zip(relation.columns, row, strict=True):
        if not column.in_key:
            continue
        if value is None:  # an unchanged TOAST value, under the identity FULL only
            yield f"{column.name}=..."
        else:
            text = "NULL" if value == NULL else value[4:].decode("utf-8", "replace")
            yield f"{column.name}={text}"
