#!/usr/bin/env bash
# Sets up .venv/ from nothing but a Python, exactly as locked: every file is checked against its SHA-256.
#
#   requirements/install.sh                             service, tests, linters and the command `querywarden`
#   PYTHON=/path/to/python3.12 requirements/install.sh  with this interpreter, if .venv/ is yet to be made
#
# Packages come from the index that uv (UV_DEFAULT_INDEX) or else pip (PIP_INDEX_URL, pip.conf) is set up for. An existing .venv/ is brought to the locked state.
set -euo pipefail
cd "$(dirname "$0")/.."

suitable() { # A name on PATH may be a stub that does not run, so ask it.
    "$1" -c 'import sys; sys.exit(not (sys.version_info >= (3, 11) and sys.implementation.name == "cpython"))' >/dev/null 2>&1
}

find_python() {
    local name
    for name in ${PYTHON:-python3.11 python3.12 python3.13 python3 python3.14 python}; do
        if suitable "$name"; then
            command -v "$name"
            return
        fi
    done
    if [ -n "${PYTHON-}" ]; then
        echo "install: PYTHON=$PYTHON is not a CPython 3.11 or newer that runs" >&2
    else
        echo "install: no CPython 3.11 or newer on PATH; install one (Debian, Ubuntu: apt-get install python3 python3-venv)" >&2
        echo "         or name it: make install PYTHON=/path/to/python3.11" >&2
    fi
    return 1
}

if ! suitable .venv/bin/python; then
    python=$(find_python)
    echo "install: creating .venv with $("$python" --version) ($python)"
    if ! message=$("$python" -m venv --clear .venv 2>&1); then
        echo "install: $python cannot create a virtual environment; on Debian and Ubuntu: apt-get install python3-venv" >&2
        echo "$message" | tail -n 3 >&2
        exit 1
    fi
fi

export VIRTUAL_ENV=$PWD/.venv PIP_DISABLE_PIP_VERSION_CHECK=1
python=.venv/bin/python
uv=.venv/bin/uv
if ! [ -x "$uv" ] || [ "uv==$("$uv" --version | cut -d' ' -f2)" != "$(grep -o '^uv==[0-9.]*' requirements/uv.txt)" ]; then
    "$python" -m pip --version >/dev/null 2>&1 || "$python" -m ensurepip --upgrade >/dev/null
    "$python" -m pip install --quiet --require-hashes --only-binary :all: -r requirements/uv.txt
fi
index=${UV_DEFAULT_INDEX:-${PIP_INDEX_URL:-$("$python" -m pip config get global.index-url 2>/dev/null || true)}}
[ -z "$index" ] || export UV_DEFAULT_INDEX=$index

"$uv" pip sync --quiet --compile-bytecode --require-hashes --python "$python" requirements/dev.txt requirements/uv.txt
# The project itself, editable; its build tools are in the lock too, so nothing unpinned is fetched for it.
"$uv" pip install --quiet --no-deps --no-build-isolation --python "$python" --editable .
echo "install: .venv is as locked ($(grep -c '==' requirements/dev.txt) packages); try .venv/bin/querywarden --help"
