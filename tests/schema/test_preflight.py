from __future__ import annotations

from collections.abc import Callable

import pytest
from psycopg2.extensions import connection

from tenantferry.connections import ConnectionParams
from tenantferry.fleet import TableKind, Tenant
from tenantferry.fleet.declaration import ThrottleLimits
from tenantferry.local.postgres import PostgresServer
from tenantferry.schema.findings import Finding, Verdict
from tenantferry.schema.preflight import run_preflight
from tenantferry.schema.source_checks import SOURCE_CHECKS
from tenantferry.schema.target_checks import TARGET_CHECKS

Prepare = Callable[[Tenant], tuple[str, ...]]


def _run(conn: connection, statement: str) -> None:
    with conn.cursor() as cursor:
        cursor.execute(statement)


@pytest.fixture
def simple(source_owner: connection, acme: Tenant) -> Tenant:
    """A tenant with one harmless table."""
    _run(source_owner, "CREATE TABLE items (id bigint PRIMARY KEY, name text)")
    return acme.model_copy(update={"tables": {}})


@pytest.fixture
def find(source: connection, target: connection) -> Callable[[Tenant], list[Finding]]:
    """Run the preflight."""

    def run(tenant: Tenant) -> list[Finding]:
        return run_preflight(source, target, tenant, target_regions=())

    return run


Find = Callable[[Tenant], list[Finding]]


def _by(findings: list[Finding], verdict: Verdict) -> set[tuple[str, str]]:
    return {(f.check, f.subject) for f in findings if f.verdict is verdict}


def test_run_preflight_finds_no_error_in_a_good_source(
    sample: connection, shared_tables: None, find: Find, acme: Tenant
) -> None:
    findings = find(acme)

    assert _by(findings, Verdict.ERROR) == set()
    assert {check for check, _ in _by(findings, Verdict.WARNING)} == {
        "index condition",
        "on conflict",
    }
    assert ("source privileges", "") in _by(findings, Verdict.OK)


@pytest.mark.usefixtures("prepared")
def test_run_preflight_is_green_for_a_tenant_that_is_prepared(find: Find, acme: Tenant) -> None:
    assert _by(find(acme), Verdict.ERROR) == set()


def test_run_preflight_changes_nothing(
    sample: connection, source: connection, target: connection, find: Find, acme: Tenant
) -> None:
    def count(conn: connection) -> tuple[object, ...]:
        with conn.cursor() as cursor:
            cursor.execute(
                "SELECT (SELECT count(*) FROM pg_class), (SELECT count(*) FROM pg_roles),"
                " (SELECT count(*) FROM pg_replication_slots), (SELECT count(*) FROM pg_namespace)"
            )
            return cursor.fetchone() or ()

    before = count(source), count(target)

    find(acme)

    assert (count(source), count(target)) == before
    assert (source.autocommit, target.autocommit) == (True, True)


