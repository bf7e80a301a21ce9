from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from psycopg2.extensions import connection

from tenantferry.connections import ConnectionParams
from tenantferry.errors import PermanentError
from tenantferry.fleet import Tenant
from tenantferry.local.postgres import PostgresServer
from tenantferry.schema.database import Sequence
from tenantferry.schema.sequences import (
    SequenceState,
    carry_sequences,
    carry_sequences_back,
    check_sequences_can_go_back,
    choose_state,
    ensure_tenant_sequences,
)

Prepare = Callable[[Tenant], tuple[str, ...]]
UP = Sequence("public", "s", "bigint", 1, 1, 1, 1000, 1, False)
TENS = replace(UP, increment=10)
DOWN = replace(UP, increment=-1, start=100, minimum=-100, maximum=100)


def _read_one(conn: connection, statement: str) -> int:
    with conn.cursor() as cursor:
        cursor.execute(statement)
        row = cursor.fetchone()
    assert row is not None
    value: int = row[0]
    return value


@pytest.mark.parametrize(
    ("sequence", "source", "target", "expected"),
    [
        (UP, SequenceState(1, False), SequenceState(1, False), SequenceState(1, False)),
        (UP, SequenceState(31, True), SequenceState(1, False), SequenceState(32, False)),
        (UP, SequenceState(50, False), SequenceState(1, False), SequenceState(50, False)),
        (UP, SequenceState(31, True, 45), SequenceState(1, False), SequenceState(46, False)),
        (UP, SequenceState(31, True, 7), SequenceState(1, False), SequenceState(32, False)),
        (UP, SequenceState(31, True), SequenceState(90, True), SequenceState(91, False)),
        (UP, SequenceState(31, True, 999_999), SequenceState(1, False), SequenceState(32, False)),
        (UP, SequenceState(1000, True), SequenceState(1, False), SequenceState(1000, True)),
        (TENS, SequenceState(31, True, 45), SequenceState(1, False), SequenceState(51, False)),
        (DOWN, SequenceState(80, True, 60), SequenceState(100, False), SequenceState(59, False)),
        (DOWN, SequenceState(80, True, 90), SequenceState(100, False), SequenceState(79, False)),
        (DOWN, SequenceState(80, True), SequenceState(70, True), SequenceState(69, False)),
        (
            replace(UP, cycle=True),
            SequenceState(3, True, 900),
            SequenceState(500, True),
            SequenceState(3, True),
        ),
    ],
    ids=[
        "unused", "used", "set but not called", "key ahead", "key behind", "target ahead",
        "key out of bounds", "exhausted", "increment", "descending", "descending, key behind",
        "descending, target ahead", "cycling",
    ],
)  # fmt: skip
def test_choose_state_never_repeats_a_value(
    sequence: Sequence, source: SequenceState, target: SequenceState, expected: SequenceState
) -> None:
    assert choose_state(sequence, source, target) == expected


@pytest.mark.usefixtures("prepared")
def test_ensure_tenant_sequences_creates_them_alike(target: connection) -> None:
    with target.cursor() as cursor:
        cursor.execute(
            "SELECT sequencename::text, data_type::text, start_value, increment_by, min_value,"
            " cache_size FROM pg_sequences WHERE schemaname = 't_acme' ORDER BY 1"
        )
        found = cursor.fetchall()

    assert found == [
        ("countdown", "integer", 100, -1, -1000, 1),
        ("customers_id_seq", "bigint", 1, 1, 1, 1),
        ("invoice_numbers", "bigint", 1000, 10, 1, 5),
        ("orders_id_seq", "integer", 1, 1, 1, 1),
    ]


@pytest.mark.usefixtures("prepared")
def test_ensure_tenant_sequences_follows_the_source(
    sample: connection, source: connection, target: connection, acme: Tenant
) -> None:
    with sample.cursor() as cursor:
        cursor.execute("ALTER SEQUENCE countdown INCREMENT -2")
    with target.cursor() as cursor:
        cursor.execute("SELECT nextval('t_acme.countdown')")

    ensure_tenant_sequences(source, target, acme)

    assert _read_one(target, "SELECT nextval('t_acme.countdown')") == 98


@pytest.mark.usefixtures("prepared")
def test_carry_sequences_goes_on_where_the_source_stands(
    sample: connection, source: connection, target: connection, acme: Tenant
) -> None:
    with sample.cursor() as cursor:
        cursor.execute(
            "INSERT INTO customers (email, name) SELECT n || '@x', n FROM generate_series(1, 5) n;"
            "INSERT INTO customers (id, email, name) OVERRIDING SYSTEM VALUE"
            " VALUES (40, 'f@x', 'f');"
            "INSERT INTO orders (customer, status) VALUES (1, 'paid'), (2, 'paid')"
        )

    carried = carry_sequences(source, target, acme)

    # 1000 to 1040 lie in the cache of the session above and are lost with it.
    assert carried == {
        "countdown": 98,
        "customers_id_seq": 41,
        "invoice_numbers": 1050,
        "orders_id_seq": 3,
    }
    assert _read_one(target, "SELECT nextval('t_acme.customers_id_seq')") == 41


