from __future__ import annotations

import re
from datetime import time
from pathlib import Path

import pytest
import yaml

from tenantferry.fleet import FleetError, load_fleet
from tenantferry.fleet.operation import Criticality, Waves
from tenantferry.fleet.window import Day, Window

PROJECT_ROOT = Path(__file__).resolve().parents[2]
FLEET = """
target: {conn_id: target}
routers:
  main:
    instances:
      - {admin_conn_id: pgbouncer_1, aliases_file: aliases.ini}
defaults:
  window: {from: "22:00", to: "05:00"}
WAVES
tenants:
  - key: acme
    id: 7f3b1c52-0000-4000-8000-000000000001
    source: {conn_id: source_1, database: acme}
    OWN
"""


def write(folder: Path, *, waves: str = "", own: str = "region: eu") -> Path:
    path = folder / "fleet.yaml"
    path.write_text(FLEET.replace("WAVES", waves).replace("OWN", own), "utf-8")
    return path


def test_a_fleet_that_says_nothing_of_waves_has_canaries_and_no_schedule(tmp_path: Path) -> None:
    waves = load_fleet(write(tmp_path)).waves

    assert (waves.schedule, waves.stages, waves.timezone) == (None, (1, 5, 25, 100), "UTC")
    assert waves.soak_hours < 24  # or a nightly wave would pause every other night


def test_a_tenant_says_when_its_move_may_start_and_how_critical_it_is(tmp_path: Path) -> None:
    own = (
        "window: {from: '01:30', to: '02:00', days: [sat, sun], timezone: America/New_York}\n"
        "    criticality: high"
    )

    tenant = load_fleet(write(tmp_path, own=own)).tenants["acme"]

    assert tenant.criticality is Criticality.HIGH
    assert tenant.window is not None
    assert (tenant.window.start, tenant.window.end) == (time(1, 30), time(2))
    assert tenant.window.days == {Day.SATURDAY, Day.SUNDAY}
    assert tenant.window.timezone == "America/New_York"


def test_defaults_give_every_tenant_their_window(tmp_path: Path) -> None:
    tenant = load_fleet(write(tmp_path)).tenants["acme"]

    assert tenant.window == Window.model_validate({"from": "22:00", "to": "05:00"})
    assert tenant.criticality is Criticality.NORMAL


@pytest.mark.parametrize(
    ("own", "problem"),
    [
        # YAML's own reading of it: 1320 seconds after midnight.
        ("window: {from: 22:00, to: '05:00'}", "put the time in quotes"),
        ("window: {from: '22:00'}", "window.to"),
        ("window: {from: '22:00', to: '25:00'}", "window.to"),
        ("window: {from: '22:00', to: '05:00Z'}", "say the time zone in the field timezone"),
        ("window: {from: '22:00', to: '05:00', days: [monday]}", "window.days"),
        ("window: {from: '22:00', to: '05:00', days: []}", "window.days"),
        ("window: {from: '22:00', to: '05:00', timezone: Berlin}", 'no time zone "Berlin"'),
        ("window: {from: '22:00', to: '05:00', timezone: ../etc}", 'no time zone "../etc"'),
        ("criticality: vital", "criticality"),
    ],
)
def test_a_window_that_would_be_misread_breaks_its_tenant(
    tmp_path: Path, own: str, problem: str
) -> None:
    fleet = load_fleet(write(tmp_path, own=own))

    assert fleet.tenants == {}
    assert problem in fleet.broken["acme"]


@pytest.mark.parametrize(
    ("waves", "problem"),
    [
        ("waves: {stages: [1, 5]}", "the last one 100"),
        ("waves: {stages: [5, 1, 100]}", "larger than the one before"),
        ("waves: {stages: []}", "stages"),
        ("waves: {stages: [0, 100]}", "stages"),
        ("waves: {timezone: Mars/Olympus}", 'no time zone "Mars/Olympus"'),
        ("waves: {error_budget: -1}", "error_budget"),
        ("waves: {most_in_flight: 0}", "most_in_flight"),
        ("waves: {hours: .inf}", "hours"),
        ("waves: {nightly: true}", "nightly"),
    ],
)
def test_waves_that_are_not_valid_are_an_error_of_the_fleet(
    tmp_path: Path, waves: str, problem: str
) -> None:
    with pytest.raises(FleetError, match=re.escape(problem)):
        load_fleet(write(tmp_path, waves=waves))


def test_the_example_in_the_shipped_fleet_file_can_be_used_as_it_stands(tmp_path: Path) -> None:
    text = (PROJECT_ROOT / "include" / "fleet.yaml").read_text("utf-8")
    example = re.search(r"^# waves:\n(#   .*\n)+", text, re.MULTILINE)
    window = re.search(r"^#   (window: .*)$", text, re.MULTILINE)
    assert example is not None
    assert window is not None

    uncommented = re.sub(r"^# ", "", example[0], flags=re.MULTILINE)
    fleet = load_fleet(write(tmp_path, waves=uncommented, own=window[1]))

    assert set(yaml.safe_load(uncommented)["waves"]) == set(Waves.model_fields)
    assert (fleet.waves.timezone, fleet.broken) == ("Europe/Berlin", {})