@pytest.mark.parametrize(
    ("statement", "check", "subject"),
    [
        ("CREATE TABLE t (id int)", "replica identity", "public.t"),
        ("ALTER TABLE items REPLICA IDENTITY NOTHING", "replica identity", "public.items"),
        (
            "CREATE TABLE t (id int PRIMARY KEY DEFERRABLE)",
            "replica identity",
            "public.t",
        ),
        ("CREATE UNLOGGED TABLE t (id int PRIMARY KEY)", "unlogged table", "public.t"),
        ("CREATE TABLE t (id int) PARTITION BY LIST (id)", "replica identity", "public.t"),
        (
            "CREATE TABLE t (id int PRIMARY KEY) PARTITION BY LIST (id);"
            " CREATE UNLOGGED TABLE t1 PARTITION OF t FOR VALUES IN (1)",
            "partition",
            "public.t",
        ),
        (
            "CREATE TABLE t (id int PRIMARY KEY, d int) PARTITION BY LIST (id);"
            " ALTER TABLE t REPLICA IDENTITY FULL;"
            " CREATE TABLE t1 PARTITION OF t FOR VALUES IN (1)",
            "replica identity",
            "public.t",
        ),
        (
            "CREATE TABLE t (id int PRIMARY KEY) PARTITION BY LIST (id);"
            " CREATE TABLE t1 PARTITION OF t FOR VALUES IN (1);"
            " ALTER TABLE t1 REPLICA IDENTITY NOTHING",
            "replica identity",
            "public.t",
        ),
        (
            "CREATE TABLE t (a int, b int GENERATED ALWAYS AS (a) STORED, PRIMARY KEY (a, b))",
            "replica identity",
            "public.t",
        ),
        ("ALTER TABLE items ADD CHECK (id > 0) NOT VALID", "check", "public.items"),
        ("CREATE TABLE t () INHERITS (items)", "replica identity", "public.t"),
        (
            "CREATE TABLE t (PRIMARY KEY (id)) INHERITS (items);"
            " ALTER TABLE items ALTER COLUMN name SET NOT NULL;"
            " ALTER TABLE t ALTER COLUMN name DROP NOT NULL",
            "inheritance",
            "public.t",
        ),
        ("SELECT lo_create(0)", "large objects", "source"),
        ("CREATE SCHEMA app", "schema", "app"),
        ("CREATE SCHEMA t_acme", "schema", "t_acme"),
        ("ALTER TABLE items ADD tenant_id int", "tenant column", "public.items"),
        ("CREATE SCHEMA o; CREATE SEQUENCE s; CREATE SEQUENCE o.s", "sequence", "s"),
        (
            "ALTER TABLE items ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
            "row security",
            "public.items",
        ),
        ("BEGIN; PREPARE TRANSACTION 'held'", "prepared transaction", "held"),
        (
            "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';"
            " CREATE TRIGGER t BEFORE INSERT ON items FOR EACH ROW EXECUTE FUNCTION f();"
            " ALTER TABLE items ENABLE ALWAYS TRIGGER t",
            "trigger",
            "public.items",
        ),
    ],
    ids=[
        "no key", "identity nothing", "deferrable key", "unlogged", "partitioned without key",
        "unlogged partition", "partition not full", "partition nothing", "generated key",
        "not valid",
        "child without key", "child that may be null",
        "large objects", "reserved schema", "tenant schema", "tenant column", "sequences",
        "forced row security", "prepared transaction", "always trigger",
    ],
)  # fmt: skip
def test_run_preflight_finds_an_error_in_the_source(
    *,
    source_owner: connection,
    simple: Tenant,
    find: Find,
    statement: str,
    check: str,
    subject: str,
) -> None:
    _run(source_owner, statement)
    try:
        assert (check, subject) in _by(find(simple), Verdict.ERROR)
    finally:
        if "PREPARE" in statement:
            _run(source_owner, "ROLLBACK PREPARED 'held'")


@pytest.mark.parametrize(
    ("statement", "check"),
    [
        ("CREATE MATERIALIZED VIEW m AS SELECT 1 AS a", "materialized view"),
        ("CREATE RULE r AS ON DELETE TO items DO INSTEAD NOTHING", "rule"),
        ("CREATE TABLE t (id int); ALTER TABLE t REPLICA IDENTITY FULL", "replica identity"),
        ("ALTER TABLE items ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON items",
         "row security policy"),
        ("CREATE INDEX i ON items (lower(name))", "index condition"),
        ("CREATE UNIQUE INDEX i ON items (name)", "on conflict"),
        (
            "CREATE TABLE t (id int PRIMARY KEY) PARTITION BY LIST (id);"
            " CREATE TABLE t1 PARTITION OF t (CHECK (id > 0)) FOR VALUES IN (1)",
            "partition",
        ),
        ("CREATE SEQUENCE s; ALTER TABLE items ALTER id SET DEFAULT nextval('s'::text)",
         "default"),
    ],
    ids=["materialized view", "rule", "full", "policy", "gotcha 28", "gotcha 29", "partition",
         "text default"],
)  # fmt: skip
def test_run_preflight_warns_of_what_does_not_block(
    source_owner: connection, simple: Tenant, find: Find, statement: str, check: str
) -> None:
    _run(source_owner, statement)

    findings = find(simple)

    assert check in {name for name, _ in _by(findings, Verdict.WARNING)}
    assert _by(findings, Verdict.ERROR) == set()


def test_run_preflight_tells_everything_at_once(
    source_owner: connection, simple: Tenant, find: Find
) -> None:
    _run(source_owner, "CREATE TABLE a (x int); CREATE TABLE b (x int); SELECT lo_create(0)")

    errors = _by(find(simple), Verdict.ERROR)

    assert errors == {
        ("replica identity", "public.a"),
        ("replica identity", "public.b"),
        ("large objects", "source"),
    }


def test_run_preflight_says_what_to_do_about_every_error(
    source_owner: connection, simple: Tenant, find: Find
) -> None:
    _run(source_owner, "CREATE TABLE a (x int); SELECT lo_create(0); CREATE SCHEMA app")

    hints = {f.hint for f in find(simple) if f.verdict is Verdict.ERROR}

    assert "" not in hints


