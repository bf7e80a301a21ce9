from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from threading import Thread

import pytest
from psycopg2 import errors
from psycopg2.extensions import connection
from psycopg2.extensions import cursor as cursor_type

from tenantferry.connections import ConnectionParams, open_connection
from tenantferry.fleet import Tenant
from tenantferry.local.postgres import PostgresServer
from tenantferry.schema.isolation import ensure_isolation
from tenantferry.schema.roles import ensure_shared_role

SpeakingAs = Callable[[str], AbstractContextManager[cursor_type]]

pytestmark = pytest.mark.usefixtures("prepared")


def _insert_customer(cursor: cursor_type, email: str) -> int:
    # The sample makes a unique slug of the name.
    cursor.execute(
        "INSERT INTO customers (email, name) VALUES (%s, %s) RETURNING id", (email, email)
    )
    row = cursor.fetchone()
    assert row is not None
    number: int = row[0]
    return number


def _read_emails(cursor: cursor_type) -> list[str]:
    cursor.execute("SELECT email FROM customers ORDER BY email")
    return [email for (email,) in cursor.fetchall()]


@pytest.fixture
def customers(speaking_as: SpeakingAs) -> None:
    """One customer of each tenant, with the same id."""
    with speaking_as("acme") as cursor:
        _insert_customer(cursor, "a@acme")
    with speaking_as("globex") as cursor:
        _insert_customer(cursor, "g@globex")


def test_a_tenant_sees_only_its_own_rows(customers: None, speaking_as: SpeakingAs) -> None:
    with speaking_as("acme") as cursor:
        assert _read_emails(cursor) == ["a@acme"]
        cursor.execute("UPDATE customers SET name = 'mine'")
        assert cursor.rowcount == 1
        cursor.execute("DELETE FROM customers WHERE email = 'g@globex'")
        assert cursor.rowcount == 0


def test_an_insert_without_tenant_is_stamped(
    target: connection, customers: None, acme: Tenant
) -> None:
    with target.cursor() as cursor:
        cursor.execute("SELECT tenant_id::text FROM public.customers WHERE email = 'a@acme'")
        assert cursor.fetchone() == (str(acme.id),)


def test_a_row_of_another_tenant_is_refused(speaking_as: SpeakingAs, globex: Tenant) -> None:
    with speaking_as("acme") as cursor, pytest.raises(errors.InsufficientPrivilege):
        cursor.execute(
            "INSERT INTO customers (tenant_id, email, name) VALUES (%s, 'x@x', 'x')",
            (str(globex.id),),
        )


def test_a_row_cannot_be_given_away(
    customers: None, speaking_as: SpeakingAs, globex: Tenant
) -> None:
    with speaking_as("acme") as cursor, pytest.raises(errors.InsufficientPrivilege):
        cursor.execute("UPDATE customers SET tenant_id = %s", (str(globex.id),))


def test_an_injected_setting_gains_nothing(
    customers: None, speaking_as: SpeakingAs, globex: Tenant
) -> None:
    with speaking_as("acme") as cursor:
        cursor.execute("SELECT set_config('app.tenant_id', %s, false)", (str(globex.id),))

        assert _read_emails(cursor) == ["a@acme"]


def test_a_tenant_cannot_change_or_read_the_mapping(speaking_as: SpeakingAs) -> None:
    with speaking_as("acme") as cursor:
        cursor.execute("SELECT role_name FROM app.tenant_roles")
        assert cursor.fetchall() == [("tenant_acme",)]
        for statement in (
            "UPDATE app.tenant_roles SET role_name = 'tenant_globex'",
            "INSERT INTO app.shared_roles VALUES ('tenant_acme')",
            "DELETE FROM app.tenant_roles",
        ):
            with pytest.raises(errors.InsufficientPrivilege):
                cursor.execute(statement)


def test_gotcha_1_a_tenant_cannot_truncate(speaking_as: SpeakingAs) -> None:
    with speaking_as("acme") as cursor, pytest.raises(errors.InsufficientPrivilege):
        cursor.execute("TRUNCATE customers")


def test_a_role_without_tenant_sees_nothing(customers: None, target: connection) -> None:
    with target.cursor() as cursor:
        cursor.execute("GRANT tenantferry_app TO CURRENT_USER WITH SET TRUE, INHERIT FALSE")
        cursor.execute("SET ROLE tenantferry_app; SET row_security = on")
        cursor.execute("SELECT count(*) FROM public.customers")
        seen = cursor.fetchone()
        cursor.execute("RESET ROLE")

    assert seen == (0,)


def test_the_owner_is_under_row_security_too(target: connection) -> None:
    with target.cursor() as cursor:
        cursor.execute(
            "SELECT bool_and(relrowsecurity AND relforcerowsecurity) FROM pg_class"
            " WHERE relname IN ('customers', 'orders', 'Booking Slots')"
        )
        assert cursor.fetchone() == (True,)


