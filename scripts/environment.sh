#!/bin/sh
# Make the virtual environment .venv fit the requirements, and print the Python to use.
# Instant where it fits already. Without a network, what is installed is used, and this says so.
set -eu
cd "$(dirname "$0")/.."

# An index behind a proxy may have a certificate that only this machine knows.
export UV_SYSTEM_CERTS=true UV_NATIVE_TLS=true

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

# Does this Python have every package that the requirements name, in these versions?
has_all() {
    "$1" - requirements.txt requirements-dev.txt 2>/dev/null <<'PYTHON'
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

for path in sys.argv[1:]:
    for line in Path(path).read_text().splitlines():
        name, _, wanted = line.partition("==")
        if wanted:
            try:
                found = version(name)
            except PackageNotFoundError:
                sys.exit(1)
            if found != wanted:
                sys.exit(1)
PYTHON
}

install() {
    uv=""
    for candidate in .venv/bin/uv uv; do
        if "$candidate" --version >/dev/null 2>&1; then uv=$candidate; break; fi
    done
    if [ -z "$uv" ] && .venv/bin/python -m pip install --quiet --disable-pip-version-check uv >&2; then
        uv=.venv/bin/uv
    fi
    if [ -n "$uv" ] && "$uv" pip install --quiet --python .venv/bin/python \
        --requirement requirements-dev.txt --constraint constraints.txt >&2; then
        return
    fi
    say "uv could not install; trying pip"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check \
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
    if has_all .venv/bin/python; then
        say ".venv has everything"
    else
        say "installing the requirements into .venv"
    fi
    if has_all .venv/bin/python || install; then
        echo "$wanted" >"$stamp"
        echo "$PWD/.venv/bin/python"
        exit
    fi
fi
if has_all "$python"; then
    say "could not install; $python has every package, so it is used as it is"
    echo "$python"
    exit
fi
say "could not install the requirements, and they are not installed already"
say "connect this machine to a package index, then run the same command again"
exit 1
