from __future__ import annotations

from collections.abc import Callable
from typing import Any

from psycopg2.extensions import connection

from tenantferry.control.validations import MismatchKind

Prepare = Callable[..., Any]

# Postgres' own hash of a text has 32 bits: of 300,000 texts some have the same.
_TWINS = """
SELECT min(name), max(name)
FROM (SELECT 'name ' || n AS name FROM generate_series(1, 300000) AS n) AS names
GROUP BY hashtext(name) HAVING count(*) > 1
ORDER BY 1 LIMIT 1
"""


def ask(session: connection, query: str, *values: str) -> Any:
    with session.cursor() as cursor:
        cursor.execute(query, values)
        return cursor.fetchone() if cursor.description else None


def test_gotcha_33_texts_that_32_bits_cannot_tell_apart_are_a_mismatch(
    copied: Prepare, target: connection
) -> None:
    name, twin = ask(target, _TWINS)
    both = copied(
        "CREATE TABLE items (id bigint PRIMARY KEY, name text)",
        f"INSERT INTO items VALUES (1, '{name}')",
    )

    ask(both.target, "UPDATE public.items SET name = %s", twin)

    assert ask(target, "SELECT hashtext(%s) = hashtext(%s)", name, twin) == (True,)
    assert name != twin
    (found,), mismatches = both.compare()
    assert (found.kind, found.row_key, mismatches) == (MismatchKind.DIFFERENT, "id=1", 1)
