"""What an abort leaves nothing of, and another tenant of which it must not touch a thing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any
from uuid import UUID

import pytest

from move_stage import Stage, rows
from tenantferry.connections import open_connection
from tenantferry.control.registry import ensure_registered
from tenantferry.schema.roles import ensure_tenant_role, read_role_settings
from tenantferry.schema.sequences import ensure_tenant_sequences

OTHER_ID = UUID("22222222-2222-2222-2222-222222222222")
# What an abort leaves nothing of: each query counts what is the tenant's.
OF_SOURCE = {
    "slots": "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()",
    "publications": "SELECT count(*) FROM pg_publication",
    "schema": "SELECT count(*) FROM pg_namespace WHERE nspname = 'tenantferry'",
}
OF_TARGET = {
    "counted": "SELECT count(*) FROM public.counted WHERE tenant_id::text LIKE '1111%'",
    "written": "SELECT count(*) FROM public.written WHERE tenant_id::text LIKE '1111%'",
    "role": "SELECT count(*) FROM pg_roles WHERE rolname = 'tenant_acme'",
    "schema": "SELECT count(*) FROM pg_namespace WHERE nspname = 't_acme'",
    "reverse slot": "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()",
    "publications": "SELECT count(*) FROM pg_publication",
    "mapping": "SELECT count(*) FROM app.tenant_roles WHERE role_name = 'tenant_acme'",
    "origin": "SELECT count(*) FROM pg_replication_origin WHERE roname = 'tenantferry_acme'",
    **{
        table: f"SELECT count(*) FROM tenantferry.{table} WHERE tenant = 'acme'"
        for table in ("chunks", "rounds", "streams", "validations", "graces", "write_pauses")
    },
    "mismatches": "SELECT count(*) FROM tenantferry.mismatches JOIN tenantferry.validations"
    " ON id = validation_id WHERE tenant = 'acme'",
}
# What the target has of another tenant that can still go back, beside its rows.
OTHER_RECORDS = """
INSERT INTO tenantferry.rounds (tenant, round, consistent_point) VALUES ('globex', 1, '0/1');
INSERT INTO tenantferry.chunks
    (tenant, table_schema, table_name, chunk, key_columns, estimated_rows)
    VALUES ('globex', 'public', 'written', 1, '{id}', 1);
INSERT INTO tenantferry.streams (tenant, direction, position, confirmed)
    VALUES ('globex', 'forward', '0/1', '0/1'), ('globex', 'reverse', '0/1', '0/1');
INSERT INTO tenantferry.write_pauses (tenant, deadline, resumed_at) VALUES ('globex', now(), now());
INSERT INTO tenantferry.graces (tenant, attempt, start_lsn, ends_at)
    SELECT 'globex', max(id), '0/1', now() + interval '1 day' FROM tenantferry.write_pauses;
INSERT INTO tenantferry.archives (tenant, attempt)
    SELECT 'globex', max(id) FROM tenantferry.write_pauses;
WITH made AS (
    INSERT INTO tenantferry.validations
        (tenant, position, started_at, tables, chunks, rows, mismatches)
        VALUES ('globex', '0/1', now(), 1, 1, 1, 1) RETURNING id)
INSERT INTO tenantferry.mismatches (validation_id, number, table_schema, table_name, kind, detail)
    SELECT id, 1, 'public', 'written', 'missing', 'a row' FROM made;
SELECT pg_replication_origin_create('tenantferry_globex');
"""
READ_OTHER_RECORDS = [
    *(
        f"SELECT r::text FROM tenantferry.{table} AS r WHERE tenant = 'globex' ORDER BY 1"
        for table in (
            "tenants", "phase_changes", "chunks", "rounds", "streams", "validations", "graces",
            "write_pauses", "archives",
        )
    ),
    "SELECT m::text FROM tenantferry.mismatches AS m JOIN tenantferry.validations AS v"
    " ON v.id = m.validation_id WHERE v.tenant = 'globex'",
    "SELECT rolcanlogin, rolconfig, rolinherit FROM pg_roles WHERE rolname = 'tenant_globex'",
    "SELECT r::text FROM app.tenant_roles AS r WHERE role_name = 'tenant_globex'",
    "SELECT nspacl::text FROM pg_namespace WHERE nspname = 't_globex'",
    "SELECT s::text FROM pg_sequences AS s WHERE schemaname = 't_globex'",
    "SELECT roident FROM pg_replication_origin WHERE roname = 'tenantferry_globex'",
]  # fmt: skip


def left(stage: Stage) -> dict[str, int]:
    """Return what is still there of the tenant's move, by name."""
    found = {f"source {name}": rows(stage.source, query) for name, query in OF_SOURCE.items()}
    found |= {f"target {name}": rows(stage.target, query) for name, query in OF_TARGET.items()}
    return {name: count for name, [(count,)] in found.items() if count}


@pytest.fixture
def other(stage: Stage) -> Iterator[None]:
    """Another tenant, with all that the target may have of one."""
    tenant = stage.move.tenant.model_copy(update={"key": "globex", "id": OTHER_ID})
    with closing(open_connection(stage.move.target, purpose="test")) as target, target:
        ensure_registered(
            target, tenant="globex", tenant_id=OTHER_ID, source_identity="1/globex", run_id=None
        )
        ensure_tenant_role(target, tenant, settings=read_role_settings(stage.source, tenant))
        ensure_tenant_sequences(stage.source, target, tenant)
        rows(target, OTHER_RECORDS)
    _add_rows_of_both(stage)
    yield
    rows(stage.target, "SELECT pg_replication_origin_drop('tenantferry_globex')")


def _add_rows_of_both(stage: Stage) -> None:
    """Give another tenant rows of the same keys, in the pages between those of this one."""
    for start in range(1, 50, 10):
        for owner in (OTHER_ID, stage.move.tenant.id):
            rows(
                stage.target,
                "INSERT INTO public.written (id, tenant_id)"
                " SELECT n, %s FROM generate_series(%s, %s) AS n",
                str(owner), start, start + 9,
            )  # fmt: skip
    rows(
        stage.target,
        "INSERT INTO public.counted (id, note, tenant_id)"
        " SELECT n, 'of another', %s FROM generate_series(1, 9) AS n",
        str(OTHER_ID),
    )


def read_others(stage: Stage) -> list[tuple[Any, ...]]:
    """Return every version of every row of the other tenant, with its place and its transaction."""
    return [
        row
        for table in ("written", "counted")
        for row in rows(
            stage.target,
            f"SELECT '{table}', ctid::text, xmin::text, xmax::text, r::text"
            f" FROM public.{table} AS r WHERE tenant_id = %s ORDER BY ctid",
            str(OTHER_ID),
        )
    ]


def read_other_records(stage: Stage) -> list[list[tuple[Any, ...]]]:
    """Return what the target has of the other tenant beside its rows; something of each kind."""
    found = [rows(stage.target, query) for query in READ_OTHER_RECORDS]
    assert all(found)
    return found
