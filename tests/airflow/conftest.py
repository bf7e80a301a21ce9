"""A throw-away Airflow configuration, set before the first import of Airflow."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import pytest

PROJECT_ROOT = Path(__file__).resolve().parents[2]
_HOME = tempfile.mkdtemp(prefix="tenantferry-airflow-")
atexit.register(shutil.rmtree, _HOME, ignore_errors=True)
os.environ.update(
    {
        "AIRFLOW_HOME": _HOME,
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": str(PROJECT_ROOT / "dags"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(PROJECT_ROOT / "plugins"),
        "AIRFLOW__CORE__UNIT_TEST_MODE": "False",
    }
)

FLEET = """
target: {conn_id: target, regions: [eu]}
routers:
  main:
    instances:
      - {admin_conn_id: pgbouncer_1, aliases_file: aliases.ini}
defaults: {region: eu}
tenants:
  - key: acme
    id: 7f3b1c52-0000-4000-8000-000000000001
    source: {conn_id: source_1, database: acme}
  - key: globex
    id: 7f3b1c52-0000-4000-8000-000000000002
    source: {conn_id: source_2}
    approval: true
    size_class: large
"""


@pytest.fixture
def fleet_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fleet of two tenants, declared where Airflow looks for it."""
    path = tmp_path / "fleet.yaml"
    path.write_text(FLEET, "utf-8")
    monkeypatch.setenv("TENANTFERRY_FLEET", str(path))
    return path