def test_run_preflight_accepts_a_skipped_table(
    source_owner: connection, simple: Tenant, find: Find
) -> None:
    _run(source_owner, "CREATE UNLOGGED TABLE t (id int); CREATE TABLE u (id int)")
    tables = {"public.t": TableKind.SKIP, "public.u": TableKind.SKIP}

    assert _by(find(simple.model_copy(update={"tables": tables})), Verdict.ERROR) == set()


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ({"public.t": TableKind.SKIP}, {("inheritance", "public.child")}),
        ({"public.child": TableKind.SKIP}, {("inheritance", "public.child")}),
        ({"public.t": TableKind.SKIP, "public.child": TableKind.SKIP}, set()),
        ({"public.whole": TableKind.SKIP}, set()),
        ({"public.one": TableKind.SKIP}, {("partition", "public.one")}),
    ],
    ids=["parent", "child", "both", "partitioned", "partition"],
)
def test_run_preflight_wants_tables_that_belong_together_declared_alike(
    *,
    source_owner: connection,
    simple: Tenant,
    find: Find,
    declared: dict[str, TableKind],
    expected: set[tuple[str, str]],
) -> None:
    _run(
        source_owner,
        "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE child (PRIMARY KEY (id)) INHERITS (t);"
        " CREATE TABLE whole (id int PRIMARY KEY) PARTITION BY LIST (id);"
        " CREATE TABLE one PARTITION OF whole FOR VALUES IN (1)",
    )

    assert _by(find(simple.model_copy(update={"tables": declared})), Verdict.ERROR) == expected


def test_run_preflight_finds_app_roles_that_no_fence_holds(simple: Tenant, find: Find) -> None:
    roles = ("postgres", "nobody_here", "tenantferry")

    errors = _by(find(simple.model_copy(update={"app_roles": roles})), Verdict.ERROR)

    assert errors == {("app role", role) for role in roles}


def test_run_preflight_finds_other_members_of_the_migration_role(
    source_server: PostgresServer, simple: Tenant, find: Find
) -> None:
    source_server.psql("-c", "CREATE ROLE intruder IN ROLE tenantferry")
    try:
        assert ("privileges", "source") in _by(find(simple), Verdict.ERROR)
    finally:
        source_server.psql("-c", "DROP ROLE intruder")


def test_run_preflight_finds_a_table_of_another_owner(
    source_server: PostgresServer, source: connection, simple: Tenant, find: Find
) -> None:
    source_server.psql("-c", "CREATE TABLE foreign_one (id int PRIMARY KEY)",
                       database=source.info.dbname)  # fmt: skip

    assert ("privileges", "public.foreign_one") in _by(find(simple), Verdict.ERROR)


def test_run_preflight_warns_of_another_consumer(
    source: connection, simple: Tenant, find: Find
) -> None:
    _run(source, "SELECT pg_create_logical_replication_slot('debezium', 'pgoutput')")

    assert ("slot", "debezium") in _by(find(simple), Verdict.WARNING)


def test_run_preflight_finds_rows_of_the_tenant_in_the_target(
    simple: Tenant, prepare: Prepare, find: Find, target: connection
) -> None:
    prepare(simple)
    _run(target, f"INSERT INTO public.items VALUES (1, 'x', '{simple.id}')")

    assert _by(find(simple), Verdict.ERROR) == {("tenant", "public.items")}


def test_run_preflight_finds_an_id_that_is_registered_for_another_key(
    simple: Tenant, find: Find, target: connection
) -> None:
    _run(
        target,
        "INSERT INTO tenantferry.tenants (tenant, tenant_id, phase, source_identity)"
        f" VALUES ('other', '{simple.id}', 'live', 'elsewhere')",
    )

    assert _by(find(simple), Verdict.ERROR) == {("tenant", "acme")}


@pytest.mark.parametrize(
    ("region", "regions", "blocked"),
    [(None, (), False), ("eu", (), False), ("eu", ("eu",), False), ("us", ("eu",), True),
     (None, ("eu",), True)],
    ids=["no policy", "any", "same", "other", "undeclared"],
)  # fmt: skip
def test_run_preflight_keeps_a_tenant_in_its_region(
    *,
    source: connection,
    target: connection,
    simple: Tenant,
    region: str | None,
    regions: tuple[str, ...],
    blocked: bool,
) -> None:
    tenant = simple.model_copy(update={"region": region})

    findings = run_preflight(source, target, tenant, target_regions=regions)

    assert (("region", "acme") in _by(findings, Verdict.ERROR)) is blocked


@pytest.mark.parametrize("limit", [10.0, None], ids=["limit", "no limit"])
def test_run_preflight_warns_where_the_throttle_cannot_see_standbys_of_the_target(
    simple: Tenant, find: Find, target_server: PostgresServer, limit: float | None
) -> None:
    throttle = ThrottleLimits(replica_lag_seconds=limit)
    tenant = simple.model_copy(update={"throttle": throttle})
    target_server.psql("-c", "REVOKE pg_monitor FROM tenantferry")
    try:
        findings = find(tenant)
    finally:
        target_server.psql("-c", "GRANT pg_monitor TO tenantferry")

    assert _by(findings, Verdict.ERROR) == set()
    assert (("throttle", "target") in _by(findings, Verdict.WARNING)) is (limit is not None)