@pytest.mark.usefixtures("prepared")
def test_gotcha_26_carry_sequences_passes_over_cached_values(
    sample: connection, source: connection, target: connection, acme: Tenant
) -> None:
    handed_out = {_read_one(sample, "SELECT nextval('invoice_numbers')")}

    carry_sequences(source, target, acme)

    handed_out |= {_read_one(sample, "SELECT nextval('invoice_numbers')") for _ in range(4)}
    assert _read_one(target, "SELECT nextval('t_acme.invoice_numbers')") > max(handed_out)


def test_carry_sequences_sees_the_greatest_key_of_any_partition(
    source_owner: connection, source: connection, target: connection, prepare: Prepare, acme: Tenant
) -> None:
    with source_owner.cursor() as cursor:
        cursor.execute(
            "CREATE TABLE items (id serial PRIMARY KEY) PARTITION BY RANGE (id);"
            " CREATE TABLE items_1 PARTITION OF items FOR VALUES FROM (0) TO (100);"
            " CREATE TABLE items_2 PARTITION OF items DEFAULT; INSERT INTO items VALUES (500)"
        )
    prepare(acme)

    assert carry_sequences(source, target, acme) == {"items_id_seq": 501}


@pytest.mark.usefixtures("prepared")
def test_carry_sequences_never_moves_one_back(
    source: connection, target: connection, acme: Tenant
) -> None:
    with target.cursor() as cursor:
        cursor.execute("SELECT setval('t_acme.customers_id_seq', 70)")

    for _ in range(2):
        assert carry_sequences(source, target, acme)["customers_id_seq"] == 71


def test_carry_sequences_has_nothing_to_do_without_sequences(
    source: connection, target: connection, acme: Tenant
) -> None:
    assert carry_sequences(source, target, acme) == {}


def test_ensure_tenant_sequences_refuses_two_of_one_name(
    source_owner: connection, source: connection, target: connection, acme: Tenant
) -> None:
    with source_owner.cursor() as cursor:
        cursor.execute("CREATE SCHEMA other; CREATE SEQUENCE s; CREATE SEQUENCE other.s")

    with pytest.raises(PermanentError, match="have the same name: s"):
        ensure_tenant_sequences(source, target, acme)


@pytest.mark.usefixtures("prepared")
def test_carry_sequences_back_goes_on_where_the_target_stands(
    sample: connection, source: connection, target: connection, acme: Tenant
) -> None:
    carry_sequences(source, target, acme)
    with target.cursor() as cursor:
        # Ten values of one come out of a cache of five; the other counts down.
        for _ in range(6):
            cursor.execute(
                "SELECT nextval('t_acme.invoice_numbers'), nextval('t_acme.countdown'),"
                " nextval('t_acme.orders_id_seq')"
            )
        [(numbers, down, orders)] = cursor.fetchall()

    carried = carry_sequences_back(source, target, acme)

    assert carried["invoice_numbers"] > numbers
    assert (carried["countdown"], carried["orders_id_seq"]) == (down - 1, orders + 1)
    assert _read_one(sample, "SELECT nextval('orders_id_seq')") == orders + 1
    assert _read_one(sample, "SELECT nextval('countdown')") == down - 1


@pytest.mark.usefixtures("prepared")
def test_carry_sequences_back_never_moves_one_back_nor_behind_a_key(
    sample: connection, source: connection, target: connection, acme: Tenant
) -> None:
    with sample.cursor() as cursor:
        cursor.execute(
            "SELECT setval('orders_id_seq', 90); INSERT INTO customers (id, email, name)"
            " OVERRIDING SYSTEM VALUE VALUES (40, 'f@x', 'f')"
        )

    carried = carry_sequences_back(source, target, acme)

    assert (carried["orders_id_seq"], carried["customers_id_seq"]) == (91, 41)


@pytest.mark.usefixtures("prepared")
def test_sequences_that_we_may_not_set_are_named_before_anybody_waits(
    source: connection, acme: Tenant, source_server: PostgresServer, source_params: ConnectionParams
) -> None:
    check_sequences_can_go_back(source, acme)
    source_server.psql(
        "-c", "ALTER SEQUENCE invoice_numbers OWNER TO postgres", database=source_params.database
    )

    with pytest.raises(PermanentError, match="cannot set sequences") as caught:
        check_sequences_can_go_back(source, acme)

    assert "invoice_numbers" in caught.value.detail
