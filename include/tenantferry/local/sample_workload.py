"""The requests of the sample application: billing for the customers of one company."""

from __future__ import annotations

import hashlib
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from uuid import UUID

from psycopg2.extensions import connection
from psycopg2.extensions import cursor as cursor_type

from tenantferry.local.journal import Kind, Write
from tenantferry.local.workload import Memory, Request, UnexpectedAnswerError

_TABLES = ("users", "customers", "invoices", "invoice_items", "attachments")
_STATUSES = ("draft", "open", "void")
_NEW_ROWS_KEPT = 500

READ_HIGHEST_IDS = """
SELECT (SELECT max(id) FROM users), (SELECT max(id) FROM customers),
       (SELECT max(id) FROM invoices), (SELECT max(id) FROM invoice_items),
       (SELECT max(id) FROM attachments)
"""
READ_CUSTOMER = "SELECT name, invoices, total FROM customer_totals WHERE id = %s"
READ_INVOICE = (
    "SELECT invoices.status, sum(quantity * unit_price) FROM invoices"
    " LEFT JOIN invoice_items ON invoice_id = invoices.id"
    " WHERE invoices.id = %s GROUP BY invoices.id, invoices.status"
)
FIND_USER = "SELECT id FROM users WHERE lower(email) = lower(%s)"
READ_USER_EMAIL = "SELECT email FROM users WHERE id = %s FOR UPDATE"
INSERT_CUSTOMER = (
    "INSERT INTO customers (account_id, name, email, tags, profile)"
    " SELECT account_id, %s, %s, %s, %s FROM customers WHERE id = %s"
    " RETURNING id::text, name, email, tags::text, profile::text"
)
INSERT_INVOICE = (
    "INSERT INTO invoices (customer_id, number, status, total) VALUES (%s, %s, 'draft', %s)"
    " RETURNING id::text, customer_id::text, number, status::text, total::text"
)
INSERT_ITEM = (
    "INSERT INTO invoice_items (invoice_id, description, quantity, unit_price)"
    " VALUES (%s, %s, %s, %s)"
    " RETURNING id::text, invoice_id::text, description, quantity::text, unit_price::text"
)
INSERT_PAYMENT = (
    "INSERT INTO payments (invoice_id, amount, method) SELECT id, total, %s FROM invoices"
    " WHERE id = %s RETURNING id::text, invoice_id::text, amount::text, method, paid_at::text"
)
UPDATE_INVOICE = (
    "UPDATE invoices SET status = %s, note = coalesce(%s, note) WHERE id = %s"
    " RETURNING id::text, status::text, note"
)
UPDATE_CUSTOMER = (
    "UPDATE customers SET balance = balance + %s, profile = profile || %s::jsonb WHERE id = %s"
    " RETURNING id::text, balance::text, profile::text"
)
UPDATE_USER_EMAIL = "UPDATE users SET email = %s WHERE id = %s RETURNING id::text, email"
COUNT_DOWNLOAD = (
    "UPDATE attachments SET downloads = downloads + 1 WHERE id = %s"
    " RETURNING id::text, downloads::text"
)
REPLACE_ATTACHMENT = (
    "UPDATE attachments SET title = %s, content = %s WHERE id = %s RETURNING id::text, title"
)
DELETE_ITEM = "DELETE FROM invoice_items WHERE id = %s RETURNING id::text"


