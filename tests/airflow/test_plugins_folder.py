from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from airflow._shared.module_loading.file_discovery import find_path_from_directory

PROJECT_ROOT = Path(__file__).resolve().parents[2]
PLUGINS = PROJECT_ROOT / "plugins"
PACKAGE = PLUGINS / "tenantferry_airflow"


def run_with_plugins_only(code: str) -> subprocess.CompletedProcess[str]:
    """Run Python as Airflow's processes do where nobody set PYTHONPATH."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.append({str(PLUGINS)!r})\n{code}"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_gotcha_41_airflow_executes_no_module_of_ours_as_a_top_level_one() -> None:
    found = find_path_from_directory(PLUGINS, ".airflowignore", "glob")

    assert [path for path in found if str(PACKAGE) in path] == []


def test_gotcha_41_it_would_without_the_ignore_file(tmp_path: Path) -> None:
    (tmp_path / "plugins").symlink_to(PLUGINS)

    found = find_path_from_directory(PLUGINS, "no-such-ignore-file", "glob")

    assert str(PACKAGE / "operators.py") in found


def test_gotcha_41_no_module_of_ours_is_named_like_one_of_the_standard_library() -> None:
    ours = {path.stem for path in PACKAGE.glob("*.py")}

    assert ours & sys.stdlib_module_names == set()


@pytest.mark.parametrize("module", ["triggers", "sensors", "operators"])
def test_gotcha_42_what_a_triggerer_imports_needs_the_plugins_folder_alone(module: str) -> None:
    result = run_with_plugins_only(f"import tenantferry_airflow.{module}")

    assert result.returncode == 0, result.stderr
