"""A table may have every column but the one that the target needs for itself."""

from __future__ import annotations

from typing import Any

from tenantferry.schema.findings import Verdict


def _columns(count: int) -> str:
    return ", ".join(f"c{n} smallint" for n in range(count))


def test_a_table_with_1599_columns_arrives(trip: Any) -> None:
    """One copied and streamed value of each column; the copy of 1,599 takes about a second."""
    values = ", ".join(f"n + {n}" for n in range(1596))
    body = "repeat(md5(n::text), 100)"
    trip.run(
        f"CREATE TABLE wide (id integer, part text, {_columns(1596)}, body text,"
        " PRIMARY KEY (id, part))",
        # Its value is not sent with a row in which it did not change.
        "ALTER TABLE wide ALTER COLUMN body SET STORAGE EXTERNAL",
        f"INSERT INTO wide SELECT n, 'p', {values}, {body} FROM generate_series(1, 12) AS n",
        # Without a key, every column stands in a comparison of whole rows.
        f"CREATE TABLE loose ({_columns(1599)})",
        "ALTER TABLE loose REPLICA IDENTITY FULL",
        "INSERT INTO loose (c0, c1598) SELECT n % 3, n FROM generate_series(1, 12) AS n",
    )

    trip.travel(
        finally_run=(
            f"INSERT INTO wide SELECT n, 'q', {values}, {body} FROM generate_series(13, 20) AS n",
            "UPDATE wide SET c0 = -1, c1595 = NULL WHERE id % 2 = 0",
            "UPDATE wide SET id = 100 + id, part = repeat('long ', 500) WHERE id % 3 = 0",
            "UPDATE wide SET body = 'short' WHERE id = 10",
            "DELETE FROM wide WHERE id IN (2, 5)",
            # Two rows change places within a transaction.
            "UPDATE wide SET id = -1 WHERE id = 1; UPDATE wide SET id = 1 WHERE id = 7;"
            " UPDATE wide SET id = 7 WHERE id = -1",
            "UPDATE loose SET c1598 = c1598 + 100 WHERE c0 = 1",
            "DELETE FROM loose WHERE c0 = 2",
        )
    )


def test_a_table_with_1600_columns_is_refused(trip: Any) -> None:
    trip.run(f"CREATE TABLE wide (id integer PRIMARY KEY, {_columns(1599)})")

    (found,) = trip.find(Verdict.ERROR)

    assert (found.check, found.subject) == ("columns", "public.wide")
    assert "no room for tenant_id" in found.detail
    assert found.hint
