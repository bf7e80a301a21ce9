from __future__ import annotations

from pathlib import Path

import pytest

from tenantferry.fleet import FleetError, TableKind, load_fleet

GOOD = """
target: {conn_id: target, regions: [eu]}
routers:
  main:
    instances:
      - {admin_conn_id: pgbouncer_1, aliases_file: aliases.ini}
defaults:
  region: eu
  app_roles: [app]
  tables: {public.countries: shared}
tenants:
"""
ACME = """
  - key: acme
    id: 7f3b1c52-0000-4000-8000-000000000001
    source: {conn_id: source_1, database: acme}
"""
GLOBEX = """
  - key: globex
    id: 7f3b1c52-0000-4000-8000-000000000002
    source: {conn_id: source_1, database: globex}
    approval: true
    tables: {public.imports: skip}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "fleet.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_load_fleet_merges_defaults_into_each_tenant(tmp_path: Path) -> None:
    fleet = load_fleet(write(tmp_path, GOOD + ACME + GLOBEX))

    acme, globex = fleet.tenants["acme"], fleet.tenants["globex"]
    assert (acme.region, acme.approval, globex.approval) == ("eu", False, True)
    assert acme.kind_of("public", "countries") is TableKind.SHARED
    assert globex.kind_of("public", "countries") is TableKind.SHARED
    assert globex.kind_of("public", "imports") is TableKind.SKIP
    assert globex.kind_of("public", "orders") is TableKind.TENANT


def test_load_fleet_merges_limits_of_the_throttle(tmp_path: Path) -> None:
    limits = "  throttle: {replica_lag_seconds: null, ignored_standbys: [delayed]}\ntenants:"
    text = GOOD.replace("tenants:", limits) + ACME + "    throttle: {query_latency_ms: 200}\n"

    throttle = load_fleet(write(tmp_path, text + GLOBEX)).tenants["acme"].throttle

    assert (throttle.replica_lag_seconds, throttle.query_latency_ms) == (None, 200.0)
    assert throttle.ignored_standbys == {"delayed"}


def test_load_fleet_lets_a_round_hold_its_snapshot_for_half_an_hour(tmp_path: Path) -> None:
    fleet = load_fleet(write(tmp_path, GOOD + ACME))

    assert fleet.tenants["acme"].round_budget_seconds == 30 * 60


def test_load_fleet_resolves_alias_files_from_its_own_folder(tmp_path: Path) -> None:
    fleet = load_fleet(write(tmp_path, GOOD + ACME))

    assert fleet.routers["main"].instances[0].aliases_file == tmp_path / "aliases.ini"


def test_names_of_the_longest_key_fit_into_63_bytes(tmp_path: Path) -> None:
    key = "a" * 48
    tenant = load_fleet(write(tmp_path, GOOD + ACME.replace("key: acme", f"key: {key}"))).tenants[
        key
    ]

    names = (tenant.slot, tenant.publication, tenant.origin, tenant.role, tenant.schema_name)
    assert max(len(name) for name in names) <= 63


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (("key: globex", "key: Glo-bex"), "key"),
        (("key: globex", f"key: {'a' * 49}"), "key"),
        (("id: 7f3b1c52-0000-4000-8000-000000000002", "id: 17"), "id"),
        (("approval: true", "approval: perhaps"), "approval"),
        (("approval: true", "colour: red"), "colour"),
        (("approval: true", "router: other"), "router"),
        (("public.imports: skip", "public.imports: move"), "tables.public.imports"),
        (("public.imports: skip", "imports: skip"), "tables.imports"),
        (("conn_id: source_1, database: globex", "database: globex"), "source.conn_id"),
        (
            ("7f3b1c52-0000-4000-8000-000000000002", "7F3B1C52-0000-4000-8000-000000000001"),
            "id",
        ),
        (("database: globex", "database: acme"), "source"),
        (("approval: true", "alias: acme"), "alias"),
        (("approval: true", "max_write_pause_seconds: 0"), "max_write_pause_seconds"),
        (("approval: true", "lag_threshold_seconds: .inf"), "lag_threshold_seconds"),
        (("approval: true", "slot_timeout_seconds: .nan"), "slot_timeout_seconds"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[1][:32],
)  # fmt: skip
def test_load_fleet_names_file_tenant_and_field_of_a_bad_tenant(
    tmp_path: Path, change: tuple[str, str], field: str
) -> None:
    path = write(tmp_path, GOOD + ACME + GLOBEX.replace(*change))

    fleet = load_fleet(path)

    (broken,) = (name for name in fleet.broken if name != "acme")
    message = fleet.broken[broken]
    assert str(path) in message
    assert f'tenant "{broken}"' in message
    assert f"{field}:" in message


def test_load_fleet_keeps_the_other_tenants_when_one_is_bad(tmp_path: Path) -> None:
    fleet = load_fleet(
        write(tmp_path, GOOD + ACME + GLOBEX.replace("approval: true", "approval: 7"))
    )

    assert (sorted(fleet.tenants), sorted(fleet.broken)) == (["acme"], ["globex"])


def test_load_fleet_trusts_neither_of_two_tenants_with_one_key(tmp_path: Path) -> None:
    fleet = load_fleet(write(tmp_path, GOOD + ACME + GLOBEX.replace("key: globex", "key: acme")))

    assert (sorted(fleet.tenants), sorted(fleet.broken)) == ([], ["acme"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tenants: [", "is not YAML"),
        ("- 1", "is not a mapping"),
        (GOOD.replace("tenants:", "tenant:"), "unknown fields: tenant"),
        (GOOD, '"tenants" in fleet file'),
        (GOOD.replace("conn_id: target, ", "") + ACME, '"target" in fleet file'),
        (GOOD.replace("aliases_file", "file") + ACME, 'router "main" in fleet file'),
        (GOOD.replace("region: eu", "approval: 12") + ACME, '"defaults" in fleet file'),
        (GOOD.replace("  main:", "  1:") + ACME, '"routers" in fleet file'),
        (GOOD.replace("  main:", f"  {'m' * 64}:") + ACME, "the fleet in fleet file"),
        (GOOD + ACME + "1: one", "the document in fleet file"),
        (GOOD.replace("region: eu", "region: 2026-02-30") + ACME, "is not YAML"),
        (GOOD.partition("defaults:")[0] + "defaults: []\ntenants: []", '"defaults" in fleet file'),
    ],
    ids=[
        "yaml",
        "list",
        "unknown",
        "no tenants",
        "target",
        "router",
        "defaults",
        "router 1",
        "long router",
        "field 1",
        "no such date",
        "defaults list",
    ],
)
def test_load_fleet_refuses_a_fleet_that_is_bad_as_a_whole(
    tmp_path: Path, text: str, message: str
) -> None:
    path = write(tmp_path, text)

    with pytest.raises(FleetError) as refused:
        load_fleet(path)

    assert message in str(refused.value)
    assert str(path) in str(refused.value)


def test_load_fleet_names_the_file_that_is_not_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "fleet.yaml"
    path.write_bytes((GOOD + ACME + "# Zürich").encode("latin-1"))

    with pytest.raises(FleetError, match="is not UTF-8") as refused:
        load_fleet(path)

    assert str(path) in str(refused.value)


@pytest.mark.parametrize(
    ("text", "field"),
    [
        (GOOD + ACME + "    region: eu\n    region: us\n", "region"),
        (GOOD + ACME + "    tables: {public.a: skip, public.a: shared}\n", "public.a"),
        (GOOD + ACME + 'tenants: []\n"routers": {}\n', "tenants"),
        (GOOD + ACME + '    alias: acme\n    "alias": other\n', "alias"),
    ],
    ids=["tenant", "one line", "document", "quotes"],
)
def test_load_fleet_names_file_line_and_field_that_is_said_twice(
    tmp_path: Path, text: str, field: str
) -> None:
    path = write(tmp_path, text)
    line = max(n for n, said in enumerate(text.splitlines(), 1) if field in said)

    with pytest.raises(FleetError) as refused:
        load_fleet(path)

    assert str(path) in str(refused.value)
    assert f'Line {line}: "{field}" stands in line' in str(refused.value)


def test_load_fleet_lets_a_mapping_override_what_it_merges(tmp_path: Path) -> None:
    merged = ACME.replace("- key", "- &acme\n    key") + (
        "  - <<: *acme\n    key: globex\n    id: 7f3b1c52-0000-4000-8000-000000000002\n"
        "    source: {conn_id: source_1, database: globex}\n"
    )

    fleet = load_fleet(write(tmp_path, GOOD + merged))

    assert (sorted(fleet.tenants), fleet.broken) == (["acme", "globex"], {})


def test_load_fleet_takes_defaults_with_nothing_below_for_none(tmp_path: Path) -> None:
    commented = GOOD.replace("\n  region", "\n#  region").replace("\n  app", "\n#  app")
    commented = commented.replace("\n  tables", "\n#  tables")

    tenant = load_fleet(write(tmp_path, commented + ACME)).tenants["acme"]

    assert (tenant.region, tenant.app_roles, tenant.tables) == (None, (), {})


def test_load_fleet_names_the_tenant_with_a_field_that_is_not_a_text(tmp_path: Path) -> None:
    fleet = load_fleet(write(tmp_path, GOOD + ACME + GLOBEX.replace("approval:", "1:")))

    assert 'tenant "globex"' in fleet.broken["globex"]
    assert "not a text" in fleet.broken["globex"]


def test_load_fleet_says_which_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FleetError, match="could not read fleet file"):
        load_fleet(tmp_path / "nowhere.yaml")


def test_no_key_makes_a_durable_slot_of_a_temporary_one(tmp_path: Path) -> None:
    tenant = load_fleet(write(tmp_path, GOOD + ACME)).tenants["acme"]

    assert tenant.validation_slot.startswith("tfvalidate_")
    assert tenant.slot.startswith("tenantferry_")