class SampleWorkload:
    """
    The requests of one worker: it writes rows whose id leaves the remainder *worker*, and its
    own new ones.

    :param highest_ids: table to the highest id that was there before.
    """

    def __init__(
        self,
        highest_ids: Mapping[str, int],
        *,
        worker: int,
        workers: int,
        chance: random.Random,
    ) -> None:
        self._highest_ids = highest_ids
        self._worker = worker
        self._workers = workers
        self._chance = chance
        self._memory = Memory()
        self._new: dict[str, deque[int]] = {
            table: deque(maxlen=_NEW_ROWS_KEPT) for table in ("customers", "invoices")
        }
        # How often, of 100.
        self._requests: Mapping[Callable[[cursor_type], list[Write]], int] = {
            self._read_customer: 12,
            self._read_invoice: 12,
            self._find_user: 6,
            self._read_back: 12,
            self._add_customer: 7,
            self._add_invoice: 11,
            self._update_invoice: 10,
            self._update_customer: 11,
            self._pay_invoice: 9,
            self._count_download: 4,
            self._replace_attachment: 2,
            self._delete_item: 2,
            self._swap_emails: 2,
        }

    def next_request(self) -> Request:
        """Choose what to do next."""
        (run,) = self._chance.choices(list(self._requests), list(self._requests.values()))
        return Request(run.__name__.strip("_"), run)

    def learn(self, writes: Sequence[Write]) -> None:
        """Remember what was committed."""
        self._memory.learn(writes)
        for write in writes:
            if write.kind is Kind.INSERT and write.table in self._new:
                self._new[write.table].append(int(write.key["id"]))

    def _read_customer(self, cursor: cursor_type) -> list[Write]:
        return _read(cursor, READ_CUSTOMER, self._any("customers"))

    def _read_invoice(self, cursor: cursor_type) -> list[Write]:
        return _read(cursor, READ_INVOICE, self._any("invoices"))

    def _find_user(self, cursor: cursor_type) -> list[Write]:
        # Emails are swapped among users, and none ever leaves.
        return _read(cursor, FIND_USER, f"USER.{self._any('users')}@EXAMPLE.com")

    def _read_back(self, cursor: cursor_type) -> list[Write]:
        if not self._memory:
            return self._read_customer(cursor)
        return self._memory.read_back(cursor, self._chance)

    def _add_customer(self, cursor: cursor_type) -> list[Write]:
        name = self._unique("Customer")
        tags = ["new", f"t{self._chance.randrange(20)}"]
        values = (name, f"{name}@customer.example", tags, '{"city": "Zürich", "score": 1}')
        cursor.execute(INSERT_CUSTOMER, (*values, self._any("customers")))
        return [_written(cursor, "customers", Kind.INSERT)]

    def _add_invoice(self, cursor: cursor_type) -> list[Write]:
        lines = self._chance.randint(1, 5)
        prices = [self._chance.randrange(1, 99_999) / 100 for _ in range(lines)]
        invoice_values = (self._any("customers"), self._unique("INV"), round(sum(prices), 2))
        cursor.execute(INSERT_INVOICE, invoice_values)
        writes = [_written(cursor, "invoices", Kind.INSERT)]
        for number, price in enumerate(prices, start=1):
            cursor.execute(INSERT_ITEM, (writes[0].key["id"], f"Line {number}", 1, price))
            writes.append(_written(cursor, "invoice_items", Kind.INSERT))
        return writes

    def _update_invoice(self, cursor: cursor_type) -> list[Write]:
        note = self._unique("note") if self._chance.random() < 0.3 else None
        values = (self._chance.choice(_STATUSES), note, self._own("invoices"))
        cursor.execute(UPDATE_INVOICE, values)
        return [_written(cursor, "invoices", Kind.UPDATE)]

    def _update_customer(self, cursor: cursor_type) -> list[Write]:
        amount = self._chance.randrange(-5_000, 5_000) / 100
        profile = f'{{"score": {self._chance.randrange(100)}}}'
        cursor.execute(UPDATE_CUSTOMER, (amount, profile, self._own("customers")))
        return [_written(cursor, "customers", Kind.UPDATE)]

    def _pay_invoice(self, cursor: cursor_type) -> list[Write]:
        invoice = self._own("invoices")
        cursor.execute(INSERT_PAYMENT, (self._chance.choice(("card", "transfer")), invoice))
        payment = _written(cursor, "payments", Kind.INSERT)
        cursor.execute(UPDATE_INVOICE, ("paid", None, invoice))
        return [payment, _written(cursor, "invoices", Kind.UPDATE)]

    def _count_download(self, cursor: cursor_type) -> list[Write]:
        # The large value stays as it is, and so does not travel in the change.
        cursor.execute(COUNT_DOWNLOAD, (self._own("attachments"),))
        return [_written(cursor, "attachments", Kind.UPDATE)]

    def _replace_attachment(self, cursor: cursor_type) -> list[Write]:
        content = self._chance.randbytes(self._chance.randrange(2_000, 60_000))
        values = (f"{self._unique('File')}.bin", content, self._own("attachments"))
        cursor.execute(REPLACE_ATTACHMENT, values)
        digests = {"content": hashlib.sha256(content).hexdigest()}
        return [_written(cursor, "attachments", Kind.UPDATE, digests)]

    def _delete_item(self, cursor: cursor_type) -> list[Write]:
        cursor.execute(DELETE_ITEM, (self._own("invoice_items"),))
        # None is there where this worker chose the same item before.
        return [_written(cursor, "invoice_items", Kind.DELETE)] if cursor.rowcount else []

    def _swap_emails(self, cursor: cursor_type) -> list[Write]:
        groups = range(self._highest_ids["users"] // self._workers)
        first, second = (self._in_group(group) for group in self._chance.sample(groups, 2))
        emails = []
        for user in (first, second):
            cursor.execute(READ_USER_EMAIL, (user,))
            emails.append(_one_row(cursor)[0])
        # An address must be free before another user can have it.
        cursor.execute(UPDATE_USER_EMAIL, (self._unique("swap"), first))
        cursor.execute(UPDATE_USER_EMAIL, (emails[0], second))
        taken = _written(cursor, "users", Kind.UPDATE)
        cursor.execute(UPDATE_USER_EMAIL, (emails[1], first))
        return [taken, _written(cursor, "users", Kind.UPDATE)]

    def _any(self, table: str) -> int:
        return self._chance.randint(1, self._highest_ids[table])

    def _own(self, table: str) -> int:
        new = self._new.get(table)
        if new and self._chance.random() < 0.3:
            return self._chance.choice(new)
        return self._in_group(self._chance.randrange(self._highest_ids[table] // self._workers))

    def _in_group(self, group: int) -> int:
        """Return this worker's own id among each *workers* ids that follow each other."""
        return group * self._workers + self._worker + 1

    def _unique(self, prefix: str) -> str:
        return f"{prefix}-{UUID(int=self._chance.getrandbits(128))}"


def read_highest_ids(opened: connection) -> dict[str, int]:
    """Return the highest id of each table; the sample has them without gaps."""
    with opened, opened.cursor() as cursor:
        cursor.execute(READ_HIGHEST_IDS)
        found = zip(_TABLES, _one_row(cursor), strict=True)
        return {table: int(highest) for table, highest in found}


def _read(cursor: cursor_type, statement: str, value: object) -> list[Write]:
    cursor.execute(statement, (value,))
    _one_row(cursor)
    return []


def _one_row(cursor: cursor_type) -> tuple[str, ...]:
    row = cursor.fetchone()
    if row is None:
        raise UnexpectedAnswerError("a row that must be there is not")
    return row


def _written(
    cursor: cursor_type, table: str, kind: Kind, digests: Mapping[str, str] | None = None
) -> Write:
    """Describe the row that the last statement returned: its id, then what was written."""
    key, *values = _one_row(cursor)
    names = [column.name for column in cursor.description or ()][1:]
    return Write(
        schema="public",
        table=table,
        kind=kind,
        key={"id": key},
        values=dict(zip(names, values, strict=True)),
        digests=digests or {},
    )
