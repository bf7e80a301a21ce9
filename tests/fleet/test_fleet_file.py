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
    ],
    ids=["yaml", "list", "unknown", "no tenants", "target", "router", "defaults"],
)
def test_load_fleet_refuses_a_fleet_that_is_bad_as_a_whole(
    tmp_path: Path, text: str, message: str
) -> None:
    path = write(tmp_path, text)

    with pytest.raises(FleetError) as refused:
        load_fleet(path)

    assert message in str(refused.value)
    assert str(path) in str(refused.value)


def test_load_fleet_says_which_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FleetError, match="could not read fleet file"):
        load_fleet(tmp_path / "nowhere.yaml")
