"""Foreign keys and isolation, each with the corruption that must be seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from psycopg2.extensions import connection

from tenantferry.control.validations import MismatchKind

OTHER_ID = UUID("22222222-2222-2222-2222-222222222222")

ORDERS = (
    "CREATE TABLE customers (id bigint PRIMARY KEY, region text, UNIQUE (id, region))",
    "CREATE TABLE orders (id bigint PRIMARY KEY, customer_id bigint REFERENCES customers,"
    " parent_id bigint REFERENCES orders)",
    "INSERT INTO customers SELECT n, 'eu' FROM generate_series(1, 5) n",
    "INSERT INTO orders SELECT n, nullif(n % 6, 0), nullif(n - 1, 0) FROM generate_series(1, 50) n",
)

Prepare = Callable[..., Any]


def run(session: connection, statement: str) -> None:
    with session.cursor() as cursor:
        cursor.execute(statement)


def test_probes_find_nothing_in_a_sound_target(copied: Prepare) -> None:
    both = copied(*ORDERS)
    run(both.target, f"INSERT INTO public.customers VALUES (77, 'eu', '{OTHER_ID}')")

    assert both.compare() == ((), 0)


def test_find_orphans_names_a_row_whose_parent_belongs_to_another_tenant(copied: Prepare) -> None:
    both = copied(*ORDERS)
    run(both.owner, "ALTER TABLE orders DISABLE TRIGGER USER")
    run(both.target, "SET session_replication_role = replica")
    run(both.target, f"INSERT INTO public.customers VALUES (3, 'eu', '{OTHER_ID}')")
    run(both.target, "DELETE FROM public.customers WHERE id = 3 AND region = 'eu'"
        f" AND tenant_id = '{both.tenant.id}'")  # fmt: skip

    differences, mismatches = both.compare()

    orphans = [found for found in differences if found.kind is MismatchKind.ORPHAN]
    assert {found.row_key for found in orphans} == {f"id={n}" for n in range(3, 51, 6)}
    assert mismatches == len(orphans) + 1


def test_find_orphans_sees_a_partial_key_of_match_full(copied: Prepare) -> None:
    both = copied(
        *ORDERS[:1],
        "CREATE TABLE visits (id int PRIMARY KEY, customer_id bigint, region text,"
        " FOREIGN KEY (customer_id, region) REFERENCES customers (id, region) MATCH FULL)",
        "INSERT INTO customers VALUES (1, 'eu')",
        "INSERT INTO visits VALUES (1, 1, 'eu'), (2, NULL, NULL)",
    )
    before = both.compare()
    run(both.target, "SET session_replication_role = replica")
    run(both.target, "ALTER TABLE public.visits"
        " DROP CONSTRAINT visits_customer_id_region_fkey_match_full")  # fmt: skip
    run(both.target, "UPDATE public.visits SET region = NULL WHERE id = 1")

    differences, _ = both.compare()

    assert before == ((), 0)
    assert MismatchKind.ORPHAN in {found.kind for found in differences}


def test_find_orphans_ignores_a_key_that_the_source_never_validated(copied: Prepare) -> None:
    both = copied(
        "CREATE TABLE customers (id bigint PRIMARY KEY)",
        "CREATE TABLE orders (id bigint PRIMARY KEY, customer_id bigint)",
        "INSERT INTO orders VALUES (1, 99)",
        "ALTER TABLE orders ADD FOREIGN KEY (customer_id) REFERENCES customers NOT VALID",
    )

    assert both.compare() == ((), 0)


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        ("ALTER TABLE public.orders DISABLE ROW LEVEL SECURITY", "sees 1 rows of other tenants"),
        ("CREATE POLICY leak ON public.orders FOR SELECT USING (true)", "is no tenant, sees rows"),
        (
            "CREATE POLICY narrow ON public.orders AS RESTRICTIVE USING (id <> 7)",
            "sees 49 of its 50 rows",
        ),
        (
            "CREATE POLICY lax ON public.orders FOR UPDATE USING (true) WITH CHECK (true)",
            "may give a row to another tenant",
        ),
        ("REVOKE ALL ON public.orders FROM tenantferry_app", "cannot read it"),
    ],
    ids=["disabled", "policy for all", "too narrow", "no check", "no privilege"],
)
def test_probe_isolation_sees_a_broken_policy(copied: Prepare, damage: str, complaint: str) -> None:
    both = copied(*ORDERS)
    run(both.target, f"INSERT INTO public.orders VALUES (900, NULL, NULL, '{OTHER_ID}')")
    run(both.target, damage)

    differences, mismatches = both.compare()

    assert mismatches == len(differences) > 0
    assert {found.kind for found in differences} == {MismatchKind.ISOLATION}
    assert any(complaint in found.detail for found in differences)


def test_probe_isolation_changes_nothing(copied: Prepare) -> None:
    both = copied(*ORDERS)
    run(both.target, "CREATE POLICY lax ON public.orders FOR UPDATE USING (true) WITH CHECK (true)")

    both.compare()

    with both.target.cursor() as cursor:
        cursor.execute("SELECT DISTINCT tenant_id::text FROM public.orders")
        assert cursor.fetchall() == [(str(both.tenant.id),)]
