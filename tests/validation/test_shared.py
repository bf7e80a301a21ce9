from __future__ import annotations

from collections.abc import Iterator
from uuid import UUID

import pytest
from psycopg2.extensions import connection

from tenantferry.connections import ConnectionParams
from tenantferry.fleet import Source, TableKind, Tenant
from tenantferry.schema.catalog import read_catalog
from tenantferry.schema.findings import Verdict
from tenantferry.validation.shared import compare_shared_tables

TENANT = Tenant(
    key="acme",
    id=UUID(int=1),
    source=Source(conn_id="source"),
    tables={"public.countries": TableKind.SHARED},
)


@pytest.fixture
def sides(source_owner: connection, target: connection) -> Iterator[tuple[connection, connection]]:
    """The same reference data on both sides."""
    for session in (source_owner, target):
        with session.cursor() as cursor:
            cursor.execute("CREATE TABLE public.countries (code text PRIMARY KEY, vat numeric)")
            cursor.execute("INSERT INTO public.countries VALUES ('de', 19.0), ('fr', 20.0)")
    yield source_owner, target


def compare(
    source_params: ConnectionParams, target_params: ConnectionParams, *sides: connection
) -> list[tuple[str, Verdict]]:
    schemas = read_catalog(sides[0]), read_catalog(sides[1])
    found = compare_shared_tables(source_params, target_params, TENANT, schemas=schemas)
    return [(finding.subject, finding.verdict) for finding in found]


def test_shared_table_with_the_same_rows_is_fine(
    source_params: ConnectionParams,
    target_params: ConnectionParams,
    sides: tuple[connection, connection],
) -> None:
    assert compare(source_params, target_params, *sides) == [("public.countries", Verdict.OK)]


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE public.countries SET vat = 19 WHERE code = 'de'",
        "DELETE FROM public.countries WHERE code = 'fr'",
        "INSERT INTO public.countries VALUES ('it', 22)",
    ],
    ids=["one cell", "one row less", "one row more"],
)
def test_shared_table_that_differs_is_an_error(
    source_params: ConnectionParams,
    target_params: ConnectionParams,
    sides: tuple[connection, connection],
    change: str,
) -> None:
    with sides[1].cursor() as cursor:
        cursor.execute(change)

    assert compare(source_params, target_params, *sides) == [("public.countries", Verdict.ERROR)]


def test_shared_table_that_the_target_lacks_is_left_to_the_drift_check(
    source_params: ConnectionParams,
    target_params: ConnectionParams,
    sides: tuple[connection, connection],
) -> None:
    with sides[1].cursor() as cursor:
        cursor.execute("DROP TABLE public.countries")

    assert compare(source_params, target_params, *sides) == []
