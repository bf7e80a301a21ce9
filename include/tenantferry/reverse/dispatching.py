"""
From the target's messages to the lanes of the tenants in grace.

Every change is decoded once at most, whatever the number of tenants; whose it is says its
``tenant_id``, which is looked at first: most are of tenants that are not in grace.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from struct import Struct
from typing import Any
from uuid import UUID

from psycopg2.extensions import connection

from tenantferry.reverse.change import (
    CHANGE_OVERHEAD_BYTES,
    DELETE,
    INSERT,
    TRUNCATE,
    UPDATE,
    UPDATE_WHOLE,
    Shape,
)
from tenantferry.reverse.lane import Lane
from tenantferry.reverse.marker import read_grace_marker
from tenantferry.stream.marker import MARKER_PREFIX
from tenantferry.stream.netchange import BrokenStreamError
from tenantferry.stream.pgoutput import (
    NULL,
    UNCHANGED,
    Begin,
    Commit,
    Delete,
    Field,
    Insert,
    LogicalMessage,
    Message,
    Origin,
    Relation,
    Truncate,
    Type,
    Update,
    decode,
    has_new_row_only,
    is_row_change,
    peek_column,
    peek_relation,
)
from tenantferry.stream.relations import TENANT_COLUMN, read_type_names
from tenantferry.stream.walsender import Walsender

# After so many messages the stream looks at its other duties.
_MESSAGES_PER_TURN = 2000
_LENGTH = Struct("!I").pack
# A tenant's id as a field, see `_spellings`.
_BINARY_BYTES, _TEXT_BYTES = 4 + 16, 4 + 36


@dataclass(frozen=True, slots=True)
class Barrier:
    """
    Where a grace begins or is over.

    :ivar xid: of the transaction that says so; its lower 32 bits.
    :ivar tenant: key.
    """

    xid: int
    tenant: str


class Dispatcher:
    """
    Hands each change to the lane of its tenant.

    :param catalog: session with the target in autocommit; asked for the names of types.
    :param lose: called with a lane and a sentence where a change of its tenant may be missing.
    :ivar read_to: LSN; every transaction of the target with a lower ``commit_lsn`` was read.
    :ivar shapes: all that were seen; changes name them by number.
    :ivar markers: contents of the markers read since it was last emptied.
    :ivar barrier: a transaction that changes the graces, and the marker in it: nothing behind it
        is read until the graces were looked at again and this is ``None``.
    :ivar changes: number of changes read, of all tenants.
    :ivar has_more: whether the last turn ended before the messages did.
    """

    def __init__(
        self,
        walsender: Walsender,
        catalog: connection,
        *,
        position: int,
        lose: Callable[[Lane, str], None],
    ) -> None:
        self._walsender = walsender
        self._catalog = catalog
        self._lose = lose
        self._lanes: dict[Field, Lane] = {}
        # By oid: number of the shape, position of tenant_id, the relation. Others are not ours.
        self._tables: dict[int, tuple[int, int, Relation]] = {}
        self._begun: Begin | None = None
        self._is_skipping = False
        self._touched: dict[int, Lane] = {}
        self._dirty: dict[int, Lane] = {}
        self._size = 0
        self.read_to = position
        self.shapes: list[Shape] = []
        self.markers: list[bytes] = []
        self.barrier: Barrier | None = None
        self.changes = 0
        self.has_more = False
        self._take: dict[type, Callable[[Any], None]] = {
            Begin: self._begin,
            Origin: self._origin,
            Commit: self._commit,
            Relation: self._relation,
            Insert: self._insert,
            Update: self._update,
            Delete: self._delete,
            Truncate: self._truncate,
            LogicalMessage: self._logical_message,
        }

    def add_lane(self, lane: Lane, tenant_id: UUID) -> None:
        """Route a tenant's changes from the next one on."""
        for field in _spellings(tenant_id):
            self._lanes[field] = lane

    def drop_lane(self, lane: Lane) -> None:
        """Route nothing to a lane any more."""
        self._lanes = {field: known for field, known in self._lanes.items() if known is not lane}
        self._touched.pop(lane.grace.id, None)
        self._dirty.pop(lane.grace.id, None)

    def read(self) -> list[Lane]:
        """
        Route what has arrived, for a limited time; never wait for more.

        :return: the lanes that something was routed to.
        :raises TenantferryError: if the stream cannot go on.
        """
        self.has_more = False
        take = self._take
        for number, (message, size) in enumerate(self._walsender.read(self._decode)):
            kind = type(message)
            handler = take.get(kind)
            if handler is not None:
                self._size = size
                handler(message)
            elif message is not None and kind is not Type:
                raise BrokenStreamError(f"a message {kind.__name__} was not expected")
            if number >= _MESSAGES_PER_TURN or self.barrier is not None:
                self.has_more = True
                break
        else:
            if self._begun is None:
                # Everything that was committed before it has come.
                self.read_to = max(self.read_to, self._walsender.received)
        lanes = list(self._dirty.values())
        self._dirty.clear()
        for lane in lanes:
            lane.flush()
        return lanes

    def _decode(self, data: bytes, at: int) -> Message | None:
        """Decode a message, unless it is a change of rows that are of no tenant in grace."""
        if is_row_change(data, at) and self._is_foreign(data, at):
            return None
        return decode(data, at)

    def _is_foreign(self, data: bytes, at: int) -> bool:
        table = self._tables.get(peek_relation(data, at))
        if table is None or self._is_skipping:
            return True
        _, column, relation = table
        lanes = self._lanes
        if column == len(relation.columns) - 1 and has_new_row_only(data, at):
            # As in every table that was widened: the message ends with the tenant's id.
            is_foreign = not (data[-_BINARY_BYTES:] in lanes or data[-_TEXT_BYTES:] in lanes)
        else:
            owners = peek_column(data, at, column)
            # A row whose tenant was not sent may be anybody's.
            is_foreign = not any(owner in lanes or owner == NULL for owner in owners)
        self.changes += is_foreign
        return is_foreign

    def _begin(self, message: Begin) -> None:
        self._begun = message
        self._is_skipping = False
        # Transactions come in the order of their commits.
        self.read_to = max(self.read_to, message.final_lsn)

    def _origin(self, _: Origin) -> None:
        # It came from a source; going back there it would be applied twice.
        self._is_skipping = True

    def _commit(self, message: Commit) -> None:
        begun = self._begun
        if begun is None:
            raise BrokenStreamError("a transaction ended that had not begun")
        for number, lane in self._touched.items():
            lane.take(begun.final_lsn, begun.commit_time, end_lsn=message.end_lsn)
            self._dirty[number] = lane
        self._touched.clear()
        self._begun = None
        self.read_to = max(self.read_to, message.end_lsn)

    def _relation(self, message: Relation) -> None:
        known = self._tables.get(message.oid)
        if known is not None and known[2] == message:
            return
        names = [column.name for column in message.columns]
        if TENANT_COLUMN not in names:
            self._tables.pop(message.oid, None)
            return
        at = names.index(TENANT_COLUMN)
        shape = self._describe(message, names)
        if shape not in self.shapes:
            self.shapes.append(shape)
        self._tables[message.oid] = self.shapes.index(shape), at, message

    def _describe(self, relation: Relation, names: list[str]) -> Shape:
        columns = list(zip(names, read_type_names(self._catalog, relation), strict=True))
        own = [i for i, name in enumerate(names) if name != TENANT_COLUMN]
        # Under FULL all columns are said to be the key; the whole old row comes with a change.
        in_key = [relation.identity in "di" and relation.columns[i].in_key for i in own]
        return Shape(
            relation.schema,
            relation.name,
            tuple(columns[i] for i in own),
            tuple(position for position, is_key in enumerate(in_key) if is_key),
        )

    def _insert(self, message: Insert) -> None:
        number, at, _ = self._tables[message.relation]
        new = message.new
        lane = self._lanes.get(new.pop(at))
        self.changes += 1
        if lane is not None:
            self._hand_over(lane, (number, INSERT, None, new))

    def _update(self, message: Update) -> None:
        number, at, relation = self._tables[message.relation]
        old, new = message.old, message.new
        owner = new.pop(at)
        self.changes += 1
        if old is not None:
            former = old.pop(at)
            if former != owner:
                self._move(number, relation, (former, old), (owner, new), message)
                return
        lane = self._lanes.get(owner)
        if lane is not None:
            kind = UPDATE_WHOLE if message.is_whole else UPDATE
            self._hand_over(lane, (number, kind, old, new))

    def _move(
        self,
        number: int,
        relation: Relation,
        old: tuple[Field, list[Field]],
        new: tuple[Field, list[Field]],
        message: Update,
    ) -> None:
        """Follow a row from one tenant to another."""
        former, row = old
        owner, image = new
        lane = self._find_owner(former, relation)
        if lane is not None:
            self._hand_over(lane, (number, DELETE, row, None))
        lane = self._lanes.get(owner)
        if lane is None:
            return
        if message.is_whole:
            image = [o if f is UNCHANGED else f for f, o in zip(image, row, strict=True)]
        if UNCHANGED in image:
            self._lose(
                lane,
                f'A row of table "{relation.schema}.{relation.name}" was given to it by another'
                " tenant, with a value that the target's log does not hold.",
            )
            return
        self._hand_over(lane, (number, INSERT, None, image))

    def _delete(self, message: Delete) -> None:
        number, at, relation = self._tables[message.relation]
        lane = self._find_owner(message.old.pop(at), relation)
        self.changes += 1
        if lane is not None:
            self._hand_over(lane, (number, DELETE, message.old, None))

    def _find_owner(self, field: Field, relation: Relation) -> Lane | None:
        """Return the lane of an old row; nobody's is one whose tenant was not sent."""
        if field == NULL:
            for lane in set(self._lanes.values()):
                self._lose(
                    lane,
                    f'A row of table "{relation.schema}.{relation.name}" was deleted while its'
                    " replica identity did not hold tenant_id.",
                )
        return self._lanes.get(field)

    def _truncate(self, message: Truncate) -> None:
        if self._is_skipping:
            return
        tables = [table for oid in message.relations if (table := self._tables.get(oid))]
        for lane in set(self._lanes.values()):
            for number, _, _ in tables:
                self._hand_over(lane, (number, TRUNCATE, None, None))

    def _hand_over(self, lane: Lane, change: tuple[int, int, Any, Any]) -> None:
        self._touched[lane.grace.id] = lane
        lane.changes.append(change)
        lane.size_bytes += self._size + CHANGE_OVERHEAD_BYTES
        if lane.is_full and self._begun is not None:
            # Of a large transaction: a part of it.
            lane.take(self._begun.final_lsn, self._begun.commit_time, end_lsn=0)

    def _logical_message(self, message: LogicalMessage) -> None:
        # One that is not transactional comes out of order.
        if not message.transactional or message.prefix != MARKER_PREFIX:
            return
        tenant = read_grace_marker(message.content)
        if tenant is not None and self._begun is not None:
            self.barrier = Barrier(self._begun.xid, tenant)
        else:
            self.markers.append(message.content)


def _spellings(tenant_id: UUID) -> tuple[bytes, bytes]:
    """Return a tenant's id as it is sent, in binary and as text."""
    text = str(tenant_id).encode()
    return _LENGTH(16) + tenant_id.bytes, _LENGTH(len(text)) + text