def test_a_shared_role_speaks_as_the_tenant_it_names(
    customers: None, target: connection, target_server: PostgresServer, acme: Tenant, globex: Tenant
) -> None:
    with target.cursor() as cursor:
        cursor.execute("DROP ROLE IF EXISTS shared_app; CREATE ROLE shared_app")
        cursor.execute("GRANT shared_app TO CURRENT_USER WITH SET TRUE")
    ensure_shared_role(target, "shared_app")

    try:
        with target.cursor() as cursor:
            cursor.execute("SET ROLE shared_app; SET row_security = on; SET search_path = public")
            unset = _read_emails(cursor)
            cursor.execute("BEGIN; SELECT set_config('app.tenant_id', %s, true)", (str(globex.id),))
            named = _read_emails(cursor)
            number = _insert_customer(cursor, "h@globex")
            cursor.execute("COMMIT")
            after = _read_emails(cursor)
            with pytest.raises(errors.InsufficientPrivilege):
                _insert_customer(cursor, "nobody@x")
            cursor.execute("RESET ROLE")
    finally:
        target_server.psql("-c", "DROP OWNED BY shared_app; DROP ROLE shared_app",
                           database=target.info.dbname)  # fmt: skip

    assert (unset, named, number, after) == ([], ["g@globex"], 2, [])


def test_gotcha_24_a_foreign_key_cannot_reach_another_tenant(
    customers: None, speaking_as: SpeakingAs
) -> None:
    with speaking_as("globex") as cursor:
        other = _insert_customer(cursor, "second@globex")
    with speaking_as("acme") as cursor, pytest.raises(errors.ForeignKeyViolation):
        cursor.execute("INSERT INTO orders (customer) VALUES (%s)", (other,))


def test_gotcha_24_a_unique_key_does_not_tell_of_another_tenant(
    customers: None, speaking_as: SpeakingAs
) -> None:
    with speaking_as("acme") as cursor:
        assert _insert_customer(cursor, "g@globex") == 2


def test_gotcha_23_on_delete_set_null_keeps_the_tenant(
    speaking_as: SpeakingAs, target: connection, acme: Tenant
) -> None:
    with speaking_as("acme") as cursor:
        first = _insert_customer(cursor, "first@acme")
        cursor.execute(
            "INSERT INTO customers (email, name, referrer) VALUES ('second@acme', 'y', %s)",
            (first,),
        )
        cursor.execute("DELETE FROM customers WHERE id = %s", (first,))

        cursor.execute("SELECT referrer, tenant_id::text FROM customers")
        assert cursor.fetchall() == [(None, str(acme.id))]


def test_gotcha_25_a_view_shows_only_the_rows_of_who_asks(
    customers: None, speaking_as: SpeakingAs
) -> None:
    for key in ("acme", "globex"):
        with speaking_as(key) as cursor:
            cursor.execute("INSERT INTO orders (customer) VALUES (1)")
    with speaking_as("acme") as cursor:
        cursor.execute("SELECT orders FROM order_totals")
        assert cursor.fetchall() == [(1,)]


def test_gotcha_25_a_view_without_invoker_would_show_all(
    customers: None, speaking_as: SpeakingAs, target: connection
) -> None:
    with target.cursor() as cursor:
        cursor.execute("CREATE VIEW public.hole AS SELECT email FROM public.customers")
        cursor.execute("GRANT SELECT ON public.hole TO tenantferry_app")
    with speaking_as("acme") as cursor:
        cursor.execute("SELECT count(*) FROM hole")
        assert cursor.fetchone() == (2,)


def test_a_point_query_uses_the_key_and_asks_for_the_tenant_once(
    target: connection, speaking_as: SpeakingAs, acme: Tenant, globex: Tenant
) -> None:
    with target.cursor() as cursor:
        cursor.execute(
            "INSERT INTO public.customers (tenant_id, id, email, name)"
            " SELECT t, n, n || '@x', n FROM generate_series(1, 2000) AS n,"
            " unnest(%s::uuid[]) AS t",
            ([str(acme.id), str(globex.id)],),
        )
        cursor.execute("ANALYZE public.customers")
    with speaking_as("acme") as cursor:
        cursor.execute("EXPLAIN SELECT * FROM customers WHERE id = 7")
        plan = "\n".join(line for (line,) in cursor.fetchall())

    assert "Index Scan using customers_pkey" in plan
    assert "Index Cond: ((tenant_id = (InitPlan 1).col1) AND (id = 7))" in plan
    assert plan.count("InitPlan 1\n") == 1


def test_next_value_goes_on_with_currval_and_lastval(speaking_as: SpeakingAs) -> None:
    with speaking_as("acme") as cursor:
        number = _insert_customer(cursor, "a@acme")
        cursor.execute("SELECT currval('customers_id_seq'), lastval()")

        assert cursor.fetchone() == (number, number)


def test_a_tenant_cannot_use_the_sequences_of_another(speaking_as: SpeakingAs) -> None:
    with speaking_as("acme") as cursor, pytest.raises(errors.InsufficientPrivilege):
        cursor.execute("SELECT nextval('t_globex.customers_id_seq')")


def test_ensure_isolation_may_run_in_two_sessions_at_once(
    target_params: ConnectionParams,
) -> None:
    finished: list[bool] = []

    def run() -> None:
        with closing(open_connection(target_params, purpose="test")) as conn:
            for _ in range(3):
                with conn:
                    ensure_isolation(conn)
        finished.append(True)

    threads = [Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert finished == [True] * 3


def test_ensure_isolation_does_not_wait_for_open_transactions_of_tenants(
    target: connection, target_params: ConnectionParams, speaking_as: SpeakingAs
) -> None:
    with speaking_as("acme") as cursor:
        cursor.execute("BEGIN; SELECT count(*) FROM customers")
        settings = {"lock_timeout": "1s"}
        other = open_connection(target_params, purpose="test", settings=settings)
        with closing(other), other:
            ensure_isolation(other)
        cursor.execute("COMMIT")