def test_run_preflight_finds_missing_privileges_in_the_target(
    simple: Tenant, find: Find, target: connection, target_server: PostgresServer
) -> None:
    database = target.info.dbname
    target_server.psql(
        "-c", "ALTER ROLE tenantferry NOBYPASSRLS",
        "-c", "REVOKE EXECUTE ON FUNCTION pg_replication_origin_advance(text, pg_lsn)"
        " FROM tenantferry",
        database=database,
    )  # fmt: skip
    try:
        details = {f.detail for f in find(simple) if f.verdict is Verdict.ERROR}
    finally:
        target_server.psql("-c", "ALTER ROLE tenantferry BYPASSRLS")

    assert details == {
        "The migration role lacks the attribute BYPASSRLS.",
        "The migration role lacks EXECUTE on pg_replication_origin_advance(text,pg_lsn).",
    }


def test_run_preflight_finds_an_extension_that_the_target_cannot_have(
    source: connection, source_server: PostgresServer, simple: Tenant, find: Find
) -> None:
    # The target's server comes without pgcrypto and calls for a superuser for pageinspect.
    source_server.psql("-c", "CREATE EXTENSION sslinfo", "-c", "CREATE EXTENSION pageinspect",
                       database=source.info.dbname)  # fmt: skip

    assert _by(find(simple), Verdict.ERROR) == {
        ("extension", "sslinfo"),
        ("extension", "pageinspect"),
    }


GOOD_SOURCE = {
    "major": 15, "standby": False, "encoding": "UTF8", "collation": "C", "wal_level": "logical",
    "max_slots": 10, "used_slots": 0, "max_senders": 10, "used_senders": 0,
    "slot_keep_size": "-1", "slot_idle_timeout": "0",
}  # fmt: skip
GOOD_TARGET = {
    "major": 18, "standby": False, "encoding": "UTF8", "collation": "C", "max_origins": 10,
    "used_origins": 0, "tenant_roles": {}, "open_schemas": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("check", "fact", "verdict"),
    [
        ("server", {"major": 13}, Verdict.ERROR),
        ("server", {"major": 19}, Verdict.ERROR),
        ("server", {"standby": True}, Verdict.ERROR),
        ("server", {"wal_level": "replica"}, Verdict.ERROR),
        ("slots", {"used_slots": 9}, Verdict.ERROR),
        ("slots", {"used_senders": 9}, Verdict.ERROR),
        ("slots", {"slot_keep_size": "1GB"}, Verdict.WARNING),
        ("slots", {"slot_idle_timeout": "1d"}, Verdict.WARNING),
    ],
    ids=["13", "19", "standby", "wal_level", "slots", "senders", "keep size", "idle timeout"],
)
def test_source_checks_judge_the_server(
    acme: Tenant, check: str, fact: dict[str, object], verdict: Verdict
) -> None:
    judge = SOURCE_CHECKS[check]

    assert list(judge(GOOD_SOURCE, acme)) == []
    assert [f.verdict for f in judge({**GOOD_SOURCE, **fact}, acme)] == [verdict]


@pytest.mark.parametrize(
    ("check", "fact", "verdict"),
    [
        ("server", {"major": 14}, Verdict.ERROR),
        ("server", {"encoding": "LATIN1"}, Verdict.ERROR),
        ("server", {"collation": "de_DE"}, Verdict.WARNING),
        ("origins", {"used_origins": 10}, Verdict.ERROR),
        ("search path", {"open_schemas": ["public"]}, Verdict.ERROR),
    ],
    ids=["14", "encoding", "collation", "origins", "open schema"],
)
def test_target_checks_judge_the_server(
    check: str, fact: dict[str, object], verdict: Verdict
) -> None:
    judge = TARGET_CHECKS[check]

    assert list(judge(GOOD_TARGET, GOOD_SOURCE)) == []
    assert [f.verdict for f in judge({**GOOD_TARGET, **fact}, GOOD_SOURCE)] == [verdict]


def test_run_preflight_finds_a_schema_that_every_tenant_could_write_into(
    target_server: PostgresServer, target_params: ConnectionParams, simple: Tenant, find: Find
) -> None:
    assert ("open schema", "public") not in _by(find(simple), Verdict.ERROR)

    target_server.psql(
        "-c", "GRANT CREATE ON SCHEMA public TO PUBLIC", database=target_params.database
    )

    assert ("open schema", "public") in _by(find(simple), Verdict.ERROR)
